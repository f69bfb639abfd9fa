"""NAVIX: the contract of every environment, and the same steps as NAVIX makes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer.config.env import NavixEnv
from dreamer.envs import registry
from dreamer.envs.check import check
from dreamer.envs.jax import simulators
from dreamer.errors import UserError
from tests.envs import suites

navix_suite = suites.module("navix")
navix = navix_suite.navix

VIEWS = ("symbolic", "symbolic_first_person", "rgb", "rgb_first_person")


@pytest.mark.parametrize("view", VIEWS)
def test_keeps_the_contract(view: str) -> None:
    check(registry.make(NavixEnv(view=view, time_limit=12), 2, 0), steps=30)


@pytest.mark.parametrize(
    "task", ["Navix-Empty-5x5-v0", "Navix-Dynamic-Obstacles-5x5-v0", "Navix-LavaGapS5-v0"]
)
def test_steps_are_those_of_navix_and_running_out_of_them_truncates(task: str) -> None:
    ours = registry.make_jax(NavixEnv(task=task, view="symbolic"))
    theirs = navix.make(task, observation_fn=navix.observations.symbolic)
    step, ours_step = jax.jit(theirs.step), jax.jit(ours.step)
    state, _ = jax.jit(ours.reset)(jax.random.key_data(jax.random.key(3)))
    rng, ends = np.random.default_rng(0), set()
    with simulators.traced():
        expected = theirs.reset(jax.random.key_data(ours._key(state.key, jnp.int32(0), 0)))
        for _ in range(400):
            given = rng.integers(len(theirs.action_set))
            state, found = ours_step(state, {"action": jnp.int32(given)})
            if found.step_type == 0:
                break
            expected = step(expected, jnp.int32(given))
            seen = np.stack([found.observation[name] for name in ("object", "colour", "state")], -1)
            bare = np.where(expected.observation == 255, 0, expected.observation)
            np.testing.assert_array_equal(seen, bare)
            assert found.reward == pytest.approx(float(expected.reward))
            assert (found.step_type == 2) == (expected.step_type != 0)
            if found.step_type == 2:
                assert found.discount == (0 if expected.step_type == 2 else 1)
                ends.add(int(expected.step_type))
    assert ends
    assert state.time == 0


@pytest.mark.parametrize("ends", [1, 2])
def test_both_ends_of_an_episode(ends: int) -> None:
    """Turning in place runs out of steps; two walks and a turn between them reach the goal."""
    env = registry.make_jax(NavixEnv(task="Navix-Empty-5x5-v0"))
    state, found = env.reset(jax.random.key_data(jax.random.key(0)))
    step, number = jax.jit(env.step), 0
    forward, right, left = 2, 1, 0
    while found.step_type != 2:
        walk = (forward, forward, right, forward, forward)
        given = left if ends == 1 else walk[number]
        state, found = step(state, {"action": jnp.int32(given)})
        number += 1
    assert found.discount == (1 if ends == 1 else 0)
    assert number == (env.limit if ends == 1 else 5)
    assert (found.reward > 0) == (ends == 2)


@pytest.mark.parametrize("task", ["Navix-DoorKey-8x8-v0", "Navix-MultiRoom-N2-S4-v0"])
def test_the_rendering_cache_can_be_rebuilt(task: str) -> None:
    with simulators.traced():
        state = navix.make(task).reset(jax.random.key_data(jax.random.key(0))).state
        again = navix_suite.RenderingCache.init(state.grid)
    jax.tree.map(np.testing.assert_array_equal, state.cache, again)


@pytest.mark.parametrize("task", navix_suite.TASKS)
def test_every_task_has_the_specs_that_it_says(task: str) -> None:
    env = registry.make_jax(NavixEnv(task=task))
    key = jax.random.key_data(jax.random.key(0))
    state, found = jax.eval_shape(env.reset, key)
    following: Any = jax.eval_shape(env.step, state, {"action": jnp.int32(0)})[0]
    before, after = (
        [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(one)] for one in (state, following)
    )
    assert before == after
    for name, spec in env.simulator.observations.items():
        assert found.observation[name].shape == spec.shape


def test_an_unknown_task_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"task=DoorKey-5x5 is no task of navix; did you mean Nav"):
        registry.make(NavixEnv(task="DoorKey-5x5"), 1, 0)
