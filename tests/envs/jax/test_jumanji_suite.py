"""Jumanji: the contract of every environment, its own steps, and masks of what is valid."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer.config.env import JumanjiEnv
from dreamer.envs import registry
from dreamer.envs.base import random_action
from dreamer.envs.check import check
from dreamer.envs.jax import simulators
from dreamer.errors import UserError
from dreamer.nets import spaces
from tests.envs import suites

jumanji_suite = suites.module("jumanji")
jumanji = jumanji_suite.jumanji

FETCHED = ("Sokoban-v0",)  # its levels, from the net
MADE = tuple(task for task in jumanji_suite.TASKS if task not in FETCHED)
# What an action is: classes, or shape and classes of each part, and whether it has a mask.
ACTIONS: dict[str, tuple] = {
    "Snake-v1": ((), 4, True),
    "Connector-v3": ((10,), 5, True),  # ten agents, a mask of each
    "MultiCVRP-v0": ((2,), 21, True),
    "Tetris-v0": ((), 4 * 10, True),  # rotation and column, a mask of both together
    "Sudoku-v0": ((), 9 * 9 * 9, True),
    "RubiksCube-v0": ((), 6 * 1 * 3, False),
}


@pytest.mark.parametrize("task", ["Maze-v0", "Tetris-v0"])
def test_keeps_the_contract(task: str) -> None:
    check(registry.make(JumanjiEnv(task=task, time_limit=12), 2, 0), steps=30)


@pytest.mark.slow
@pytest.mark.parametrize("task", MADE)
def test_every_task_keeps_the_contract(task: str) -> None:
    check(registry.make(JumanjiEnv(task=task), 2, 0), steps=150)


@pytest.mark.parametrize("task", ACTIONS)
def test_action_specs_match_their_masks(task: str) -> None:
    simulator = jumanji_suite.Jumanji(JumanjiEnv(task=task))
    shape, classes, masked = ACTIONS[task]
    action = simulator.actions["action"]
    assert (action.shape, spaces.classes(action)) == (shape, classes)
    assert set(spaces.masked(simulator.observations, simulator.actions)) == (
        {"action"} if masked else set()
    )


def test_too_many_combinations_are_parts_of_their_own_without_a_mask() -> None:
    simulator = jumanji_suite.Jumanji(JumanjiEnv(task="FlatPack-v0"))
    assert [spaces.classes(leaf) for leaf in simulator.actions.values()] == [25, 4, 9, 9]
    assert "action_mask" not in simulator.observations
    given = {f"action_{i}": jnp.int32(i + 1) for i in range(4)}
    assert simulator._native(given).tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("task", ["Snake-v1", "Tetris-v0"])
def test_steps_are_those_of_jumanji(task: str) -> None:
    ours, theirs = registry.make_jax(JumanjiEnv(task=task)), jumanji.make(task)
    step, ours_step = jax.jit(theirs.step), jax.jit(ours.step)
    state, found = jax.jit(ours.reset)(jax.random.key_data(jax.random.key(3)))
    rng, spec = np.random.default_rng(0), ours.simulator.actions
    with simulators.traced():
        inner, expected = theirs.reset(jax.random.key_data(ours._key(state.key, jnp.int32(0), 0)))
        for _ in range(60):
            seen = {key: np.asarray(value)[None] for key, value in found.observation.items()}
            np.testing.assert_array_equal(
                seen["action_mask"].ravel(), np.ravel(expected.observation.action_mask)
            )
            np.testing.assert_array_equal(seen["grid"].ravel(), np.ravel(expected.observation.grid))
            given = int(random_action(spec, 1, rng, seen)["action"][0])
            counts = np.atleast_1d(theirs.action_spec.num_values)
            native = np.array(np.unravel_index(given, counts), np.int32)
            state, found = ours_step(state, {"action": jnp.int32(given)})
            inner, expected = step(inner, jnp.asarray(native if len(counts) > 1 else native[0]))
            assert found.reward == pytest.approx(float(expected.reward))
            assert (found.step_type == 2) == (expected.step_type == 2)
            if found.step_type == 2:
                assert found.discount == 0
                return
    assert task == "Snake-v1", "Tetris is lost by then"


def test_a_timeout_is_a_truncation() -> None:
    env = registry.make_jax(JumanjiEnv(task="RubiksCube-partly-scrambled-v0"))
    state, found = env.reset(jax.random.key_data(jax.random.key(0)))
    step, number = jax.jit(env.step), 0
    while found.step_type != 2:
        state, found = step(state, {"action": jnp.int32(0)})
        number += 1
    assert (number, int(found.discount)) == (20, 1)
    assert jumanji.make("RubiksCube-partly-scrambled-v0").time_limit == 20


@pytest.mark.slow
@pytest.mark.parametrize("task", MADE)
def test_every_task_has_the_specs_that_it_says(task: str) -> None:
    env = registry.make_jax(JumanjiEnv(task=task))
    state, found = jax.eval_shape(env.reset, jax.random.key_data(jax.random.key(0)))
    action = {key: jnp.zeros(spec.shape, spec.dtype) for key, spec in env.simulator.actions.items()}
    following: Any = jax.eval_shape(env.step, state, action)[0]
    before, after = (
        [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(one)] for one in (state, following)
    )
    assert before == after
    assert found.observation.keys() == env.simulator.observations.keys()
    for name, spec in env.simulator.observations.items():
        assert (found.observation[name].shape, found.observation[name].dtype) == (
            spec.shape,
            spec.dtype,
        )


def test_an_unknown_task_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"task=Snake is no task of jumanji; did you mean Snake-v1"):
        registry.make(JumanjiEnv(task="Snake"), 1, 0)
