"""Meta-World: a robot arm at a table, one task with 50 goals to learn.

Source: Yu et al. 2019, "Meta-World"; its MT1 benchmark, where the goal is seen and one of 50 is
drawn for every episode. Episodes of 500 steps end by truncation, success does not end them.
"""

import functools
from typing import Any

import gymnasium

from dreamer.config.env import MetaworldEnv
from dreamer.envs import headless
from dreamer.envs.base import BatchedEnv
from dreamer.envs.single import batch, check_task, finish
from dreamer.envs.wrappers import Unbounded

headless.choose()
import metaworld  # noqa: E402
from metaworld.env_dict import ALL_V3_ENVIRONMENTS  # noqa: E402

TASKS = tuple(ALL_V3_ENVIRONMENTS)
GOALS = 0  # seed of the 50 goals: the same in every run
CAMERA = "corner2"
FRAME = 256  # height and width, pixels


def make(config: MetaworldEnv, num_envs: int, seed: int, render: bool = False) -> BatchedEnv:
    """Makes the environments; see `registry.make`.

    Raises:
      UserError: the task is unknown, or pixels are wanted where nothing can draw.
    """
    check_task(config, "metaworld", TASKS)
    if config.pixels:
        headless.require("env.pixels=true")
    drawn = config.pixels or (render and headless.can_draw())
    return batch(functools.partial(_make_one, config, drawn), config, num_envs, seed, render)


def _make_one(config: MetaworldEnv, drawn: bool) -> gymnasium.Env:
    options = {"render_mode": "rgb_array", "camera_name": CAMERA, "width": FRAME, "height": FRAME}
    env = metaworld.make_mt_envs(config.task, seed=GOALS, **(options if drawn else {}))
    # What it shows is outside of the bounds that it promises.
    return finish(headless.OwnContext(Unbounded(Seeded(env))), config, config.pixels)


class Seeded(gymnasium.Wrapper):
    """Meta-World takes a seed by a method of its own, and none at a reset."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            arm: Any = self.unwrapped
            arm.seed(seed)
        return self.env.reset()
