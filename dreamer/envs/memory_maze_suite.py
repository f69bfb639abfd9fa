"""Memory Maze: a maze whose coloured balls are asked for again and again, from images.

Source: Pasukonis et al. 2022, "Evaluating Long-Term Memory in 3D Mazes". The colour that is asked
for is the border of the image. Running out of time is a truncation; nothing else ends an episode.
"""

import contextlib
import functools
import io
import logging
from typing import Any

import gymnasium
import numpy as np

from dreamer.config.env import MemoryMazeEnv
from dreamer.envs import headless
from dreamer.envs.base import BatchedEnv
from dreamer.envs.dm_adapter import FromDMEnv
from dreamer.envs.single import batch, check_task, finish

headless.choose()  # dm_control reads it when it is imported
with contextlib.redirect_stderr(io.StringIO()):  # gym complains of its own age
    from memory_maze import tasks

logging.getLogger("absl").setLevel(logging.ERROR)  # of a ball that rolls by itself

SIZES = {
    "9x9": tasks.memory_maze_9x9,
    "11x11": tasks.memory_maze_11x11,
    "13x13": tasks.memory_maze_13x13,
    "15x15": tasks.memory_maze_15x15,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "": {"image_only_obs": True},
    "-Vis": {"image_only_obs": True, "good_visibility": True},
    "-6CL": {"image_only_obs": True, "randomize_colors": True},
    "-HiFreq": {"image_only_obs": True, "control_freq": 40},
    "-ExtraObs": {"global_observables": True},
}
NAMES = {
    f"{size}{variant}": (maze, options)
    for variant, options in VARIANTS.items()
    for size, maze in SIZES.items()
}
TASKS = tuple(NAMES)


def make(config: MemoryMazeEnv, num_envs: int, seed: int, render: bool = False) -> BatchedEnv:
    """Makes the environments; see `registry.make`.

    Raises:
      UserError: the task is unknown, or nothing can draw on this machine.
    """
    check_task(config, "memory_maze", TASKS)
    headless.require("Memory Maze")
    return batch(functools.partial(_make_one, config), config, num_envs, seed, render)


def _make_one(config: MemoryMazeEnv) -> gymnasium.Env:
    maze, options = NAMES[config.task]

    def load(seed: int) -> Any:
        return Seen(maze(**options, seed=seed, camera_resolution=max(config.image_size)))

    # The generator of mazes takes a seed only when it is made, so every episode makes its own.
    return finish(FromDMEnv(load, render=lambda env: env.image), config)


class Seen:
    """A dm_env environment that keeps the last image, to show it to people."""

    def __init__(self, env: Any) -> None:
        self._env = env
        self.image = np.zeros(0, np.uint8)

    def reset(self) -> Any:
        return self._keep(self._env.reset())

    def step(self, action: Any) -> Any:
        return self._keep(self._env.step(action))

    def observation_spec(self) -> Any:
        return self._env.observation_spec()

    def action_spec(self) -> Any:
        return self._env.action_spec()

    def close(self) -> None:
        self._env.close()

    def _keep(self, time_step: Any) -> Any:
        seen = time_step.observation
        self.image = seen["image"] if isinstance(seen, dict) else seen
        return time_step
