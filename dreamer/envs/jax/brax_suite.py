"""Brax: robots in rigid body physics written in JAX.

Source: Freeman et al. 2021, "Brax - A Differentiable Physics Engine for Large Scale Rigid Body
Simulation". Episodes of 1000 steps end by truncation, as in Brax's own training; what Brax calls
done is a robot that has fallen, which is terminal. Physics that blows up ends the episode too.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from dm_env import specs
from jax import Array

from dreamer.config.env import BraxEnv
from dreamer.envs.base import Specs
from dreamer.envs.jax import foreign
from dreamer.envs.jax.batched import BatchedJax
from dreamer.envs.jax.episodes import Action, JaxEnv, Observation

with foreign.traced():  # it warns of what it imports
    from brax import envs

LIMIT = 1000  # steps
TASKS = (
    *("ant", "halfcheetah", "hopper", "humanoid", "humanoidstandup", "inverted_pendulum"),
    *("inverted_double_pendulum", "pusher", "reacher", "swimmer", "walker2d"),
)


def make(config: BraxEnv, num_envs: int, seed: int, render: bool = False) -> BatchedJax:
    """Makes the environments for the host; see `registry.make`. They draw no frames."""
    return BatchedJax(make_jax(config), num_envs, seed, config.first)


def make_jax(config: BraxEnv) -> JaxEnv:
    """Makes one environment as pure functions.

    Raises:
      UserError: the task is unknown or not for this physics, or workers were asked for.
    """
    foreign.check(config, "Brax", TASKS)
    simulator = Brax(config.task, config.physics)
    return JaxEnv(simulator, config.repeat, config.time_limit, slow_reset=True)


class Brax:
    """A Brax environment as a `Simulator`; all of them take actions in [-1, 1]."""

    limit = LIMIT

    def __init__(self, task: str, physics: str) -> None:
        with foreign.made_by("Brax", task):
            self._env = envs.get_environment(task, backend=physics)
            seen = jax.eval_shape(self._env.reset, np.zeros(2, np.uint32)).obs
        self.observations: Specs = {"vector": specs.Array(seen.shape, np.float32, "vector")}
        size = self._env.action_size
        self.actions: Specs = {"action": specs.BoundedArray((size,), np.float32, -1, 1, "action")}

    def reset(self, key: Array) -> tuple[Any, Observation]:
        with foreign.traced():
            state = self._env.reset(foreign.plain_key(key))
        return foreign.settled(state, state), {"vector": state.obs.astype(jnp.float32)}

    def step(self, key: Array, state: Any, action: Action) -> tuple[Any, Observation, Array, Array]:
        with foreign.traced():
            found = self._env.step(state, jnp.clip(action["action"], -1, 1))
        seen, reward, broken = foreign.finite(found.obs, found.reward, state.obs)
        following = foreign.settled(found, state)
        return following, {"vector": seen.astype(jnp.float32)}, reward, (found.done > 0) | broken
