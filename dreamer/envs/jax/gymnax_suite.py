"""gymnax: classic control, MinAtar and bsuite tasks written in JAX.

Running out of `max_steps_in_episode` is a truncation here, which gymnax itself does not tell from
the end of a task.
"""

from typing import Any

import gymnax
import jax.numpy as jnp
import numpy as np
from dm_env import specs
from gymnax.environments import spaces
from gymnax.registration import registered_envs
from jax import Array

from dreamer.config.env import GymnaxEnv
from dreamer.envs.base import Specs
from dreamer.envs.jax import foreign
from dreamer.envs.jax.batched import BatchedJax
from dreamer.envs.jax.episodes import Action, JaxEnv, Observation
from dreamer.errors import UserError

TASKS = [task for task in registered_envs if task != "SimpleBandit-bsuite"]  # 0.0.9 cannot step it


def make(config: GymnaxEnv, num_envs: int, seed: int, render: bool = False) -> BatchedJax:
    """Makes the environments for the host; see `registry.make`. They draw no frames."""
    return BatchedJax(make_jax(config), num_envs, seed, config.first)


def make_jax(config: GymnaxEnv) -> JaxEnv:
    """Makes one environment as pure functions.

    Raises:
      UserError: the task is unknown, its spaces are not supported, or workers were asked for.
    """
    foreign.check(config, "gymnax", TASKS)
    return JaxEnv(Gymnax(config.task), config.repeat, config.time_limit)


class Gymnax:
    """A gymnax environment as a `Simulator`."""

    def __init__(self, task: str) -> None:
        with foreign.made_by("gymnax", task):
            self._env, self._params = gymnax.make(task)
        params = self._params
        self.limit = int(getattr(params, "max_steps_in_episode", 0))
        self._endless = params.replace(max_steps_in_episode=foreign.NEVER) if self.limit else params
        self.observations = {"observation": _observed(self._env.observation_space(params), task)}
        self._actions = self._env.action_space(params)
        self.actions: Specs = {"action": _acted(self._actions, task)}

    def reset(self, key: Array) -> tuple[Any, Observation]:
        with foreign.traced():
            observation, state = self._env.reset_env(key, self._params)
        return state, self._seen(observation)

    def step(self, key: Array, state: Any, action: Action) -> tuple[Any, Observation, Array, Array]:
        with foreign.traced():
            observation, state, reward, _, _ = self._env.step_env(
                key, state, self._native(action["action"]), self._params
            )
            terminal = self._env.is_terminal(state, self._endless)
        return state, self._seen(observation), reward, jnp.asarray(terminal, bool)

    def _seen(self, observation: Array) -> Observation:
        spec = self.observations["observation"]
        return {"observation": jnp.asarray(observation, spec.dtype).reshape(spec.shape)}

    def _native(self, action: Array) -> Array:
        if isinstance(self._actions, spaces.Discrete):
            return action
        low, high = self._actions.low, self._actions.high
        scaled = low + (jnp.clip(action, -1, 1) + 1) / 2 * (high - low)
        return jnp.reshape(scaled, self._actions.shape)


def _observed(space: Any, task: str) -> specs.Array:
    """Boxes of more than two dimensions, such as the planes of MinAtar, become one vector."""
    if isinstance(space, spaces.Discrete):
        return specs.DiscreteArray(int(space.n), np.int32, "observation")
    if isinstance(space, spaces.Box):
        shape = tuple(space.shape)
        return specs.Array(
            shape if len(shape) <= 2 else (int(np.prod(shape)),), np.float32, "observation"
        )
    raise UserError(f"env.task={task}: observations of {type(space).__name__} are not supported")


def _acted(space: Any, task: str) -> specs.Array:
    if isinstance(space, spaces.Discrete):
        return specs.DiscreteArray(int(space.n), np.int32, "action")
    if isinstance(space, spaces.Box) and np.isfinite([space.low, space.high]).all():
        size = int(np.prod(space.shape))
        return specs.BoundedArray((size,), np.float32, -1, 1, "action")
    raise UserError(f"env.task={task}: actions of {type(space).__name__} are not supported")
