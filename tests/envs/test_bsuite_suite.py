"""bsuite: the contract of every environment, of one experiment of every kind."""

from typing import Any

import numpy as np
import pytest

from dreamer.config.env import BsuiteEnv
from dreamer.envs import registry
from dreamer.envs.check import check, check_all
from dreamer.errors import UserError
from tests.envs import suites

bsuite_suite = suites.module("bsuite")
KINDS = sorted({task.split("/")[0] for task in bsuite_suite.TASKS if "mnist" not in task})


@pytest.mark.parametrize("kind", KINDS)
def test_keeps_the_contract(kind: str) -> None:
    check(registry.make(BsuiteEnv(task=f"{kind}/0"), 2, 0), 60)


def test_environments_of_one_seed_repeat() -> None:
    def make(time_limit: int = 0):
        return registry.make(BsuiteEnv(task="cartpole_noise/1", time_limit=time_limit), 2, 0)

    assert check_all(make, 20)


def test_the_ball_is_caught_or_missed_after_nine_steps() -> None:
    env = registry.make(BsuiteEnv(), 1, 0)
    env.reset()
    found = [env.step({"action": np.ones(1, np.int32)}) for _ in range(9)]
    assert [step.step_type[0] for step in found] == [1] * 8 + [2]
    assert (found[-1].discount[0], abs(found[-1].reward[0])) == (0, 1)


def test_data_that_cannot_be_fetched_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    from bsuite.utils import datasets

    def fail(*arguments: Any) -> None:
        raise OSError("no net")

    monkeypatch.setattr(datasets, "load_mnist", fail)
    with pytest.raises(UserError, match="task=mnist/0: its data cannot be downloaded: no net"):
        registry.make(BsuiteEnv(task="mnist/0"), 1, 0)


def test_an_unknown_experiment_is_refused() -> None:
    with pytest.raises(UserError, match=r"did you mean catch/"):
        registry.make(BsuiteEnv(task="catch"), 1, 0)
