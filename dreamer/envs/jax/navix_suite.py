"""NAVIX: the grid worlds of MiniGrid written in JAX.

Source: Pignatelli et al. 2024, "NAVIX: Scaling MiniGrid Environments with JAX". Running out of
steps is a truncation. What a task is about, where that changes from episode to episode (which
object to fetch, which door to go to), is in none of NAVIX's observations.
"""

from typing import Any

import jax.numpy as jnp
import navix
import numpy as np
from dm_env import specs
from jax import Array
from navix import observations
from navix.environments.environment import MAX_CATEGORICAL_VALUE, StepType, Timestep
from navix.rendering.cache import RenderingCache

from dreamer.config.env import NavixEnv
from dreamer.envs.base import Specs
from dreamer.envs.jax import foreign
from dreamer.envs.jax.batched import BatchedJax
from dreamer.envs.jax.episodes import Action, JaxEnv, Observation

TASKS = tuple(sorted(navix.registry()))
LAYERS = {"object": int(MAX_CATEGORICAL_VALUE), "colour": 6, "state": 4}  # and their classes


def make(config: NavixEnv, num_envs: int, seed: int, render: bool = False) -> BatchedJax:
    """Makes the environments for the host; see `registry.make`. They draw no frames."""
    return BatchedJax(make_jax(config), num_envs, seed, config.first)


def make_jax(config: NavixEnv) -> JaxEnv:
    """Makes one environment as pure functions.

    Raises:
      UserError: the task is unknown, or workers were asked for.
    """
    foreign.check(config, "NAVIX", TASKS)
    simulator = Navix(config.task, config.view, config.image_size)
    return JaxEnv(simulator, config.repeat, config.time_limit, slow_reset=True)


class Navix:
    """A NAVIX environment as a `Simulator`.

    Args:
      task: NAVIX id.
      view: name of a function of `navix.observations`: an image, resized to `size`, or the object,
        colour and state of every cell as classes [H, W].
      size: of images.
    """

    def __init__(self, task: str, view: str, size: tuple[int, int]) -> None:
        with foreign.made_by("NAVIX", task):
            self._env = navix.make(task, observation_fn=getattr(observations, view))
        self.limit = int(self._env.max_steps)
        self._size = size
        self._pixels = view.startswith("rgb")
        height, width = self._env.observation_space.shape[:2]
        self.observations: Specs = {
            name: specs.BoundedArray((height, width), np.int32, 0, classes - 1, name)
            for name, classes in LAYERS.items()
        }
        if self._pixels:
            self.observations = {"image": specs.BoundedArray((*size, 3), np.uint8, 0, 255, "image")}
        number = len(self._env.action_set)
        self.actions: Specs = {"action": specs.DiscreteArray(number, np.int32, "action")}

    def reset(self, key: Array) -> tuple[Any, Observation]:
        with foreign.traced():
            found = self._env.reset(foreign.plain_key(key))
        return self._kept(found), self._seen(found.observation)

    def step(self, key: Array, state: Any, action: Action) -> tuple[Any, Observation, Array, Array]:
        inner, time = state
        with foreign.traced():
            # NAVIX would begin a new episode after an end; this says that there was none.
            before = Timestep(
                time,
                jnp.int32(0),
                action["action"],
                jnp.float32(0),
                StepType.TRANSITION,
                inner.replace(cache=RenderingCache.init(inner.grid)),
                {"return": jnp.float32(0)},
            )
            found = self._env.step(before, action["action"])
        terminal = found.step_type == StepType.TERMINATION
        following = foreign.settled(self._kept(found), state)
        return following, self._seen(found.observation), found.reward, terminal

    def _kept(self, found: Timestep) -> Any:
        """The state and its time, without the drawing of the bare grid: it is made of the grid."""
        kept = found.state.replace(cache=None), found.t
        return foreign.settled(kept, kept)

    def _seen(self, seen: Array) -> Observation:
        if self._pixels:
            return {"image": foreign.image(seen, self._size)}
        # Cells without a colour have 255.
        layers = zip(LAYERS.items(), jnp.moveaxis(seen.astype(jnp.int32), -1, 0), strict=True)
        return {name: jnp.where(x < classes, x, 0) for (name, classes), x in layers}
