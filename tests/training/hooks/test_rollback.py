"""Runs whose updates are skipped roll back to an earlier checkpoint, and end if that is useless."""

import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer.checkpoint import manager, storage
from dreamer.checkpoint.manager import Checkpointer, SaveError
from dreamer.errors import UserError
from dreamer.training import train as training
from dreamer.training.callbacks import Callback
from dreamer.training.hooks import rollback
from dreamer.training.hooks.checkpoints import Checkpoints
from dreamer.training.trainer import Trainer
from tests import tiny_run
from tests.checkpoint.test_manager import META
from tests.several import together

OFTEN = ("run.max_skipped=3", "checkpoint.every_steps=10", "log.progress=plain")


class Poison(Callback):
    """Makes all weights of a run not finite, for so many of its iterations from a step on."""

    def __init__(self, step: int, times: int = 1) -> None:
        self._step, self._times = step, times

    def on_step(self, run: Trainer) -> None:
        if run.step >= self._step and self._times:
            self._times -= 1
            learner: Any = run.loop.learner
            params = jax.tree.map(lambda x: x * jnp.nan, learner.state.params)
            learner.state = learner.state.replace(params=params)


def saved(folder: Path) -> storage.Document:
    directory = folder / "checkpoints"
    return storage.read(directory / str(manager.newest(directory)))


@pytest.mark.parametrize(
    ("step", "back"), [(62, [60]), pytest.param(60, [60, 50], marks=pytest.mark.slow)]
)
def test_a_run_rolls_back_and_completes(
    step: int, back: list[int], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """One checkpoint further back where the newest one does not help."""
    config = tiny_run.config(tmp_path / "run", *OFTEN)
    training.train(config, callbacks=[Poison(step)])
    said = capsys.readouterr().err
    found = re.findall(r"back to step (\d+) with other random keys, (\d) of 3 times", said)
    assert found == [(str(to), str(times)) for times, to in enumerate(back, 1)]
    meta = saved(tmp_path / "run").meta
    assert meta["step"] == 100
    assert meta["rollbacks"] == len(back)
    assert meta["skipped"] > 3
    with Trainer(config) as trainer:
        weights = jax.tree.leaves(jax.device_get(trainer.loop.learner.params))
        assert all(np.isfinite(x).all() for x in weights)
    steps = [line["step"] for line in tiny_run.lines(tmp_path / "run")]
    assert steps == sorted(steps)  # what was measured after the checkpoint is gone


@pytest.mark.slow
def test_a_run_that_was_rolled_back_resumes_bit_for_bit(tmp_path: Path) -> None:
    """Its new keys are those of its checkpoint."""
    runs: dict[str, Any] = {}
    for name, stops in (("whole", ()), ("parts", (80,))):
        folder = tmp_path / name
        training.train(tiny_run.config(folder, *OFTEN, "run.steps=70"), callbacks=[Poison(42)])
        for steps in (*stops, 100):
            runs[name] = tiny_run.train(folder, *OFTEN, f"run.steps={steps}")
    tiny_run.assert_same(runs["parts"], runs["whole"])


@pytest.mark.slow
def test_a_run_that_fails_again_and_again_ends_with_advice(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    config = tiny_run.config(tmp_path / "run", *OFTEN, "run.max_rollbacks=2")
    with pytest.raises(UserError) as e:
        training.train(config, callbacks=[Poison(30, times=1000)])
    assert re.match(r"\d+ updates in a row were skipped, more than run.max_skipped=3", str(e.value))
    assert "not finite: " in str(e.value)
    assert "the run was rolled back 2 times, and run.max_rollbacks=2" in str(e.value)
    assert "agent.optimizer.learning_rate" in str(e.value)
    said = capsys.readouterr().err
    assert re.search(r"\d updates? skipped, \d+ in all; not finite: .*loss/total", said)
    assert [found[1] for found in re.finditer(r"keys, (\d) of 2 times", said)] == ["1", "2"]
    assert saved(tmp_path / "run").meta["rollbacks"] == 2


def test_without_a_checkpoint_the_run_ends_at_once(tmp_path: Path) -> None:
    config = tiny_run.config(tmp_path / "run", *OFTEN, "checkpoint.every_steps=0")
    with pytest.raises(UserError, match="there is no checkpoint from before them to roll back to"):
        training.train(config, callbacks=[Poison(30)])
    assert saved(tmp_path / "run").meta["rollbacks"] == 0


def test_where_it_cannot_roll_back_it_ends_with_all_reasons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise SaveError("the disk is full")

    monkeypatch.setattr(Checkpointer, "amend", full)
    monkeypatch.setattr(Checkpoints, "save", full)
    config = tiny_run.config(tmp_path / "run", *OFTEN)
    with pytest.raises(
        UserError,
        match=r"updates in a row .* the run cannot roll back: the disk is full; look at rewards.*; "
        r"the disk is full, and the same command resumes$",
    ):
        training.train(config, callbacks=[Poison(30)])


def test_the_checkpoint_to_roll_back_to_is_kept_among_newer_ones(tmp_path: Path) -> None:
    checkpoints = Checkpointer(tmp_path, keep=1)
    for step in (1, 2, 3):
        checkpoints.save(step, {"params": np.zeros(2)}, None, META)
        checkpoints.wait()
        checkpoints.good = 1
    assert manager.steps(checkpoints.directory) == [1, 3]


def test_rolling_back_leaves_the_last_good_checkpoint_as_the_newest(tmp_path: Path) -> None:
    state = {"params": np.zeros(2)}
    checkpoints = Checkpointer(tmp_path / "saved", keep=9)
    for step, updates in ((10, 0), (20, 4), (30, 9)):
        checkpoints.save(step, state, None, META | {"learner": learner(updates)})
    checkpoints.wait()
    directory = checkpoints.directory
    assert [rollback.good(directory, updates) for updates in (-1, 0, 8, 9)] == [None, 10, 20, 30]
    assert [rollback.good(directory, 8, tried) for tried in (10, 20, 30)] == [20, 10, 20]
    assert rollback.good(directory, 0, tried=10) == 10
    (directory / "20" / storage.DOCUMENT).write_text("{")
    assert rollback.good(directory, 8) == 10
    assert rollback.count(directory) == 0
    with pytest.raises(rollback.Exhausted, match="rolled back 3 times, and run.max_rollbacks=1"):
        rollback.roll_back(checkpoints, 10, 4, 1)
    rollback.roll_back(checkpoints, 10, 2, 3, skipped=5)
    assert manager.steps(directory) == [10]
    assert rollback.count(directory) == 2
    (directory / "11").mkdir()  # damaged
    assert rollback.count(directory) == 2
    changes = {"learner": learner(0), "skipped": 5, "rollbacks": 2}
    assert saved_meta(directory, 10) == META | changes


def test_hosts_roll_back_to_what_all_of_them_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, steps in enumerate([(10, 20, 30), (10, 30)]):
        checkpoints = Checkpointer(tmp_path / str(number), keep=9)
        for step in steps:
            checkpoints.save(step, {"x": np.zeros(1)}, None, META | {"learner": learner(step)})
        checkpoints.wait()

    def good(number: int) -> list[int | None]:
        return [rollback.good(tmp_path / str(number), updates) for updates in (5, 20, 30)]

    assert together(monkeypatch, 2, good) == [[None, 10, 30]] * 2


def learner(updates: int) -> dict[str, int]:
    return {"updates": updates, "owed": 0}


def saved_meta(directory: Path, step: int) -> dict[str, Any]:
    return storage.read(directory / str(step)).meta


def test_each_time_has_keys_of_its_own(tmp_path: Path) -> None:
    config = tiny_run.config(tmp_path / "run", "seed=3")
    assert rollback.rekeyed(config, 0) == config
    found = [rollback.rekeyed(config, times).seed for times in range(4)]
    assert len(set(found)) == 4
    assert found == [rollback.rekeyed(config, times).seed for times in range(4)]
