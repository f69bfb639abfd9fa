"""gymnax tasks: the contract of every environment, and the same steps as gymnax makes."""

from typing import Any

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer.config.env import GymnaxEnv
from dreamer.envs import registry
from dreamer.envs.check import check
from dreamer.envs.jax import gymnax_suite, simulators
from dreamer.errors import UserError

CHECKED = ("CartPole-v1", "Pendulum-v1", "Catch-bsuite")
DOWNLOADS = "MNISTBandit-bsuite"
SLOW = (
    *(f"{name}-MinAtar" for name in ("Asterix", "Freeway", "SpaceInvaders", "Breakout")),
)  # to compile


def config(**values: object) -> GymnaxEnv:
    return GymnaxEnv.model_validate(values)


@pytest.mark.parametrize("task", CHECKED)
def test_keeps_the_contract(task: str) -> None:
    check(registry.make(config(task=task, time_limit=40), 3, 0), steps=130)


@pytest.mark.parametrize(
    "task",
    [
        pytest.param(task, marks=[pytest.mark.slow] if task in SLOW else [])
        for task in gymnax_suite.TASKS
        if task != DOWNLOADS
    ],
)
def test_steps_are_those_of_gymnax_and_its_limit_truncates(task: str) -> None:
    ours = registry.make_jax(config(task=task))
    theirs, params = gymnax.make(task)
    spec = ours.simulator.actions["action"]

    @jax.jit
    def both(state: Any, given: jax.Array) -> tuple:
        key = ours._key(state.key, state.episode, state.time + 1)
        with simulators.traced():
            seen, _, reward, done, _ = theirs.step_env(
                key, state.inner, ours.simulator._native(given), params
            )
        expected = seen.reshape(-1).astype(jnp.float32), reward, done
        return expected, *ours.step(state, {"action": given})

    state, _ = ours.reset(jax.random.key_data(jax.random.key(3)))
    limit, ended = ours.limit, 0
    for number in range(min(limit or 40, 210)):
        given = jax.random.uniform(jax.random.key(number), spec.shape)
        if spec.dtype == np.int32:
            given = (given * spec.num_values).astype(np.int32)
        before = state
        (expected, reward, done), state, time_step = both(state, given)
        seen = time_step.observation["observation"].reshape(-1)
        np.testing.assert_allclose(seen, expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(time_step.reward, reward, rtol=1e-5, atol=1e-5)
        assert bool(done) == (time_step.step_type == 2)
        if time_step.step_type == 2:
            assert time_step.discount == (1 if before.time + 1 == limit else 0)
            _, state, _ = both(state, given)
            ended += 1
    assert ended or limit > 210 or not limit


def test_a_fallen_pole_is_terminal() -> None:
    env = registry.make_jax(config(task="CartPole-v1"))
    state, time_step = env.reset(jax.random.key_data(jax.random.key(0)))
    while time_step.step_type != 2:
        state, time_step = env.step(state, {"action": jnp.int32(1)})
    assert time_step.discount == 0
    assert 5 < state.time < 20


def test_environments_differ_and_repeat_with_the_seed() -> None:
    first, again, other = (registry.make(config(), 2, seed).reset() for seed in (1, 1, 2))
    seen = first.observation["observation"]
    assert not np.array_equal(seen[0], seen[1])
    np.testing.assert_array_equal(seen, again.observation["observation"])
    assert not np.array_equal(seen, other.observation["observation"])


def test_a_state_of_other_environments_is_refused() -> None:
    env = registry.make(config(), 2, 0)
    env.reset()
    with pytest.raises(ValueError, match="state of 2 environments given to 3"):
        registry.make(config(), 3, 0).set_state(env.get_state())


def test_a_state_of_another_task_starts_new_episodes() -> None:
    env = registry.make(config(), 2, 0)
    env.reset()
    restored, time_step = registry.make(config(task="Pendulum-v1"), 2, 0).set_state(env.get_state())
    assert restored.tolist() == [False, False]
    assert time_step.step_type.tolist() == [0, 0]


@pytest.mark.parametrize("options", [{"workers": "process"}, {"restarts": 3}])
def test_workers_are_refused(options: dict) -> None:
    ((key, value),) = options.items()
    with pytest.raises(UserError, match=f"env.{key}={value}: .* leave out env.{key}"):
        registry.make(config(**options), 1, 0)


def test_an_unknown_task_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"env.task=SimpleBandit-bsuite is no task of gymnax"):
        registry.make(config(task="SimpleBandit-bsuite"), 1, 0)
    with pytest.raises(UserError, match=r"env.task=Cartpole is no task of gymnax; did you mean C"):
        registry.make(config(task="Cartpole"), 1, 0)
