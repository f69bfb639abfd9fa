"""MuJoCo Playground: the contract of every environment, and the same steps as it makes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer.config.env import PlaygroundEnv
from dreamer.envs import registry
from dreamer.envs.check import check
from dreamer.envs.jax import physics, simulators
from dreamer.errors import UserError
from tests.envs import suites

playground_suite = suites.module("playground")

FAST = "CartpoleBalance"  # to compile


def test_keeps_the_contract() -> None:
    check(registry.make(PlaygroundEnv(task=FAST, time_limit=12), 2, 0), steps=30)


def test_steps_are_those_of_the_package_and_out_of_steps_is_a_truncation() -> None:
    ours = registry.make_jax(PlaygroundEnv(task=FAST))
    theirs = playground_suite.registry.load(FAST, config_overrides={"impl": "jax"})
    assert ours.limit == 1000
    state, found = jax.jit(ours.reset)(jax.random.key_data(jax.random.key(0)))
    step, ours_step = jax.jit(theirs.step), jax.jit(ours.step)
    expected: Any = state.inner
    for number in range(10):
        given = jnp.full(1, np.sin(number))
        state, found = ours_step(state, {"action": given})
        with simulators.traced():
            expected = step(expected, given)
        np.testing.assert_allclose(found.observation["vector"], expected.obs, rtol=1e-5, atol=1e-6)
        assert found.reward == pytest.approx(float(expected.reward))
        assert (found.step_type, found.discount) == (1, 1)
    _, found = ours_step(state.replace(time=jnp.int32(999)), {"action": given})
    assert (found.step_type, found.discount) == (2, 1)


def test_diverged_physics_ends_the_episode_without_nan() -> None:
    env = registry.make_jax(PlaygroundEnv(task=FAST))
    state, before = jax.jit(env.reset)(jax.random.key_data(jax.random.key(0)))
    data = state.inner.data.replace(qpos=state.inner.data.qpos * jnp.nan)
    state = state.replace(inner=state.inner.replace(data=data))
    _, found = jax.jit(env.step)(state, {"action": jnp.zeros(1)})
    assert (found.step_type, found.discount, found.reward) == (2, 0, 0)
    np.testing.assert_array_equal(found.observation["vector"], before.observation["vector"])


@pytest.mark.parametrize("task", playground_suite.registry.dm_control_suite.ALL_ENVS)
def test_motors_of_the_control_suite_take_actions_from_minus_one_to_one(task: str) -> None:
    env = playground_suite.registry.load(task, config_overrides={"impl": "jax"})
    low, high = env.mj_model.actuator_ctrlrange.T
    assert (low == -1).all()
    assert (high == 1).all()


def test_privileged_observations_are_left_out() -> None:
    seen = physics.public({"state": jnp.ones(2), "privileged_state": jnp.ones(3)})
    assert list(seen) == ["state"]


def test_an_unknown_task_names_the_nearest() -> None:
    with pytest.raises(
        UserError, match=r"task=walker_walk is no task of playground.*mean WalkerWalk"
    ):
        registry.make(PlaygroundEnv(task="walker_walk"), 1, 0)
