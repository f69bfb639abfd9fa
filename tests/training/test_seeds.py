"""Runs computed together are the runs that they would be alone."""

import re
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from dreamer.checkpoint.manager import Checkpointer, newest
from dreamer.errors import UserError
from dreamer.logs.metrics import Reading
from dreamer.training import train as training
from dreamer.training.device_loop import DeviceLoop
from dreamer.training.hooks import rollback
from dreamer.training.trainer import Trainer
from tests import tiny_run
from tests.training.test_device_loop import config

EVERY = ("checkpoint.every_steps=20", "checkpoint.keep=9", "eval.every=50", "eval.episodes=2")


def final(folder: Path, seed: int) -> dict[str, Any]:
    """Everything from which a run of that seed alone would continue."""
    with Trainer(config("run.steps=92", f"seed={seed}", folder=folder)) as trainer:
        assert trainer.step == 92
        loop = trainer.loop
        arrays, counters = loop.get_arrays()[0], loop.get_counters()
        leaves = jax.tree.leaves(jax.device_get(loop.learner.params))
        return {
            "params": np.concatenate([np.ravel(leaf) for leaf in leaves]),
            "rings": arrays["replay"]["rings"],
            "counters": counters,
            "env": arrays["env"],
        }


@pytest.fixture(scope="module")
def runs(tmp_path_factory: Any) -> tuple[Path, Path]:
    """Folder names, without their seeds, of runs alone and of the same together, each of 3 updates
    of the windows in the queue."""
    alone, together = (tmp_path_factory.mktemp(name) / "run" for name in ("alone", "together"))
    for seed in (3, 4):
        folder = Path(f"{alone}-seed{seed}")
        with Trainer(config("run.steps=92", f"seed={seed}", *EVERY, folder=folder)) as trainer:
            trainer.run()
    training.train(config("run.steps=92", "seed=3", "run.seeds=2", *EVERY, folder=together))
    return alone, together


def assert_equal(ours: Path, theirs: Path, seed: int) -> None:
    """Compiled apart, the same sums are rounded differently, and the optimiser moves a weight as
    far for a gradient that is only rounding as for any other."""
    found, expected = (final(Path(f"{path}-seed{seed}"), seed) for path in (ours, theirs))
    assert found["counters"] == expected["counters"]
    tiny_run.assert_same(found["env"], expected["env"])
    for part in ("observation", "action", "reward", "is_last"):
        tiny_run.assert_same(found["rings"][part], expected["rings"][part])
    start = jax.tree.leaves(DeviceLoop(config(f"seed={seed}"), jax.devices()[:1]).params)
    learned = expected["params"] - np.concatenate([np.ravel(leaf) for leaf in start])
    error = np.abs(found["params"] - expected["params"])
    assert np.mean(error > 0.05 * np.abs(learned).mean()) < 0.005


@pytest.mark.parametrize("seed", [3, 4])
def test_each_is_the_run_that_it_would_be_alone(seed: int, runs: tuple[Path, Path]) -> None:
    alone, together = runs
    assert_equal(together, alone, seed)
    ours, theirs = (tiny_run.lines(Path(f"{path}-seed{seed}")) for path in (together, alone))
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one == pytest.approx(other, rel=2e-2, abs=1e-3)
    kept = [Checkpointer(Path(f"{path}-seed{seed}/checkpoints"), 9) for path in runs]
    assert kept[0].latest_step() == kept[1].latest_step() == 92


def test_seeds_differ(runs: tuple[Path, Path]) -> None:
    first, second = (final(Path(f"{runs[1]}-seed{seed}"), seed) for seed in (3, 4))
    assert np.linalg.norm(first["params"] - second["params"]) > 1
    keys = [one["env"]["state"] for one in (first, second)]
    assert any((keys[0][name] != keys[1][name]).any() for name in keys[0])


@pytest.mark.slow
def test_one_that_stopped_behind_the_other_catches_up(
    runs: tuple[Path, Path], tmp_path: Path
) -> None:
    alone, together = runs
    for seed, last in ((3, 52), (4, 72)):
        source, target = (Path(f"{path}-seed{seed}") for path in (together, tmp_path / "run"))
        shutil.copytree(source, target)
        for saved in (target / "checkpoints").iterdir():
            if int(saved.name) > last:
                shutil.rmtree(saved)
    steps = sorted(int(p.name) for p in Path(f"{together}-seed3/checkpoints").iterdir())
    assert {52, 72, 92} <= set(steps)
    training.train(config("run.steps=92", "seed=3", "run.seeds=2", folder=tmp_path / "run"))
    assert_equal(tmp_path / "run", alone, 3)
    assert_equal(tmp_path / "run", alone, 4)


@pytest.mark.slow
def test_only_the_one_that_diverged_rolls_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    read, noted = DeviceLoop.read_metrics, []

    def diverged(loop: DeviceLoop, wait: bool = False) -> Reading:
        reading = read(loop, wait)
        if loop._config.seed == 4 and loop.step >= 72 and len(noted) < 2:
            noted.append(loop.step)
            return Reading({}, 2, 2, ("loss/total",))
        return reading

    monkeypatch.setattr(DeviceLoop, "read_metrics", diverged)
    never = ("run.max_skipped=1", "run.max_rollbacks=1", "log.progress=plain")
    training.train(config("run.seeds=2", "seed=3", *EVERY, *never, folder=tmp_path / "run"))
    assert re.search(r"seed 4: .* back to step \d+ with other random keys", capsys.readouterr().err)
    counted = {}
    for seed in (3, 4):
        checkpoints = tmp_path / f"run-seed{seed}" / "checkpoints"
        counted[seed] = rollback.count(checkpoints)
        assert newest(checkpoints) == 132
    assert counted == {3: 0, 4: 1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("run.loop=host",), "run.seeds=2 needs environments written in JAX"),
        (("checkpoint.dir=x",), "checkpoint.dir=x is one folder for run.seeds=2 runs"),
        (("seed=4294967295",), "run.seeds=2 from seed=4294967295 on leaves the range"),
        (("replay.capacity=1e9",), "the largest capacity that fits"),
    ],
)
def test_runs_that_cannot_be_together_are_refused(
    changes: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        training.train(config("run.seeds=2", *changes, folder=tmp_path / "run"))
    assert not list(tmp_path.iterdir())
