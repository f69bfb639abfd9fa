"""gymnax: classic control, MinAtar and bsuite tasks written in JAX.

Running out of `max_steps_in_episode` is a truncation here; gymnax itself does not distinguish it
from the end of a task.
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
from dreamer.envs.jax.simulators import NEVER, Action, Observation, traced
from dreamer.errors import UserError

TASKS = [task for task in registered_envs if task != "SimpleBandit-bsuite"]  # 0.0.9 cannot step it
SLOW_RESET = False


class Gymnax:
    """A gymnax environment as a `Simulator`."""

    def __init__(self, config: GymnaxEnv) -> None:
        self._env, self._params = gymnax.make(config.task)
        params = self._params
        self.limit = int(getattr(params, "max_steps_in_episode", 0))
        self._endless = params.replace(max_steps_in_episode=NEVER) if self.limit else params
        self._action_space = self._env.action_space(params)
        self.observations: Specs = {
            "observation": _spec(self._env.observation_space(params), "observation")
        }
        self.actions: Specs = {"action": _spec(self._action_space, "action")}

    def reset(self, key: Array) -> tuple[Any, Observation]:
        with traced():
            observation, state = self._env.reset_env(key, self._params)
        return state, self._encode(observation)

    def step(self, key: Array, state: Any, action: Action) -> tuple[Any, Observation, Array, Array]:
        with traced():
            observation, state, reward, _, _ = self._env.step_env(
                key, state, self._native(action["action"]), self._params
            )
            terminal = self._env.is_terminal(state, self._endless)
        return state, self._encode(observation), reward, jnp.asarray(terminal, bool)

    def _encode(self, observation: Array) -> Observation:
        spec = self.observations["observation"]
        return {"observation": jnp.asarray(observation, spec.dtype).reshape(spec.shape)}

    def _native(self, action: Array) -> Array:
        if isinstance(self._action_space, spaces.Discrete):
            return action
        low, high = self._action_space.low, self._action_space.high
        scaled = low + (jnp.clip(action, -1, 1) + 1) / 2 * (high - low)
        return jnp.reshape(scaled, self._action_space.shape)


make_simulator = Gymnax


def _spec(space: Any, name: str) -> specs.Array:
    """Actions are scaled; observations of rank 3 and more, as of MinAtar, become one vector."""
    if isinstance(space, spaces.Discrete):
        return specs.DiscreteArray(int(space.n), np.int32, name)
    flat = (int(np.prod(getattr(space, "shape", ()))),)
    if isinstance(space, spaces.Box) and name == "observation":
        return specs.Array(flat if len(space.shape) > 2 else space.shape, np.float32, name)
    if isinstance(space, spaces.Box) and np.isfinite([space.low, space.high]).all():
        return specs.BoundedArray(flat, np.float32, -1, 1, name)
    raise UserError(f"its {name}s of {type(space).__name__} are not supported")
