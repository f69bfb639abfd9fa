"""Robots in rigid body physics, by the interface that Brax and MuJoCo Playground share.

`done` is a robot that has fallen or diverged physics, which is terminal.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from dm_env import specs
from jax import Array

from dreamer.envs.base import Specs
from dreamer.envs.jax.simulators import Action, Observation, finite, plain_key, settled, traced


class Robot:
    """A robot as a `Simulator`; actions are in [-1, 1].

    Args:
      env: Of the package.
      limit: Steps of an episode.
    """

    def __init__(self, env: Any, limit: int) -> None:
        self.env, self.limit = env, limit
        observation = jax.eval_shape(lambda key: public(env.reset(key).obs), np.zeros(2, np.uint32))
        self.observations: Specs = {
            name: specs.Array(leaf.shape, np.float32, name) for name, leaf in observation.items()
        }
        action = specs.BoundedArray((env.action_size,), np.float32, -1, 1, "action")
        self.actions: Specs = {"action": action}

    def reset(self, key: Array) -> tuple[Any, Observation]:
        with traced():
            state = self.env.reset(plain_key(key))
        return settled(state, state), public(state.obs)

    def step(self, key: Array, state: Any, action: Action) -> tuple[Any, Observation, Array, Array]:
        with traced():
            following = self.env.step(state, jnp.clip(action["action"], -1, 1))
        observation, reward, broken = finite(
            public(following.obs), following.reward, public(state.obs)
        )
        return settled(following, state), observation, reward, (following.done > 0) | broken


def public(observation: Any) -> dict[str, Array]:
    """All but the privileged keys, which only a critic may observe while training."""
    parts = observation if isinstance(observation, Mapping) else {"vector": observation}
    return {
        name: leaf.astype(jnp.float32)
        for name, leaf in parts.items()
        if not name.startswith("privileged")
    }
