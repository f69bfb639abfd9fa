"""Suite `atari`: the Arcade Learning Environment by the published protocol.

Source: Machado et al. 2018 and Hafner et al. 2025. A step repeats its action for `repeat` raw
frames and sums the rewards. The raw frames at its end are max-pooled at full resolution, resized by
Pillow (bilinear), and only then turned to gray. An episode opens with 0 to `noops` random no-op
frames.

Departures from the reference implementation: a time limit is a truncation (the reference calls it
terminal); `lives=discount` sets the discount of the step to 0 (the reference ignores it); every
episode is seeded; and `sticky` is obeyed (the reference sets it after loading the game, which
ale_py 0.12 ignores: games then stay at the emulator's default of 0.25, those of Atari100k too).

ale_py's own AtariVectorEnv, `backend=vector`, is not the default because its images are others: see
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
from dreamer.config.section import INT32
from dreamer.envs.atari_vector import AtariVector
from dreamer.envs.base import TERMINAL, BatchedEnv
from dreamer.envs.images import resize
from dreamer.envs.vector import VectorEnv
from dreamer.envs.wrappers import Size
from dreamer.errors import UserError, nearest

MAX_FRAMES = 108_000  # raw frames of an episode without a limit of its own: 30 minutes of play
RED, GREEN = 0.299, 0.587
BLUE = 1 - (RED + GREEN)  # not 0.114, whose rounding would darken a third of all grays by one
NOOP = 0
TASKS = tuple(roms.get_all_rom_ids())


def make(config: AtariEnv, num_envs: int, seed: int, render: bool = False) -> BatchedEnv:
    """Makes `num_envs` environments of one game.

    Raises:
      UserError: The game is unknown, or `backend=vector` cannot do what is asked.
    """
    if config.task not in TASKS:
        raise UserError(
            f"env.task={config.task} is no game of the atari suite{nearest(config.task, TASKS)}; "
            f"the {len(TASKS)} names are in snake case, such as pong, ms_pacman, up_n_down"
        )
    max_frames = min(config.time_limit * config.repeat, INT32) or MAX_FRAMES
    if config.backend == "vector":
        return AtariVector(config, max_frames, num_envs, seed)
    maker = functools.partial(
        Game,
        config.task,
        repeat=config.repeat,
        size=config.image_size,
        max_frames=max_frames,
        sticky=config.sticky,
        gray=config.gray,
        all_actions=config.actions == "all",
        noops=config.noops,
        lives=config.lives,
        pooling=config.pooling,
        clip_reward=config.clip_reward,
    )
    return VectorEnv(maker, config, num_envs, seed, render)


class Game(gymnasium.Env):
    """One game. Observation: uint8 (H, W, 1) if gray, else (H, W, 3).

    `info[TERMINAL]` marks the loss of a life when `lives="discount"`.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 60}
    render_mode = "rgb_array"

    def __init__(
        self,
        name: str,
        *,
        repeat: int,
        size: Size,
        max_frames: int,
        sticky: float,
        gray: bool,
        all_actions: bool,
        noops: int,
        lives: str,
        pooling: int,
        clip_reward: bool,
    ) -> None:
        ALEInterface.setLoggerMode(LoggerMode.Error)
        self._ale = ALEInterface()
        self._ale.setFloat("repeat_action_probability", sticky)
        rom = roms.get_rom_path(name)
        assert rom is not None, name
        self._rom = rom
        self._ale.loadROM(self._rom)
        self._actions = (
            self._ale.getLegalActionSet() if all_actions else self._ale.getMinimalActionSet()
        )
        self._repeat = repeat
        self._size = size
        self._max_frames = max_frames
        self._gray = gray
        self._noops = noops
        self._lives = lives
        self._pooling = pooling
        self._clip_reward = clip_reward
        self._frames: deque[np.ndarray] = deque(maxlen=pooling)  # the newest captured, raw RGB
        self._played = 0  # raw frames of this episode after the no-ops
        self.observation_space = spaces.Box(0, 255, (*size, 1 if gray else 3), np.uint8)
        self.action_space = spaces.Discrete(len(self._actions))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[Any, Any]]:
        super().reset(seed=seed)
        self._ale.setInt("random_seed", int(self.np_random.integers(2**31)))
        self._ale.loadROM(self._rom)  # the emulator takes a seed only here
        self._ale.reset_game()
        for _ in range(self.np_random.integers(self._noops + 1)):
            self._ale.act(NOOP)
            if self._ale.game_over():
                self._ale.reset_game()
        self._played = 0
        self._frames.clear()
        self._frames.append(self._ale.getScreenRGB())
        return self._image(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[Any, Any]]:
        reward, over, lost = 0.0, False, False
        for frame in range(self._repeat):
            lives = self._ale.lives()
            reward += self._ale.act(self._actions[action])
            self._played += 1
            # A game that ends earlier shows the frames captured before, as in the reference.
            if frame >= self._repeat - self._pooling:
                self._frames.append(self._ale.getScreenRGB())
            over = self._ale.game_over()
            lost = self._lives != "unused" and 0 < self._ale.lives() < lives
            if over or lost or self._played >= self._max_frames:
                break
        terminated = over or (lost and self._lives == "reset")
        truncated = self._played >= self._max_frames and not terminated
        if self._clip_reward:
            reward = float(np.sign(reward))
        return self._image(), reward, terminated, truncated, {TERMINAL: over or lost}

    def render(self) -> np.ndarray:
        """Returns the raw screen, RGB (210, 160, 3) in most games."""
        return self._ale.getScreenRGB()

    def _image(self) -> np.ndarray:
        image = resize(functools.reduce(np.maximum, self._frames), self._size)
        return luminance(image) if self._gray else image


def luminance(image: np.ndarray) -> np.ndarray:
    """Returns the gray values of uint8 (H, W, 3) as uint8 (H, W, 1), truncated."""
    red, green, blue = np.moveaxis(image.astype(np.float64), -1, 0)
    return (red * RED + green * GREEN + blue * BLUE).astype(np.uint8)[..., None]
