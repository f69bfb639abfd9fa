"""Whole learning runs, minutes each: `make test-all`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests import test_your_environment as page

ROOT = Path(__file__).resolve().parent.parent


def learn(folder: Path, *options: str, cwd: Path = ROOT) -> float:
    """Trains by the command line on one device; mean return of the last evaluation."""
    command = [sys.executable, "-m", "dreamer.train", f"run.dir={folder}", "devices=1", *options]
    subprocess.run(command, check=True, cwd=cwd)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["eval/mean"] for line in lines if "eval/mean" in line][-1]


@pytest.mark.slow
def test_the_default_run_solves_cartpole(tmp_path: Path) -> None:
    assert learn(tmp_path / "run") >= 475


@pytest.mark.slow
def test_pendulum_is_swung_up(tmp_path: Path) -> None:
    assert learn(tmp_path / "run", "experiment=pendulum") >= -200


@pytest.mark.slow
def test_the_garden_is_cared_for(tmp_path: Path) -> None:
    """Masked classes and a number at once, from an image, a vector and a class; 8 is perfect."""
    page.save_example(tmp_path)
    options = [word for word in page.training() if "=" in word and not word.startswith("run.dir")]
    watched = ("eval.every=1500", "eval.episodes=50")
    assert learn(tmp_path / "run", *options, *watched, cwd=tmp_path) >= 7.5
