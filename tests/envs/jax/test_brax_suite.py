"""Brax: the contract of every environment, and the same steps as Brax makes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer.config.env import BraxEnv
from dreamer.envs import registry
from dreamer.envs.check import check
from dreamer.envs.jax import simulators
from dreamer.errors import UserError
from tests.envs import suites

brax_suite = suites.module("brax")
envs = brax_suite.envs

FAST = {"task": "inverted_pendulum", "physics": "spring"}  # to compile


def test_keeps_the_contract() -> None:
    check(registry.make(BraxEnv(**FAST, time_limit=12), 2, 0), steps=40)


@pytest.mark.parametrize("action", [0.3, 4.0])
def test_steps_are_those_of_brax_and_a_fall_is_terminal(action: float) -> None:
    ours = registry.make_jax(BraxEnv(**FAST))
    with simulators.traced():
        theirs = envs.get_environment("inverted_pendulum", backend="spring")
    state, found = jax.jit(ours.reset)(jax.random.key_data(jax.random.key(0)))
    step, ours_step = jax.jit(theirs.step), jax.jit(ours.step)
    expected: Any = state.inner
    np.testing.assert_array_equal(found.observation["vector"], expected.obs)
    given = jnp.full(1, action)
    while found.step_type != 2:
        state, found = ours_step(state, {"action": given})
        with simulators.traced():
            expected = step(expected, jnp.minimum(given, 1))
        np.testing.assert_allclose(found.observation["vector"], expected.obs, rtol=1e-5, atol=1e-6)
        assert found.reward == expected.reward
    assert expected.done == 1
    assert found.discount == 0
    assert 1 < state.time < 100


def test_out_of_steps_is_a_truncation() -> None:
    env = registry.make_jax(BraxEnv(**FAST))
    assert env.limit == 1000
    state, _ = jax.jit(env.reset)(jax.random.key_data(jax.random.key(0)))
    _, found = jax.jit(env.step)(state.replace(time=jnp.int32(999)), {"action": jnp.zeros(1)})
    assert (found.step_type, found.discount) == (2, 1)


def test_diverged_physics_ends_the_episode_without_nan() -> None:
    env = registry.make_jax(BraxEnv(**FAST))
    state, before = jax.jit(env.reset)(jax.random.key_data(jax.random.key(0)))
    broken = jax.tree.map(
        lambda x: x * jnp.nan if jnp.issubdtype(x.dtype, jnp.floating) else x,
        state.inner.pipeline_state,
    )
    state = state.replace(inner=state.inner.replace(pipeline_state=broken))
    _, found = jax.jit(env.step)(state, {"action": jnp.zeros(1)})
    assert (found.step_type, found.discount, found.reward) == (2, 0, 0)
    np.testing.assert_array_equal(found.observation["vector"], before.observation["vector"])


@pytest.mark.parametrize("task", brax_suite.TASKS)
def test_every_task_takes_actions_from_minus_one_to_one(task: str) -> None:
    """Those whose motors take another range scale it themselves."""
    env = registry.make_jax(BraxEnv(task=task)).simulator.env
    low, high = np.asarray(env.sys.actuator.ctrl_range).T
    scaled = {"humanoid", "humanoidstandup", "inverted_pendulum", "pusher"}
    assert task in scaled or ((low == -1).all() and (high == 1).all())


def test_physics_that_a_robot_lacks_is_refused() -> None:
    with pytest.raises(UserError, match="env.task=swimmer cannot be made: .*Unsupported"):
        registry.make(BraxEnv(task="swimmer", physics="spring"), 1, 0)
