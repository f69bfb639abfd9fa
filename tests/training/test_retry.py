"""Saves that fail are tried again, with few messages."""

from pathlib import Path

import numpy as np
import pytest

from dreamer.checkpoint import manager
from dreamer.checkpoint.manager import Checkpointer, SaveError
from dreamer.training import retry
from dreamer.training.retry import Retry
from tests.checkpoint.test_manager import META


class Run:
    """Saves at every second of a clock of its own, without waiting, what fails while `full`."""

    def __init__(self, path: Path) -> None:
        self.checkpoints = Checkpointer(path)
        self.time, self.attempts, self.lines = 0, [], []
        self.full = ""
        self.retry = Retry(self.checkpoints, self.save, self.lines.append, lambda: self.time)

    def save(self, score: float | None) -> None:
        self.attempts.append(self.time)
        if self.full:
            raise SaveError(self.full)
        self.checkpoints.save(self.time, {"x": np.zeros(1)}, None, META, score)
        self.checkpoints._thread.join()

    def pass_time(self, until: int) -> None:
        while self.time < until:
            self.time += 1
            self.retry.poll()


def test_it_is_tried_again_after_a_while_that_doubles(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.pass_time(50)
    run.full = "full"
    run.retry()
    run.pass_time(5000)
    waits = np.diff(run.attempts)
    assert waits[0] == retry.FIRST
    assert (waits[1:] == np.minimum(2 * waits[:-1], retry.LONGEST)).all()
    assert waits[-1] == retry.LONGEST
    (line,) = run.lines
    assert line == "warning: full; training continues, and the save is tried again"
    run.full = ""
    run.pass_time(6000)
    assert run.lines[1:] == ["checkpoints can be saved again"]
    assert len(run.attempts) == len(waits) + 2
    assert run.checkpoints.completed == 1


def test_another_reason_and_another_failure_are_noted(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for full in ("full", "full", "gone", ""):
        run.full = full
        run.retry(4.0)
        run.pass_time(run.time + 1)
    run.full = "full"
    run.retry()
    said = [line.split(";")[0] for line in run.lines]
    again = "checkpoints can be saved again"
    assert said == ["warning: full", "warning: gone", again, "warning: full"]
    assert manager.best(run.checkpoints.directory) == 3


def test_a_failure_in_the_background_is_noticed_at_the_next_iteration(tmp_path: Path) -> None:
    run = Run(tmp_path)
    (tmp_path / "5" / "in the way").mkdir(parents=True)
    run.pass_time(5)
    run.retry()
    assert run.lines == []
    run.pass_time(6)
    assert "Directory not empty" in run.lines[0]
    run.pass_time(5 + retry.FIRST)
    assert run.attempts == [5]
    run.pass_time(40)
    assert run.attempts == [5, 36]
    assert run.checkpoints.latest_step() == 36
    assert run.lines[1:] == ["checkpoints can be saved again"]


def test_while_an_attempt_is_under_way_there_is_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path)
    run.full = "full"
    run.retry()
    monkeypatch.setattr(Checkpointer, "busy", property(lambda self: run.time >= retry.FIRST))
    run.pass_time(100)
    assert run.attempts == [0]


def test_only_failures_to_save_are_survived(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.checkpoints.save = lambda *_: 1 / 0
    with pytest.raises(ZeroDivisionError):
        run.retry()
