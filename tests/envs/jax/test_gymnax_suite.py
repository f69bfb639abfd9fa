"""gymnax tasks: the promises of every environment, and the same steps as gymnax makes."""

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.registration import registered_envs

from dreamer.config import GymnaxEnv
from dreamer.envs import registry
from dreamer.envs.check import check
from dreamer.envs.jax import gymnax_suite
from dreamer.errors import UserError

CHECKED = ("CartPole-v1", "Pendulum-v1", "Breakout-MinAtar", "Catch-bsuite", "MemoryChain-bsuite")
# The first downloads its images; the second cannot be stepped in gymnax 0.0.9 either.
LEFT_OUT = ("MNISTBandit-bsuite", "SimpleBandit-bsuite")


def config(**values: object) -> GymnaxEnv:
    return GymnaxEnv.model_validate(values)


@pytest.mark.parametrize("task", CHECKED)
def test_keeps_every_promise_of_an_environment(task: str) -> None:
    check(registry.make(config(task=task, time_limit=40), 3, 0), steps=130)


@pytest.mark.parametrize("task", sorted(set(registered_envs) - {*CHECKED, *LEFT_OUT}))
def test_every_task_has_specs_that_its_steps_fit(task: str) -> None:
    env = gymnax_suite.make_jax(config(task=task))
    action = {"action": jnp.zeros(env.simulator.actions["action"].shape, jnp.int32)}
    if env.simulator.actions["action"].dtype == np.float32:
        action = {"action": action["action"].astype(jnp.float32)}
    state, _ = jax.eval_shape(env.reset, jax.random.key_data(jax.random.key(0)))
    _, time_step = jax.eval_shape(env.step, state, action)
    spec = env.simulator.observations["observation"]
    assert time_step.observation["observation"].shape == spec.shape
    assert time_step.observation["observation"].dtype == spec.dtype


def test_steps_are_those_of_gymnax_until_its_limit_which_truncates() -> None:
    ours = gymnax_suite.make_jax(config(task="Pendulum-v1"))
    theirs, params = gymnax.make("Pendulum-v1")
    state, time_step = ours.reset(jax.random.key_data(jax.random.key(3)))
    step = jax.jit(ours.step)
    for number in range(200):
        native = state.inner
        seen, _, reward, done, _ = theirs.step_env(
            jax.random.key(0), native, jnp.array([1.0]), params
        )
        state, time_step = step(state, {"action": jnp.array([0.5])})
        np.testing.assert_allclose(time_step.observation["observation"], seen, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(time_step.reward, reward, rtol=1e-5)
        assert bool(done) == (time_step.step_type == 2) == (number == 199)
    assert time_step.discount == 1


def test_a_fallen_pole_is_terminal() -> None:
    env = gymnax_suite.make_jax(config(task="CartPole-v1"))
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
    with pytest.raises(ValueError, match="state of other environments given to 3"):
        registry.make(config(), 3, 0).set_state(env.get_state())


def test_workers_are_refused() -> None:
    with pytest.raises(UserError, match=r"env.workers=process: .* leave out env.workers"):
        registry.make(config(workers="process"), 1, 0)


def test_an_unknown_task_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"env.task=Cartpole is no task of gymnax; did you mean C"):
        registry.make(config(task="Cartpole"), 1, 0)
