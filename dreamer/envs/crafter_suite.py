"""Crafter: an open world to survive in, with 22 achievements.

Source: Hafner 2021, "Benchmarking the Spectrum of Agent Capabilities". Death is terminal; running
out of the 10,000 steps is a truncation.
"""

import collections
import contextlib
import functools
import io
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from dreamer.config.env import CrafterEnv
from dreamer.envs.base import BatchedEnv
from dreamer.envs.single import batch, check_task, finish
from dreamer.envs.wrappers import Size
from dreamer.errors import UserError

with contextlib.redirect_stderr(io.StringIO()):  # gym, if it is there, complains of its own age
    import crafter

TASKS = ("reward", "noreward")
SMALLEST = 18  # pixels a side of an image: two for each of the 9 cells


def make(config: CrafterEnv, num_envs: int, seed: int, render: bool = False) -> BatchedEnv:
    """Makes the environments; see `registry.make`.

    Raises:
      UserError: the task is unknown, or images are too small for what is drawn.
    """
    check_task(config, "crafter", TASKS)
    if min(config.image_size) < SMALLEST:
        raise UserError(
            f"env.image_size={list(config.image_size)} is too small for Crafter, which draws 9 by "
            f"9 cells; give it at least {SMALLEST} pixels a side"
        )
    return batch(functools.partial(_make_one, config), config, num_envs, seed, render)


def _make_one(config: CrafterEnv) -> gymnasium.Env:
    return finish(Crafter(config.task == "reward", config.image_size), config)


class Crafter(gymnasium.Env):
    """Crafter by gymnasium's interface; images of `size`, 17 actions."""

    def __init__(self, reward: bool, size: Size) -> None:
        height, width = size
        self._env = crafter.Env(size=(width, height), reward=reward)
        self._env._world.__class__ = World
        self._image = np.zeros((height, width, 3), np.uint8)
        self.observation_space = spaces.Box(0, 255, self._image.shape, np.uint8)
        self.action_space = spaces.Discrete(len(self._env.action_names))
        self.metadata = {"render_modes": ["rgb_array"]}
        self.render_mode = "rgb_array"

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
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
    """The world with what lives in a part of it in order of arrival.

    Crafter draws one of them to vanish from a set, whose order is that of addresses in memory: the
    same seed would not give the same episode again.
    """

    def reset(self, seed: int | None = None) -> None:
        super().reset(seed)
        self._chunks: dict[Any, Ordered] = collections.defaultdict(Ordered)


class Ordered(dict):
    """As much of a set as Crafter uses, in order of arrival."""

    def add(self, item: Any) -> None:
        self[item] = None

    def remove(self, item: Any) -> None:
        del self[item]
