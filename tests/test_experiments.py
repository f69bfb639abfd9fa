"""The scripts of experiments/, on tiny runs."""

import subprocess
import sys
from pathlib import Path

from tests import tiny_run

ROOT = Path(__file__).resolve().parent.parent


def seeds(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    argv = tiny_run.argv(folder, "eval.every=15", "eval.episodes=2", "run.steps=30", *options)
    training = [option for option in argv if not option.startswith("run.dir=")]
    return subprocess.run(
        [
            *(sys.executable, "experiments/seeds.py", str(folder), "--seeds", "3", "--cores", "1"),
            *("--vary", "agent.losses.reward=0.5", "--", *training),
        ],
        **{"cwd": ROOT, "capture_output": True, "text": True, "timeout": 300, "check": False},
    )


def test_seeds_tabulates_runs_and_reads_those_that_are_complete(tmp_path: Path) -> None:
    done = seeds(tmp_path)
    assert done.returncode == 0, done.stderr
    header, _, row = done.stdout.splitlines()
    assert header == "| agent.losses.reward | seed 3 | mean over evaluations | minutes per run |"
    scores = [
        line["eval/mean"]
        for line in tiny_run.lines(tmp_path / "0.5-s3" / "run")
        if "eval/mean" in line
    ]
    assert len(scores) == 2
    assert row.startswith(f"| 0.5 | {scores[1]:.1f} | {sum(scores) / 2:.1f} | ")


def test_seeds_shows_why_a_run_failed(tmp_path: Path) -> None:
    failed = seeds(tmp_path, "replay.capacity=1")
    assert failed.returncode == 1
    assert "output.txt: error: replay.capacity=1 is too small" in failed.stderr
    assert failed.stdout == ""
