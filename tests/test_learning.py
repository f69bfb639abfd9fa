"""Whole learning runs, minutes each: `make test-all`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


def learn(folder: Path, *options: str) -> float:
    """Trains by the command line on one device; mean return of the last evaluation."""
    command = [sys.executable, "-m", "dreamer.train", f"run.dir={folder}", "devices=1", *options]
    subprocess.run(command, check=True)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["eval/mean"] for line in lines if "eval/mean" in line][-1]


@pytest.mark.slow
def test_the_default_run_solves_cartpole(tmp_path: Path) -> None:
    assert learn(tmp_path / "run") >= 475


@pytest.mark.slow
def test_pendulum_is_swung_up(tmp_path: Path) -> None:
    assert learn(tmp_path / "run", "experiment=pendulum") >= -200
