"""Memory Maze: a maze of coloured balls, one colour after the other to be found, from images.

Source: Pasukonis et al. 2022, "Evaluating Long-Term Memory in 3D Mazes". The border of the image
has the colour to find. Running out of time is a truncation; nothing else ends an episode.
"""

import contextlib
import io
import logging
from typing import Any

import gymnasium

from dreamer.config.env import MemoryMazeEnv
from dreamer.envs import headless
from dreamer.envs.dm_adapter import FromDMEnv
from dreamer.envs.wrappers import finish

headless.choose()  # dm_control reads it when it is imported
with contextlib.redirect_stderr(io.StringIO()):  # gym warns that it is unmaintained
    from memory_maze import tasks

logging.getLogger("absl").setLevel(logging.ERROR)  # it warns of a ball that rolls by itself

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


def make_env(config: MemoryMazeEnv, render: bool) -> gymnasium.Env:
    """Makes one environment, which renders its last observation.

    Raises:
      UserError: Nothing can draw on this machine.
    """
    headless.require("Memory Maze")
    maze, options = NAMES[config.task]

    def load(seed: int) -> Any:
        return maze(**options, seed=seed, camera_resolution=max(config.image_size))

    def draw(env: Any, observation: Any) -> Any:
        return observation["image"] if isinstance(observation, dict) else observation

    # The generator of mazes takes a seed only at construction, so there is no reseed.
    return finish(FromDMEnv(load, render=draw), config)
