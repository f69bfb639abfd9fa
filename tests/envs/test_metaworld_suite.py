"""Meta-World: the contract of every environment, and goals that its seeds draw."""

import numpy as np
import pytest

from dreamer.config.env import MetaworldEnv
from dreamer.envs import registry
from dreamer.envs.check import check
from dreamer.errors import UserError
from tests.envs import suites
from tests.envs.probe_envs import played

metaworld_suite = suites.module("metaworld")


def test_keeps_the_contract() -> None:
    env = registry.make(MetaworldEnv(time_limit=6), 2, 0)
    assert check(env, 9).truncated == 2


def test_every_episode_draws_one_of_the_same_50_goals() -> None:
    env, goals = registry.make(MetaworldEnv(time_limit=1), 2, 0), set()
    other = registry.make(MetaworldEnv(time_limit=1), 2, 1)
    env.reset(), other.reset()
    known = {task.data for task in played(env)[0].get_wrapper_attr("tasks")}
    assert known == {task.data for task in played(other)[1].get_wrapper_attr("tasks")}
    assert len(known) == 50
    for _ in range(8):
        goals |= {tuple(goal) for goal in env.reset().observation["observation"][:, -3:]}
    assert len(goals) > 8


def test_its_500_steps_are_truncated() -> None:
    env = registry.make(MetaworldEnv(), 1, 0)
    env.reset()
    action = {"action": np.zeros((1, 4), np.float32)}
    found = [env.step(action) for _ in range(500)]
    assert [step.step_type[0] for step in found].index(2) == 499
    assert found[-1].discount == 1


def test_pixels_show_the_table() -> None:
    suites.drawn()
    env = registry.make(MetaworldEnv(pixels=True, image_size=(16, 16)), 1, 0, render=True)
    found = env.reset()
    assert env.observation_spec()["image"].shape == (16, 16, 3)
    assert np.ptp(found.observation["image"]) > 50
    assert env.render()[0].shape == (256, 256, 3)
    env.close()


def test_an_unknown_task_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"did you mean reach-v3\?"):
        registry.make(MetaworldEnv(task="reach-v2"), 1, 0)
