"""Craftax and Craftax-Classic: open worlds to survive in and to explore, from symbols or pixels.

Source: Matthews et al. 2024, "Craftax: A Lightning-Fast Benchmark for Open-Ended Reinforcement
Learning". Running out of steps is a truncation here; Craftax itself does not distinguish it from
death. A new world costs as much as five to fifteen steps, so resets are slow.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from craftax.craftax_env import make_craftax_env_from_name
from dm_env import specs
from jax import Array

from dreamer.config.env import CraftaxEnv
from dreamer.envs.base import Specs
from dreamer.envs.jax.simulators import (
    NEVER,
    Action,
    Observation,
    image,
    plain_key,
    settled,
    traced,
)

TASKS = (
    "Craftax-Classic-Symbolic-v1",
    "Craftax-Classic-Pixels-v1",
    "Craftax-Symbolic-v1",
    "Craftax-Pixels-v1",
)
SLOW_RESET = True


class Craftax:
    """A Craftax environment as a `Simulator`: a vector, or a resized image."""

    def __init__(self, config: CraftaxEnv) -> None:
        self._env = make_craftax_env_from_name(config.task, auto_reset=False)
        self._params = self._env.default_params
        self.limit = int(self._params.max_timesteps)
        self._endless = self._params.replace(max_timesteps=NEVER)
        self._size = config.image_size
        self._pixels = "Pixels" in config.task
        shape = self._env.observation_space(self._params).shape
        self.observations: Specs = (
            {"image": specs.BoundedArray((*self._size, 3), np.uint8, 0, 255, "image")}
            if self._pixels
            else {"symbols": specs.Array(shape, np.float32, "symbols")}
        )
        self.actions: Specs = {
            "action": specs.DiscreteArray(self._env.num_actions, np.int32, "action")
        }

    def reset(self, key: Array) -> tuple[Any, Observation]:
        with traced():
            observation, state = self._env.reset_env(plain_key(key), self._params)
        return settled(state, state), self._encode(observation)

    def step(self, key: Array, state: Any, action: Action) -> tuple[Any, Observation, Array, Array]:
        with traced():
            observation, following, reward, _, _ = self._env.step_env(
                plain_key(key), state, action["action"], self._params
            )
            terminal = self._env.is_terminal(following, self._endless)
        following = settled(following, state)
        return following, self._encode(observation), reward, terminal

    def _encode(self, observation: Array) -> Observation:
        if self._pixels:
            return {"image": image(255 * observation, self._size)}
        return {"symbols": observation.astype(jnp.float32)}


make_simulator = Craftax
