"""The DeepMind Control Suite: the contract of every environment, and the suite's own steps."""

import numpy as np
import pytest

from dreamer.config.env import DmcEnv
from dreamer.envs import headless, registry
from dreamer.envs.base import LAST, episode_seed
from dreamer.envs.check import check, check_all
from dreamer.errors import UserError
from tests.envs import suites
from tests.envs.probe_envs import played

dmc_suite = suites.module("dmc")
control = dmc_suite.suite


def test_keeps_the_contract() -> None:
    def make(time_limit: int = 20):
        return registry.make(DmcEnv(time_limit=time_limit, repeat=2), 2, 0)

    endings = check_all(make, steps=45)
    assert (endings.terminated, endings.truncated) == (0, 4)


def test_steps_are_those_of_the_suite_from_the_same_seed() -> None:
    env = registry.make(DmcEnv(task="cup_catch"), 1, 3)
    first, action = env.reset(), {"action": np.array([[0.3, -1]], np.float32)}
    options = {"random": episode_seed(3, 0, 0)}
    theirs = control.load("ball_in_cup", "catch", task_kwargs=options)
    expected = theirs.reset()
    for found in (first, *(env.step(action) for _ in range(20))):
        for key, value in expected.observation.items():
            np.testing.assert_array_equal(found.observation[key][0], value.astype(np.float32))
        assert found.reward[0] == np.float32(expected.reward or 0)
        expected = theirs.step(action["action"][0].astype(np.float64))


def test_a_whole_episode_of_1000_steps_is_truncated() -> None:
    env = registry.make(DmcEnv(task="pendulum_swingup"), 1, 0)
    env.reset()
    action = {"action": np.zeros((1, 1), np.float32)}
    found = [env.step(action) for _ in range(1000)]
    assert [step.step_type[0] == LAST for step in found].index(True) == 999
    assert found[-1].discount == 1


def test_images_have_the_published_size_and_camera() -> None:
    suites.drawn()
    env = registry.make(DmcEnv(task="quadruped_walk", view="vision"), 1, 0, render=True)
    assert env.observation_spec()["image"].shape == (64, 64, 3)
    seen = env.reset().observation["image"][0]
    physics = played(env)[0].unwrapped._env.physics
    np.testing.assert_array_equal(seen, physics.render(64, 64, camera_id=2))
    assert (seen != physics.render(64, 64, camera_id=0)).any()
    np.testing.assert_array_equal(env.render()[0], seen)
    env.close()


def test_images_keep_the_contract_too() -> None:
    suites.drawn()
    env = registry.make(DmcEnv(view="vision", image_size=(16, 24), time_limit=4), 2, 0)
    check(env, 6)
    env.close()


@pytest.mark.parametrize("task", dmc_suite.TASKS)
def test_every_task_is_made_and_has_finite_specs(task: str) -> None:
    env = registry.make(DmcEnv(task=task), 1, 0)
    found = env.reset()
    assert found.observation.keys() == env.observation_spec().keys()
    env.close()


def test_names_are_the_published_ones() -> None:
    assert {"walker_walk", "cup_catch", "humanoid_CMU_run"} <= set(dmc_suite.TASKS)
    with pytest.raises(UserError, match="task=ball_in_cup_catch is no task of dmc"):
        registry.make(DmcEnv(task="ball_in_cup_catch"), 1, 0)


def test_images_where_nothing_draws_are_refused_and_vectors_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(headless.VARIABLE, headless.NONE)
    with pytest.raises(UserError, match="env.view=vision must be drawn, and neither EGL nor"):
        registry.make(DmcEnv(view="vision"), 1, 0)
    env = registry.make(DmcEnv(), 1, 0, render=True)
    env.reset()
    assert env.render() is None
    env.close()


@pytest.mark.parametrize("view", ["proprio", "vision"])
def test_a_camera_that_does_not_exist_is_refused(view: str) -> None:
    if view == "vision":
        suites.drawn()
    with pytest.raises(UserError, match=r"^env.camera=7: walker_walk has the cameras 0 to 1;"):
        registry.make(DmcEnv(view=view, camera=7), 1, 0)
