"""NAVIX: the grid worlds of MiniGrid written in JAX.

Source: Pignatelli et al. 2024, "NAVIX: Scaling MiniGrid Environments with JAX". Running out of
steps is a truncation. NAVIX does not observe a goal that changes from episode to episode (which
object to fetch, which door to go to).
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
from dreamer.envs.jax.simulators import Action, Observation, image, plain_key, settled, traced

TASKS = tuple(sorted(navix.registry()))
LAYERS = {"object": int(MAX_CATEGORICAL_VALUE), "colour": 6, "state": 4}  # and their classes
SLOW_RESET = True


class Navix:
    """A NAVIX environment as a `Simulator`.

    `config.view` is a function of `navix.observations`: a resized image, or the object, colour and
    state of every cell as classes [H, W].
    """

    def __init__(self, config: NavixEnv) -> None:
        view = getattr(observations, config.view)
        self._env = navix.make(config.task, observation_fn=view)
        self.limit = int(self._env.max_steps)
        self._size = config.image_size
        self._pixels = config.view.startswith("rgb")
        height, width = self._env.observation_space.shape[:2]
        self.observations: Specs = {
            name: specs.BoundedArray((height, width), np.int32, 0, classes - 1, name)
            for name, classes in LAYERS.items()
        }
        if self._pixels:
            image = specs.BoundedArray((*self._size, 3), np.uint8, 0, 255, "image")
            self.observations = {"image": image}
        number = len(self._env.action_set)
        self.actions: Specs = {"action": specs.DiscreteArray(number, np.int32, "action")}

    def reset(self, key: Array) -> tuple[Any, Observation]:
        with traced():
            following = self._env.reset(plain_key(key))
        return self._state(following), self._encode(following.observation)

    def step(self, key: Array, state: Any, action: Action) -> tuple[Any, Observation, Array, Array]:
        inner, time = state
        with traced():
            # NAVIX starts a new episode after an end, so the step before never is one.
            before = Timestep(
                time,
                jnp.int32(0),
                action["action"],
                jnp.float32(0),
                StepType.TRANSITION,
                inner.replace(cache=RenderingCache.init(inner.grid)),
                {"return": jnp.float32(0)},
            )
            following = self._env.step(before, action["action"])
        terminal = following.step_type == StepType.TERMINATION
        observation = self._encode(following.observation)
        after = settled(self._state(following), state)
        return after, observation, following.reward, terminal

    def _state(self, time_step: Timestep) -> Any:
        """The state and its time, without the rendered grid, which follows from the state."""
        state = time_step.state.replace(cache=None), time_step.t
        return settled(state, state)

    def _encode(self, cells: Array) -> Observation:
        if self._pixels:
            return {"image": image(cells, self._size)}
        # Cells without a colour have 255.
        layers = zip(LAYERS.items(), jnp.moveaxis(cells.astype(jnp.int32), -1, 0), strict=True)
        return {name: jnp.where(x < classes, x, 0) for (name, classes), x in layers}


make_simulator = Navix
