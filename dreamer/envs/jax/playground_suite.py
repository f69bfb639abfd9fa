"""MuJoCo Playground: the control suite, walking robots and hands in MuJoCo's physics on JAX.

Source: Zakka et al. 2025, "MuJoCo Playground". Running out of steps is a truncation; what the
package calls done is a robot that has fallen or physics that blew up, which is terminal. Walking
robots and hands take their models from a repository that the package fetches with git on first use.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from dm_env import specs
from jax import Array

from dreamer.config.env import PlaygroundEnv
from dreamer.envs.base import Specs
from dreamer.envs.jax import foreign
from dreamer.envs.jax.batched import BatchedJax
from dreamer.envs.jax.episodes import Action, JaxEnv, Observation

with foreign.traced():  # it warns of what it imports
    from mujoco_playground import registry

TASKS = registry.ALL_ENVS


def make(config: PlaygroundEnv, num_envs: int, seed: int, render: bool = False) -> BatchedJax:
    """Makes the environments for the host; see `registry.make`. They draw no frames."""
    return BatchedJax(make_jax(config), num_envs, seed, config.first)


def make_jax(config: PlaygroundEnv) -> JaxEnv:
    """Makes one environment as pure functions.

    Raises:
      UserError: the task is unknown or cannot be made, or workers were asked for.
    """
    foreign.check(config, "MuJoCo Playground", TASKS)
    return JaxEnv(Playground(config.task), config.repeat, config.time_limit, slow_reset=True)


class Playground:
    """An environment of MuJoCo Playground as a `Simulator`; all of them take actions in [-1, 1]."""

    def __init__(self, task: str) -> None:
        with foreign.made_by("MuJoCo Playground", task):
            # The default, Warp, runs on NVIDIA GPUs alone.
            self._env = registry.load(task, config_overrides={"impl": "jax"})
            self.limit = int(registry.get_default_config(task).episode_length)
            seen = jax.eval_shape(self._env.reset, np.zeros(2, np.uint32)).obs
        self.observations: Specs = {
            name: specs.Array(leaf.shape, np.float32, name) for name, leaf in _own(seen).items()
        }
        size = self._env.action_size
        self.actions: Specs = {"action": specs.BoundedArray((size,), np.float32, -1, 1, "action")}

    def reset(self, key: Array) -> tuple[Any, Observation]:
        with foreign.traced():
            state = self._env.reset(foreign.plain_key(key))
        return foreign.settled(state, state), _own(state.obs)

    def step(self, key: Array, state: Any, action: Action) -> tuple[Any, Observation, Array, Array]:
        with foreign.traced():
            found = self._env.step(state, jnp.clip(action["action"], -1, 1))
        seen, reward, broken = foreign.finite(_own(found.obs), found.reward, _own(state.obs))
        return foreign.settled(found, state), seen, reward, (found.done > 0) | broken


def _own(seen: Any) -> dict[str, Array]:
    """What the agent sees: all but the keys that only a critic may look at while training."""
    parts = seen if isinstance(seen, Mapping) else {"vector": seen}
    return {name: leaf for name, leaf in parts.items() if not name.startswith("privileged")}
