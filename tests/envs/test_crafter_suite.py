"""Crafter: the contract of every environment, death and timeouts, and exact repetition."""

from typing import Any

import numpy as np
import pytest

from dreamer.config.env import CrafterEnv
from dreamer.envs import registry
from dreamer.envs.base import LAST, MID, random_action
from dreamer.envs.check import check
from dreamer.errors import UserError
from tests.envs import suites
from tests.envs.probe_envs import played

crafter_suite = suites.module("crafter")

NOOP = {"action": np.zeros(1, np.int32)}


def make(**options: Any) -> Any:
    return registry.make(CrafterEnv(image_size=(18, 18), **options), 1, 0)


@pytest.fixture(scope="module")
def env() -> Any:
    """One for all tests, each of which resets it: a new world takes half a second."""
    return make()


def world(env: Any) -> Any:
    return played(env)[0].unwrapped._env


def test_keeps_the_contract() -> None:
    env = registry.make(CrafterEnv(image_size=(18, 27), time_limit=4), 1, 0)
    assert check(env, 7).truncated == 1
    assert env.observation_spec()["image"].shape == (18, 27, 3)
    assert env.action_spec()["action"].num_values == 17


@pytest.mark.parametrize(("health", "length", "discount"), [(0, 10_000, 0), (9, 1, 1), (0, 1, 0)])
def test_death_is_terminal_and_a_timeout_is_not(
    env: Any, health: int, length: int, discount: int
) -> None:
    env.reset()
    world(env)._length = length
    world(env)._player.health = health
    found = env.step(NOOP)
    world(env)._length = 10_000
    assert (found.step_type[0], found.discount[0]) == (LAST, discount)


def test_reward_is_for_achievements_and_health_unless_there_is_none(env: Any) -> None:
    gained = {}
    for task, made in (("reward", env), ("noreward", make(task="noreward"))):
        made.reset()
        world(made)._player.achievements["collect_wood"] = 1
        found = made.step(NOOP)
        gained[task] = found.reward[0]
        assert found.step_type[0] == MID
    assert gained == {"reward": 1, "noreward": 0}


def test_creatures_vanish_in_an_order_that_does_not_depend_on_memory(env: Any) -> None:
    """One is drawn from those in a part of the world, in the order in which they came."""
    env.reset()
    inner = world(env)._world
    numbers = {id(thing): number for number, thing in enumerate(inner._objects)}
    parts = [[numbers[id(thing)] for thing in things] for things in inner.chunks.values()]
    assert max(map(len, parts)) > 2
    assert all(part == sorted(part) for part in parts)


def test_watching_does_not_change_the_world() -> None:
    def path(watch: bool) -> list:
        env, rng = make(), np.random.default_rng(0)
        env.reset()
        world(env)._step = 250  # night, when pictures are drawn with noise
        found = []
        for _ in range(10):
            found.append(env.step(random_action(env.action_spec(), 1, rng)).observation["image"])
            if watch:
                np.testing.assert_array_equal(env._pool.call({0: ("render",)})[0], found[-1][0])
        return found

    np.testing.assert_array_equal(path(True), path(False))


def test_images_too_small_to_draw_are_refused() -> None:
    with pytest.raises(UserError, match=r"env.image_size=\[64, 16\] is too small for Crafter"):
        registry.make(CrafterEnv(image_size=(64, 16)), 1, 0)
