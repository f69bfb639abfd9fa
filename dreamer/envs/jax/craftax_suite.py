"""Craftax and Craftax-Classic: open worlds to survive in and to explore, from symbols or pixels.

Source: Matthews et al. 2024, "Craftax: A Lightning-Fast Benchmark for Open-Ended Reinforcement
Learning". Running out of steps is a truncation here, which Craftax itself does not tell from death.
A new world costs as much as five to fifteen steps, so it is made only when one is needed.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from craftax.craftax_env import make_craftax_env_from_name
from dm_env import specs
from jax import Array

from dreamer.config.env import CraftaxEnv
from dreamer.envs.base import Specs
from dreamer.envs.jax import foreign
from dreamer.envs.jax.batched import BatchedJax
from dreamer.envs.jax.episodes import Action, JaxEnv, Observation

TASKS = (
    "Craftax-Classic-Symbolic-v1",
    "Craftax-Classic-Pixels-v1",
    "Craftax-Symbolic-v1",
    "Craftax-Pixels-v1",
)


def make(config: CraftaxEnv, num_envs: int, seed: int, render: bool = False) -> BatchedJax:
    """Makes the environments for the host; see `registry.make`. They draw no frames."""
    return BatchedJax(make_jax(config), num_envs, seed, config.first)


def make_jax(config: CraftaxEnv) -> JaxEnv:
    """Makes one environment as pure functions.

    Raises:
      UserError: the task is unknown, or workers were asked for.
    """
    foreign.check(config, "Craftax", TASKS)
    simulator = Craftax(config.task, config.image_size)
    return JaxEnv(simulator, config.repeat, config.time_limit, slow_reset=True)


class Craftax:
    """A Craftax environment as a `Simulator`: a vector, or an image resized to `size`."""

    def __init__(self, task: str, size: tuple[int, int]) -> None:
        with foreign.made_by("Craftax", task):
            self._env = make_craftax_env_from_name(task, auto_reset=False)
            self._params = self._env.default_params
        self.limit = int(self._params.max_timesteps)
        self._endless = self._params.replace(max_timesteps=foreign.NEVER)
        self._size = size
        self._pixels = "Pixels" in task
        shape = self._env.observation_space(self._params).shape
        self.observations: Specs = (
            {"image": specs.BoundedArray((*size, 3), np.uint8, 0, 255, "image")}
            if self._pixels
            else {"symbols": specs.Array(shape, np.float32, "symbols")}
        )
        self.actions: Specs = {
            "action": specs.DiscreteArray(self._env.num_actions, np.int32, "action")
        }

    def reset(self, key: Array) -> tuple[Any, Observation]:
        with foreign.traced():
            seen, state = self._env.reset_env(foreign.plain_key(key), self._params)
        return foreign.settled(state, state), self._seen(seen)

    def step(self, key: Array, state: Any, action: Action) -> tuple[Any, Observation, Array, Array]:
        with foreign.traced():
            seen, following, reward, _, _ = self._env.step_env(
                foreign.plain_key(key), state, action["action"], self._params
            )
            terminal = self._env.is_terminal(following, self._endless)
        return foreign.settled(following, state), self._seen(seen), reward, terminal

    def _seen(self, seen: Array) -> Observation:
        if self._pixels:
            return {"image": foreign.image(255 * seen, self._size)}
        return {"symbols": seen.astype(jnp.float32)}
