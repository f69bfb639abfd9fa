"""Tiny gymnasium environments for whole runs, as `tests.probe_envs:probe/NAME-v0`.

Subprocesses find them by that name from the root of the project.
"""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from dreamer.envs.base import episode_seed

SEED = 7  # of the evaluations that `Uneven` knows the environments of


class Walk(gymnasium.Env):
    """A noisy walk that the actions steer; episodes of 3 to 7 steps end in one of both ways."""

    observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space: gymnasium.Space = spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self._left = int(self.np_random.integers(3, 8))
        self._place = self.np_random.normal(size=3).astype(np.float32)
        return self._place.copy(), {}

    def step(self, action: Any) -> Any:
        self._left -= 1
        self._place[0] += np.sum(action) - 1
        self._place[1:] = self.np_random.normal(size=2)
        over = self._left == 0
        truncated = over and bool(self._place[1] > 0)
        return self._place.copy(), float(self._place[0]), over and not truncated, truncated, {}


class Unseeded(Walk):
    """The walk from a place that no seed repeats."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self._place = np.random.default_rng().normal(size=3).astype(np.float32)
        return self._place.copy(), {}


class Broken(Walk):
    """The walk into nowhere."""

    def step(self, action: Any) -> Any:
        place, *others = super().step(action)
        return np.full_like(place, np.nan), *others


class Fragile(Walk):
    """The walk, which breaks once after so many steps of all its environments."""

    steps_left = -1  # never

    def step(self, action: Any) -> Any:
        Fragile.steps_left -= 1
        if Fragile.steps_left == 0:
            raise RuntimeError("out of\norder")
        return super().step(action)


class Endless(Walk):
    """The walk without an end."""

    def step(self, action: Any) -> Any:
        self._left = 2
        return super().step(action)


class Steered(Walk):
    """The walk with a continuous action."""

    action_space = spaces.Box(-2, 2, (2,), np.float32)


class Masked(Walk):
    """The walk, in which the action before must not be repeated."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self._before = 0
        return super().reset(seed=seed)[0], self._info()

    def step(self, action: Any) -> Any:
        assert action != self._before, "the mask did not allow it"
        self._before = action
        *others, _ = super().step(action)
        return *others, self._info()

    def _info(self) -> dict[str, Any]:
        return {"action_mask": (np.arange(3) != self._before).astype(np.int8)}


class Picture(Walk):
    """The walk seen as an image of 16x16, which it does not render."""

    observation_space = spaces.Box(0, 255, (16, 16, 3), np.uint8)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return self._image(), {}

    def step(self, action: Any) -> Any:
        _, *others = super().step(action)
        return self._image(), *others

    def _image(self) -> np.ndarray:
        image = np.zeros((16, 16, 3), np.uint8)
        image[:, : 1 + int(abs(self._place[0])) % 16] = 255
        return image


class Drawn(Walk):
    """The walk, which renders frames of 20x30 whose gray value is the step of the episode."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self._done = 0
        return super().reset(seed=seed)

    def step(self, action: Any) -> Any:
        self._done += 1
        return super().step(action)

    def render(self) -> Any:
        return np.full((20, 30, 3), self._done, np.uint8)


class Uneven(gymnasium.Env):
    """Environment i of `SEED` has episodes of 2 + 7 i steps, whose every reward is 1."""

    observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        numbers = [(i, k) for i in range(3) for k in range(20)]
        # Another seed is that of the try whether its info has masks.
        index = next((i for i, k in numbers if episode_seed(SEED, i, k) == seed), 0)
        self._left = 2 + 7 * index
        return np.zeros(3, np.float32), {}

    def step(self, action: Any) -> Any:
        self._left -= 1
        return np.zeros(3, np.float32), 1.0, self._left == 0, False, {}


for made in (Walk, Unseeded, Broken, Fragile, Endless, Steered, Picture, Drawn, Uneven):
    gymnasium.register(f"probe/{made.__name__}-v0", entry_point=made)


def task(name: str) -> str:
    """The option that chooses a probe."""
    return f"env.task=tests.probe_envs:probe/{name}-v0"
