"""The scripts of experiments/, on tiny runs."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dreamer.checkpoint import storage
from experiments import kill_anywhere
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_killed_runs_end_as_if_they_had_not_been(tmp_path: Path) -> None:
    done = subprocess.run(
        [*(sys.executable, "experiments/kill_anywhere.py", str(tmp_path), "--kills", "2")],
        **{"cwd": ROOT, "capture_output": True, "text": True, "timeout": 600, "check": False},
    )
    assert done.returncode == 0, done.stderr
    header, _, *rows, _, last = done.stdout.splitlines()
    assert header.startswith("| killed while | times | most steps lost |")
    assert sum(int(row.split("|")[2]) for row in rows) == 2
    assert last.startswith("2 kills of ")


def test_what_a_kill_must_not_do_is_noticed(tmp_path_factory: Any, tmp_path: Path) -> None:
    copy = tiny_run.copy(tiny_run.finished(tmp_path_factory)[0], tmp_path / "run")
    trial = kill_anywhere.Trial(copy, [])
    trial.output, trial.offset = tmp_path / "run.txt", 0
    trial.output.write_text(f"resumed {copy} at step 100\n")
    before = kill_anywhere.fingerprint(copy)
    for _ in range(2):
        trial.check_files()
        trial.check_start()
    assert (trial.newest, trial.mistakes) == (100, [])

    saved = copy / "checkpoints" / "100"
    meta = storage.read(saved).meta
    meta["episodes"]["lengths"][0] += 1
    storage.amend(saved, meta, None)
    after = kill_anywhere.fingerprint(copy)
    assert [name for name in before if after[name] != before[name]] == ["episodes"]
    assert ["['state']['params']['actor']" in name for name in before].count(True) > 3

    trial.output.write_text(f"warning: some\nresumed {copy} at step 1,000\n")
    trial.check_start()
    file = next(path for path in (saved / "replay").rglob("*") if path.is_file())
    file.write_bytes(b"")
    trial.check_files()
    shutil.rmtree(saved)
    trial.check_files()
    start, warned, damaged, lost = trial.mistakes
    assert start == f"{trial.output}: did not resume step 100"
    assert warned == f"{trial.output}: warning: some"
    assert damaged.startswith(f"the checkpoint {saved} is damaged: replay/")
    assert lost == f"{copy}: checkpoint 100 is lost"
