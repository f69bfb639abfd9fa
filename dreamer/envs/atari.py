"""Suite `atari`: the Arcade Learning Environment by the published protocol.

Source: Machado et al. 2018 and Hafner et al. 2025. A step repeats its action for `repeat` raw
frames and sums the rewards. The raw frames at its end are max-pooled at full resolution, resized by
Pillow (bilinear), and only then turned to gray. An episode opens with 0 to `noops` random no-op
frames.

Departures from the reference implementation: a time limit is a truncation (the reference calls it
terminal); `lives=discount` sets the discount of the step to 0 (the reference ignores it); every
episode is seeded; and `sticky` takes effect (the reference sets it after loading the game, which
ale_py 0.12 ignores: games then keep the emulator's default of 0.25, also in Atari100k).

ale_py's own AtariVectorEnv, `backend=vector`, is not the default because its images differ: see
`atari_vector`.
"""

import functools
from collections import deque
from typing import Any

import gymnasium
import numpy as np
from ale_py import ALEInterface, LoggerMode, roms
from gymnasium import spaces

from dreamer.config.env import AtariEnv
from dreamer.envs.atari_vector import AtariVector, max_frames
from dreamer.envs.base import TERMINAL, BatchedEnv
from dreamer.envs.images import resize
from dreamer.envs.vector import VectorEnv

RED, GREEN = 0.299, 0.587
BLUE = 1 - (RED + GREEN)  # not 0.114, whose rounding would darken a third of all grays by one
NOOP = 0
TASKS = tuple(roms.get_all_rom_ids())


def make(config: AtariEnv, num_envs: int, seed: int, render: bool = False) -> BatchedEnv:
    """Makes `num_envs` environments of one game.

    Raises:
      UserError: `backend=vector` does not support an option.
    """
    if config.backend == "vector":
        return AtariVector(config, num_envs, seed)
    return VectorEnv(functools.partial(Game, config), config, num_envs, seed, render)


class Game(gymnasium.Env):
    """One game. Observation: uint8 (H, W, 1) if gray, else (H, W, 3).

    `info[TERMINAL]` marks the loss of a life when `lives="discount"`.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 60}
    render_mode = "rgb_array"

    def __init__(self, config: AtariEnv) -> None:
        self._config, self._max_frames = config, max_frames(config)
        ALEInterface.setLoggerMode(LoggerMode.Error)
        self._ale = ALEInterface()
        self._ale.setFloat("repeat_action_probability", config.sticky)
        rom = roms.get_rom_path(config.task)
        assert rom is not None, config.task
        self._rom = rom
        self._ale.loadROM(self._rom)
        self._actions = (
            self._ale.getLegalActionSet()
            if config.actions == "all"
            else self._ale.getMinimalActionSet()
        )
        # The newest captured, raw RGB.
        self._frames: deque[np.ndarray] = deque(maxlen=config.pooling)
        self._played = 0  # raw frames of this episode after the no-ops
        shape = (*config.image_size, 1 if config.gray else 3)
        self.observation_space = spaces.Box(0, 255, shape, np.uint8)
        self.action_space = spaces.Discrete(len(self._actions))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[Any, Any]]:
        super().reset(seed=seed)
        self._ale.setInt("random_seed", int(self.np_random.integers(2**31)))
        self._ale.loadROM(self._rom)  # the emulator takes a seed only here
        self._ale.reset_game()
        for _ in range(self.np_random.integers(self._config.noops + 1)):
            self._ale.act(NOOP)
            if self._ale.game_over():
                self._ale.reset_game()
        self._played = 0
        self._frames.clear()
        self._frames.append(self._ale.getScreenRGB())
        return self._image(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[Any, Any]]:
        config, reward, over, lost = self._config, 0.0, False, False
        for frame in range(config.repeat):
            lives = self._ale.lives()
            reward += self._ale.act(self._actions[action])
            self._played += 1
            # A game that ends earlier shows the frames captured before, as in the reference.
            if frame >= config.repeat - config.pooling:
                self._frames.append(self._ale.getScreenRGB())
            over = self._ale.game_over()
            lost = config.lives != "unused" and 0 < self._ale.lives() < lives
            if over or lost or self._played >= self._max_frames:
                break
        terminated = over or (lost and config.lives == "reset")
        truncated = self._played >= self._max_frames and not terminated
        if config.clip_reward:
            reward = float(np.sign(reward))
        return self._image(), reward, terminated, truncated, {TERMINAL: over or lost}

    def render(self) -> np.ndarray:
        """Returns the raw screen, RGB (210, 160, 3) in most games."""
        return self._ale.getScreenRGB()

    def _image(self) -> np.ndarray:
        image = resize(functools.reduce(np.maximum, self._frames), self._config.image_size)
        return luminance(image) if self._config.gray else image


def luminance(image: np.ndarray) -> np.ndarray:
    """Returns the gray values of uint8 (H, W, 3) as uint8 (H, W, 1), truncated."""
    red, green, blue = np.moveaxis(image.astype(np.float64), -1, 0)
    return (red * RED + green * GREEN + blue * BLUE).astype(np.uint8)[..., None]
