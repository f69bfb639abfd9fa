"""ViZDoom: the contract of every environment, timeouts, and the last screen."""

from typing import Any

import gymnasium
import numpy as np
import pytest

from dreamer.config.env import VizdoomEnv
from dreamer.envs import registry
from dreamer.envs.base import LAST
from dreamer.envs.check import check, check_all
from dreamer.errors import UserError
from tests.envs import suites

vizdoom_suite = suites.module("vizdoom")


def test_keeps_the_contract() -> None:
    def make(time_limit: int = 12):
        config = VizdoomEnv(image_size=(16, 16), time_limit=time_limit, repeat=2)
        return registry.make(config, 2, 0)

    assert check_all(make, 30).truncated == 4


def test_a_timeout_is_a_truncation_with_an_observation() -> None:
    """Basic lasts 300 frames, unless the monster is shot; the fourth button is none."""
    env = registry.make(VizdoomEnv(task="Basic", image_size=(16, 16), repeat=20), 1, 0)
    found = [env.reset()]
    while found[-1].step_type[0] != LAST:
        found.append(env.step({"action": np.zeros(1, np.int32)}))
    assert (len(found), found[-1].discount[0]) == (16, 1)
    assert np.ptp(found[-1].observation["screen"]) > 50, "there is a screen at the end"


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        ((True, False), (True, False)),
        ((True, True), (False, True)),
        ((False, False), (False, False)),
    ],
)
def test_the_last_screen_stays(ends: tuple, expected: tuple) -> None:
    class Game(gymnasium.Env):
        def reset(self, **options: Any) -> Any:
            return {"screen": np.ones(3)}, {}

        def step(self, action: Any) -> Any:
            return {"screen": np.full(3, 2.0)}, 1.0, *ends, {}

    env = vizdoom_suite.LastScreen(Game())
    env.reset()
    seen, _, *found, _ = env.step(0)
    assert tuple(found) == expected
    assert seen["screen"][0] == (1 if any(ends) else 2)


def test_scenarios_with_sound_text_or_boundless_turns_are_left_out() -> None:
    assert {"TakeCover", "Basic", "MyWayHome", "HealthGathering"} <= set(vizdoom_suite.TASKS)
    with pytest.raises(UserError, match="task=Deathmatch is no task of vizdoom"):
        registry.make(VizdoomEnv(task="Deathmatch"), 1, 0)


@pytest.mark.parametrize("task", ["MyWayHome", "Basic-MultiBinary"])
def test_other_scenarios_keep_the_contract(task: str) -> None:
    check(registry.make(VizdoomEnv(task=task, image_size=(16, 16)), 1, 0), 10)
