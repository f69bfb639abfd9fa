"""Craftax: the contract of every environment, and the same steps as Craftax makes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer.config.env import CraftaxEnv
from dreamer.envs import registry
from dreamer.envs.check import check
from dreamer.envs.jax import simulators
from dreamer.errors import UserError
from tests.envs import suites

craftax_suite = suites.module("craftax")

LONG = pytest.mark.slow  # to compile
TASKS = [pytest.param(t, marks=[LONG] * ("Classic" not in t)) for t in craftax_suite.TASKS]


@pytest.mark.parametrize("task", TASKS)
def test_keeps_the_contract(task: str) -> None:
    check(registry.make(CraftaxEnv(task=task, time_limit=12), 2, 0), steps=30)


@pytest.mark.parametrize("task", TASKS[:1] + TASKS[2:3])
def test_steps_are_those_of_craftax_until_it_runs_out_of_steps(task: str) -> None:
    ours, theirs = registry.make_jax(CraftaxEnv(task=task)), None
    theirs = craftax_suite.make_craftax_env_from_name(task, auto_reset=False)
    params = theirs.default_params
    assert ours.limit == params.max_timesteps

    @jax.jit
    def both(state: Any, given: jax.Array) -> tuple:
        key = jax.random.key_data(ours._key(state.key, state.episode, state.time + 1))
        with simulators.traced():
            expected = theirs.step_env(key, state.inner, given, params)
        return (expected[0], *expected[2:4]), *ours.step(state, {"action": given})

    def compare(state: Any, given: int) -> tuple:
        (seen, reward, done), state, found = both(state, jnp.int32(given))
        np.testing.assert_array_equal(found.observation["symbols"], seen)
        assert (found.reward, found.step_type == 2) == (reward, done)
        return state, found

    start, _ = jax.jit(ours.reset)(jax.random.key_data(jax.random.key(3)))
    state, rng = start, np.random.default_rng(0)
    for _ in range(40):
        state, found = compare(state, rng.integers(theirs.num_actions))
        assert found.step_type == 1
    assert state.inner.timestep == 40
    late = state.replace(
        time=jnp.int32(ours.limit - 1), inner=state.inner.replace(timestep=ours.limit - 1)
    )
    assert compare(late, 0)[1].discount == 1, "out of steps is no death"
    dying = late.inner.replace(player_health=jnp.zeros_like(late.inner.player_health))
    assert compare(late.replace(inner=dying), 0)[1].discount == 0
    assert compare(state.replace(inner=dying), 0)[1].discount == 0


def test_pixels_are_those_of_craftax() -> None:
    config = CraftaxEnv(task="Craftax-Classic-Pixels-v1", image_size=(63, 63))
    env = registry.make_jax(config)
    state, found = jax.jit(env.reset)(jax.random.key_data(jax.random.key(0)))
    expected = 255 * env.simulator._env.get_obs(state.inner)
    np.testing.assert_array_equal(found.observation["image"], np.round(expected))
    assert found.observation["image"].max() > 100


def test_an_unknown_task_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"task=Craftax-v1 is no task of craftax; did you mean Cr"):
        registry.make(CraftaxEnv(task="Craftax-v1"), 1, 0)
