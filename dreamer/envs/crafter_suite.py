"""Crafter: an open world to survive in, with 22 achievements.

Source: Hafner 2021, "Benchmarking the Spectrum of Agent Capabilities". Death is terminal; running
out of the 10,000 steps is a truncation.
"""

import collections
import contextlib
import io
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from dreamer.config.env import CrafterEnv
from dreamer.envs.wrappers import Size, finish
from dreamer.errors import UserError

with contextlib.redirect_stderr(io.StringIO()):  # gym, if installed, warns that it is unmaintained
    import crafter

TASKS = ("reward", "noreward")
SMALLEST = 18  # pixels a side of an image: two for each of the 9 cells


def make_env(config: CrafterEnv, render: bool) -> gymnasium.Env:
    """Makes one environment.

    Raises:
      UserError: Images are too small for the 9 by 9 cells.
    """
    if min(config.image_size) < SMALLEST:
        raise UserError(
            f"env.image_size={list(config.image_size)} is too small for Crafter, which draws 9 by "
            f"9 cells; give it at least {SMALLEST} pixels a side"
        )
    return finish(Crafter(config.task == "reward", config.image_size), config)


class Crafter(gymnasium.Env):
    """Crafter with gymnasium's interface; images of `size`, 17 actions."""

    metadata = {"render_modes": ["rgb_array"]}
    render_mode = "rgb_array"

    def __init__(self, reward: bool, size: Size) -> None:
        height, width = size
        self._env = crafter.Env(size=(width, height), reward=reward)
        self._env._world.__class__ = World
        self._image: Any = None
        self.observation_space = spaces.Box(0, 255, (height, width, 3), np.uint8)
        self.action_space = spaces.Discrete(len(self._env.action_names))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        if seed is not None:
            self._env._seed, self._env._episode = seed, 0
        self._image = self._env.reset()
        return self._image, {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._image, reward, over, info = self._env.step(int(action))
        dead = info["discount"] == 0
        return self._image, float(reward), bool(dead), bool(over and not dead), {}

    def render(self) -> Any:
        return self._image  # drawing it again would take from the world's randomness at night


class World(crafter.engine.World):
    """The world with the creatures of each chunk in order of arrival.

    Crafter draws one of them to vanish from a set, whose order is that of memory addresses: the
    same seed would not repeat the episode.
    """

    def reset(self, seed: int | None = None) -> None:
        super().reset(seed)
        self._chunks: dict[Any, Ordered] = collections.defaultdict(Ordered)


class Ordered(dict):
    """The methods of a set that Crafter uses, in order of arrival."""

    def add(self, item: Any) -> None:
        self[item] = None

    def remove(self, item: Any) -> None:
        del self[item]
