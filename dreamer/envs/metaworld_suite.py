"""Meta-World: a robot arm at a table, one task with 50 goals to learn.

Source: Yu et al. 2019, "Meta-World"; its MT1 benchmark: the goal is observed, and every episode
draws one of 50. Episodes of 500 steps end by truncation, success does not end them.
"""

from typing import Any

import gymnasium

from dreamer.config.env import MetaworldEnv
from dreamer.envs import headless
from dreamer.envs.wrappers import finish, unbounded

headless.choose()
import metaworld  # noqa: E402
from metaworld.env_dict import ALL_V3_ENVIRONMENTS  # noqa: E402

TASKS = tuple(ALL_V3_ENVIRONMENTS)
GOALS = 0  # seed of the 50 goals: the same in every run
RENDERED = {"render_mode": "rgb_array", "camera_name": "corner2", "width": 256, "height": 256}


def make_env(config: MetaworldEnv, render: bool) -> gymnasium.Env:
    """Makes one environment.

    Raises:
      UserError: Nothing can draw the pixels.
    """
    if config.pixels:
        headless.require("env.pixels=true")
    drawn = config.pixels or (render and headless.can_draw())
    env = metaworld.make_mt_envs(config.task, seed=GOALS, **(RENDERED if drawn else {}))
    # Its observations are outside of the bounds of its space.
    return finish(headless.OwnContext(unbounded(Seeded(env))), config, config.pixels)


class Seeded(gymnasium.Wrapper):
    """Seeds Meta-World at a reset: it takes a seed only by a method of its own."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            arm: Any = self.unwrapped
            arm.seed(seed)
        return self.env.reset()
