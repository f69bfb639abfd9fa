"""A tiny training on every suite, in the loop that is right for it."""

from pathlib import Path

import pytest

from dreamer.cli import compose, groups
from dreamer.envs import registry
from dreamer.training.device_loop import DeviceLoop
from dreamer.training.host_loop import HostLoop
from dreamer.training.trainer import Trainer
from tests import tiny_run
from tests.envs import suites

pytestmark = pytest.mark.slow  # each compiles an agent of its own


@pytest.mark.parametrize("name", groups.choices("env"))
def test_updates_are_made_from_what_a_suite_gives(name: str, tmp_path: Path) -> None:
    given = suites.group(name)
    own = (f"env.task={given.task}", "run.steps=60", "agent.encoder.mults=[1,1]")
    argv = [a for a in tiny_run.argv(tmp_path, *own) if not a.startswith("env.entry")]
    config = compose.compose([f"env={name}", *argv])
    with Trainer(config) as trainer:
        trainer.run()
        written = registry.SUITES[config.env.suite].jax
        assert isinstance(trainer.loop, DeviceLoop if written else HostLoop)
    updates = tiny_run.losses(tiny_run.lines(tmp_path))
    assert updates
    assert all(abs(line["loss/total"]) < 1e6 for line in updates)
