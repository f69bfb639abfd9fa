"""Numbers that compiled code cannot hold: it works with them, or they are refused at the start."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dreamer
from dreamer.checkpoint import manager, storage
from dreamer.cli import compose, train
from dreamer.errors import UserError
from tests import tiny_run
from tests.training.test_device_loop import config as device_config


def forge(folder: Path, step: int) -> None:
    """As if the run had come to this step by now, and to almost as many updates."""
    directory = folder / "checkpoints"
    saved = directory / str(manager.newest(directory))
    meta = storage.read(saved).meta
    meta["ratio"]["step"] = meta["step"] = step
    meta["learner"]["updates"] = step - 2
    storage.amend(saved, meta, None)
    saved.rename(directory / str(step))


@pytest.mark.slow
def test_the_host_loop_passes_four_billion_steps(tmp_path: Path) -> None:
    assert train.main(tiny_run.argv(tmp_path, "run.steps=28")) == 0
    last = 2**32 + 4
    forge(tmp_path, 2**32 - 4)
    assert train.main(tiny_run.argv(tmp_path, "log.video_every=3e9", f"run.steps={last}")) == 0
    assert dreamer.load(tmp_path).step == last
    updates = [line["updates"] for line in tiny_run.losses(tiny_run.lines(tmp_path))]
    assert updates[-1] == 2**32 - 4


@pytest.mark.slow
@pytest.mark.parametrize("seeds", ["run.seeds=1", "run.seeds=2"])
@pytest.mark.parametrize("boundary", [2**31, 2**32])
def test_the_device_loop_passes_what_its_words_hold(
    boundary: int, seeds: str, tmp_path: Path
) -> None:
    pytest.importorskip("gymnax")
    folder = tmp_path / "run"
    few = device_config("run.steps=40", seeds, folder=folder)
    dreamer.train(few)
    folders = [folder] if seeds == "run.seeds=1" else sorted(tmp_path.glob("run-seed*"))
    for one in folders:
        forge(one, boundary - 20)
    dreamer.train(device_config(f"run.steps={boundary + 40}", seeds, folder=folder))
    for one in folders:
        assert dreamer.load(one).step == boundary + 40
        assert all(np.isfinite(x["loss/total"]) for x in tiny_run.losses(tiny_run.lines(one)))


@pytest.mark.parametrize(
    "option",
    [
        *("agent.optimizer.anneal=2", "agent.optimizer.warmup=2147483648", "env.time_limit=3e9"),
        *("run.steps=1e19", "replay.capacity=1e19", "env.num_envs=3e9", "eval.every=1e30"),
        *("replay.train_ratio=1e300", "run.updates_per_call=3e9", "run.grace_seconds=1e300"),
        *("agent.rssm.classes=256", "log.video_every=1e19", "seed=4294967296"),
    ],
)
def test_what_can_never_be_counted_is_refused(option: str) -> None:
    key = option.split("=")[0]
    with pytest.raises(
        UserError, match=rf"^{key}=.*: expected (integer|number) >=? \d+, <=? [\d.e+]+$"
    ):
        compose.compose([option])


@pytest.mark.slow
def test_the_largest_numbers_train(tmp_path: Path) -> None:
    class Stop(dreamer.Callback):
        def on_update(self, run: Any) -> None:
            run.request_stop()

    largest = (
        *(
            "run.steps=1e18",
            "eval.every=1e12",
            "log.video_every=3e9",
            "checkpoint.every_steps=1e15",
        ),
        *("seed=4294967295", "agent.optimizer.anneal=1", "env.time_limit=2147483647"),
    )
    assert dreamer.train(tiny_run.argv(tmp_path / "run", *largest), [Stop()]).step == 28


@pytest.mark.parametrize("loop", ["device", "host"])
def test_more_steps_than_replay_on_the_device_counts_are_refused(loop: str, tmp_path: Path) -> None:
    options = tiny_run.argv(tmp_path / "run", "env.num_envs=1", "run.steps=3e9")
    if loop == "device":
        pytest.importorskip("gymnax")
        given = device_config("env.num_envs=1", "run.steps=3e9", folder=tmp_path / "run")
    else:
        given = compose.compose([*options, "replay.where=device"])
    with pytest.raises(
        UserError, match="run.steps=3000000000 with env.num_envs=1 and .* can count"
    ):
        dreamer.train(given)
    assert list(tmp_path.iterdir()) == []
