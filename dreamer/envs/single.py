"""From one gymnasium environment of a suite to the batch that its configuration asks for."""

from collections.abc import Collection

import gymnasium
from gymnasium.wrappers import TimeLimit

from dreamer.config.env import EnvBase
from dreamer.envs.base import BatchedEnv
from dreamer.envs.vector import Maker, VectorEnv
from dreamer.envs.wrappers import Pixels, Repeat, ResizeImages
from dreamer.errors import UserError, nearest

LISTED = 30  # tasks at most in a message


def finish(env: gymnasium.Env, config: EnvBase, pixels: bool = False) -> gymnasium.Env:
    """What every suite has: action repeat, a time limit in agent steps, and the size of images.

    Args:
      pixels: the rendered frame instead of the observation.
    """
    if config.repeat > 1:
        env = Repeat(env, config.repeat)
    if config.time_limit:
        env = TimeLimit(env, config.time_limit)
    return Pixels(env, config.image_size) if pixels else ResizeImages(env, config.image_size)


def batch(maker: Maker, config: EnvBase, num_envs: int, seed: int, render: bool) -> BatchedEnv:
    """`num_envs` of what `maker` makes.

    Raises:
      UserError: naming the task.
    """
    try:
        return VectorEnv(maker, config, num_envs, seed, render)
    except UserError as error:
        raise UserError(f"env.task={config.task}: {error}") from error


def check_task(config: EnvBase, suite: str, tasks: Collection[str]) -> None:
    """Refuses a task that a suite lacks.

    Raises:
      UserError: naming the nearest.
    """
    if config.task not in tasks:
        few = len(tasks) <= LISTED
        listing = ", ".join(tasks) if few else f"listed by python -m dreamer.envs {suite}"
        raise UserError(
            f"env.task={config.task} is no task of {suite}{nearest(config.task, tasks)}; "
            f"tasks are {listing}"
        )
