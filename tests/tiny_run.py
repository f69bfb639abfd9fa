"""Whole runs of tiny sizes, all alike so that they share compiled programs."""

import json
import shutil
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dreamer.cli import compose
from dreamer.config import Config
from dreamer.training.trainer import Trainer
from tests import probe_envs

# An update of 4 x 4 = 16 replayed steps every second turn of 2 environments; rings of 30 steps.
OPTIONS = [
    probe_envs.task("Drawn"),
    *("env.num_envs=2", "run.steps=100", "devices=1", "platform=cpu"),
    *("agent.compute_dtype=float32", "agent.units=16", "agent.depth=4"),
    *("agent.rssm.deter=16", "agent.rssm.hidden=8", "agent.rssm.stoch=2", "agent.rssm.classes=4"),
    *("agent.encoder.mults=[1,1]", "agent.decoder.mults=[1,1]", "agent.decoder.blocks=4"),
    *("agent.encoder.layers=1", "agent.decoder.layers=1", "agent.rssm.prior_layers=1"),
    *("agent.actor.layers=1", "agent.critic.layers=1", "agent.returns.imagination=3"),
    *("replay.batch_size=4", "replay.batch_length=4", "replay.train_ratio=4", "replay.capacity=60"),
    *(
        "agent.optimizer.warmup=0",
        "agent.optimizer.anneal=0",
        "checkpoint.every_seconds=1e6",
        "env.image_size=[16,16]",
    ),
    *("log.every_seconds=0", "log.tensorboard=false", "log.progress=none", "eval.every=0"),
]


def argv(folder: Path, *changes: str) -> list[str]:
    """`OPTIONS` with some of them changed, as a command line for a run folder."""
    given = dict(option.split("=", 1) for option in (*OPTIONS, *changes))
    return [f"{key}={value}" for key, value in given.items()] + [f"run.dir={folder}"]


def config(folder: Path, *changes: str) -> Config:
    return compose.compose(argv(folder, *changes))


def train(folder: Path, *changes: str) -> dict[str, Any]:
    """Runs to the end; returns all state that influences its continuation."""
    with Trainer(config(folder, *changes)) as trainer:
        trainer.run()
        loop = trainer.loop
        return {
            "train": jax.device_get(loop.learner.state),
            "arrays": loop.get_arrays()[0],
            "learner": loop.learner.get_counters(),
            "env": loop.env.get_state(),
            "time_step": loop.driver.time_step,
            "ratio": loop.ratio.get_state(),
            "episodes": loop.driver.episodes.get_state(),
            "best": trainer.evaluation.best,
        }


def assert_same(actual: Any, expected: Any) -> None:
    """Every leaf bit for bit, or the path of the first that differs."""
    left, right = (jax.tree_util.tree_leaves_with_path(tree) for tree in (actual, expected))
    assert [path for path, _ in left] == [path for path, _ in right]
    for (path, a), (_, b) in zip(left, right, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(path), strict=True)


def lines(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without the columns that no run repeats."""
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: x for key, x in line.items() if key != "time" and not key.startswith("perf/")}
        for line in found
    ]


def losses(found: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines that tell of updates."""
    return [line for line in found if "loss/total" in line]


def finished(tmp_path_factory: Any) -> tuple[Path, dict[str, Any]]:
    """Folder and final state of a run that is complete and was saved only then: trained once for
    all tests, which leave it as it is."""
    return _finished(tmp_path_factory.getbasetemp() / "finished")


@cache
def _finished(folder: Path) -> tuple[Path, dict[str, Any]]:
    return folder, train(folder)


def copy(source: Path, target: Path, step: int | None = None) -> Path:
    """A copy of a run folder, as it was when killed right after the save of `step`."""
    shutil.copytree(source, target)
    for saved in (target / "checkpoints").iterdir():
        if step is not None and int(saved.name) != step:
            shutil.rmtree(saved)
    return target
