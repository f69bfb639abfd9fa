"""A run continues when its disk is full or its folder removed, and learns the same."""

import os
import resource
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import pytest

import dreamer
from dreamer.checkpoint import folder, manager, storage
from dreamer.checkpoint.manager import SaveError
from dreamer.errors import EnvironmentFault, UserError
from dreamer.training import retry
from dreamer.training.trainer import Trainer
from tests import tiny_run

EVERY = ("checkpoint.every_steps=14", "log.progress=plain", "log.every_seconds=0")


class At(dreamer.Callback):
    """Does something when a step is reached, before anything of that step is saved or logged.

    Training waits for its checkpoints, so that it is known which ones there are.
    """

    def __init__(self, deeds: dict[int, Callable[[], Any]]) -> None:
        self.deeds = deeds

    def on_step(self, run: Trainer) -> None:
        if run.step in self.deeds:
            self.deeds[run.step]()

    def on_checkpoint(self, run: Trainer, path: Path) -> None:
        pass


def trainer(path: Path, deeds: dict[int, Callable[[], Any]], *changes: str) -> Trainer:
    config = tiny_run.config(path, *EVERY, *changes)
    return Trainer(config, callbacks=[At(deeds)])


def assert_saved_as_if_nothing_had_been(path: Path, finished: tuple[Path, dict]) -> None:
    with Trainer(tiny_run.config(path)) as again:
        assert again.step == 100
        tiny_run.assert_same(again.loop.get_arrays()[0], finished[1]["arrays"])
        tiny_run.assert_same(jax.device_get(again.loop.learner.state), finished[1]["train"])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: Any) -> tuple[Path, dict]:
    return tiny_run.finished(tmp_path_factory)


def full(path: Path) -> None:
    """From now on no file may become larger than what is logged already: for root as well."""
    size = (path / "metrics.jsonl").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def empty() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def test_a_disk_that_is_full_for_a_while(
    finished: tuple[Path, dict],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(retry, "FIRST", 1e-3)
    path = tmp_path / "run"
    there: list[list[int]] = []

    def look() -> None:
        there.append(manager.steps(path / "checkpoints"))

    try:
        with trainer(path, {40: lambda: full(path), 68: look, 70: empty, 80: look}) as run:
            run.run()
    finally:
        empty()
    out, err = capsys.readouterr()
    said = [line for line in err.splitlines() if "checkpoint" in line]
    assert len(said) == 2
    assert f"warning: cannot save a checkpoint in {path}/checkpoints: File too large; " in said[0]
    assert "training continues" in said[0]
    assert said[1] == "checkpoints can be saved again"
    assert (err.count("warning: cannot write logs"), err.count("\n")) == (1, 3)
    assert "warning" not in out
    assert there[0] == [14, 28]
    assert there[1][0] == 28
    assert 70 <= there[1][1] < 80
    logged = [line["step"] for line in tiny_run.lines(path)]
    assert not [step for step in logged if 40 < step < 70]
    assert logged[-1] == 100
    assert_saved_as_if_nothing_had_been(path, finished)


def test_a_folder_that_somebody_removes(
    finished: tuple[Path, dict], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is recreated by the next save, and locked by this run as before."""
    path = tmp_path / "run"

    def in_use() -> None:
        with pytest.raises(UserError, match="is in use by a run"), folder.locked(path):
            pass

    deeds = {44: lambda: shutil.rmtree(path), 60: in_use}
    with trainer(path, deeds, "log.tensorboard=true") as run:
        run.run()
    assert "warning: cannot write logs" in capsys.readouterr().err
    assert manager.steps(path / "checkpoints") == [98, 100]
    steps = [line["step"] for line in tiny_run.lines(path)]
    assert (min(steps) > 44, steps[-1]) == (True, 100)
    assert (path / "version.json").exists()
    assert len(list(path.glob("events.out.tfevents.*"))) == 1
    assert_saved_as_if_nothing_had_been(path, finished)


@pytest.mark.slow
def test_a_folder_that_somebody_empties(finished: tuple[Path, dict], tmp_path: Path) -> None:
    """As a file system does that removes what is old."""
    path = tmp_path / "run"

    def in_use() -> None:
        with pytest.raises(UserError, match="is in use by a run"), folder.locked(path):
            pass

    def empty() -> None:
        for name in ("config.yaml", "version.json", ".lock"):
            (path / name).unlink()

    with trainer(path, {40: empty, 60: in_use}) as run:
        run.run()
    assert folder.saved_config(path) is not None
    assert_saved_as_if_nothing_had_been(path, finished)


@pytest.mark.slow
def test_a_folder_that_cannot_be_recreated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What could not be saved at the end is an error, after which the run resumes where it was."""
    path = tmp_path / "mount" / "run"

    def unmount() -> None:
        (tmp_path / "mount").rename(tmp_path / "elsewhere")
        (tmp_path / "mount").write_text("")

    with trainer(path, {50: unmount}, "run.steps=60") as run:
        with pytest.raises(SaveError, match="is not a folder; .*; nothing is saved in /") as error:
            run.run()
        assert "\n" not in str(error.value)
        assert run.step == 60
    _, err = capsys.readouterr()
    assert err.count("warning: cannot save") == 1
    (tmp_path / "mount").unlink()
    (tmp_path / "elsewhere").rename(tmp_path / "mount")
    with trainer(path, {}) as again:
        assert again.step == 42


def test_a_fault_of_an_environment_is_reported_although_nothing_can_be_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise SaveError("no room")

    with trainer(tmp_path, {}) as run:

        def advance(until: int) -> Any:
            raise EnvironmentFault("environment 0 failed")

        monkeypatch.setattr(run.loop, "advance", advance)
        monkeypatch.setattr(run.checkpoints.manager, "save", fail)
        with pytest.raises(EnvironmentFault, match="^environment 0 failed; no room; nothing is "):
            run.run()


def test_sigusr1_saves_and_the_run_continues(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there: list[list[int]] = []
    deeds = {
        20: lambda: os.kill(os.getpid(), signal.SIGUSR1),
        22: lambda: there.append(manager.steps(tmp_path / "checkpoints")),
    }
    config = tiny_run.config(tmp_path, "log.progress=plain", "run.steps=30")
    dreamer.train(config, [At(deeds)])
    assert there == [[20]]
    assert manager.steps(tmp_path / "checkpoints") == [20, 30]
    assert "saving at step 20, requested by SIGUSR1" in capsys.readouterr().out


def test_a_second_ctrl_c_does_not_wait_for_a_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does the half-written checkpoint count."""
    released = threading.Event()
    write = storage.write

    def slow(*arguments: Any) -> None:
        assert released.wait(60)
        write(*arguments)

    monkeypatch.setattr(storage, "write", slow)
    run = Trainer(tiny_run.config(tmp_path))
    run.checkpoints.save_soon()
    run.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert run.checkpoints.manager.busy
    assert manager.steps(tmp_path / "checkpoints") == []
    released.set()
    run.checkpoints.manager.wait()
