"""The DeepMind Control Suite, from vectors or from images, as published.

Source: Tassa et al. 2018, "DeepMind Control Suite"; names of tasks, cameras and the size of images
as in the reference implementation. Episodes of 1000 steps end by truncation.
"""

import logging
from typing import Any

import gymnasium
import numpy as np

from dreamer.config.env import DmcEnv
from dreamer.envs import headless
from dreamer.envs.dm_adapter import FromDMEnv
from dreamer.envs.wrappers import finish
from dreamer.errors import UserError

headless.choose()  # dm_control reads it when it is imported
from dm_control import suite  # noqa: E402

logging.getLogger("absl").setLevel(logging.ERROR)  # it warns of the format of old models

CUP = "ball_in_cup"
NAMES = {f"{domain.replace(CUP, 'cup')}_{task}": (domain, task) for domain, task in suite.ALL_TASKS}
TASKS = tuple(NAMES)
CAMERAS = {"quadruped": 2}  # the published ones; 0 of all other bodies
FRAME = (240, 320)  # height and width of rendered frames


def make_env(config: DmcEnv, render: bool) -> gymnasium.Env:
    """Makes one environment.

    Raises:
      UserError: The camera does not exist, or nothing can draw the images.
    """
    vision = config.view == "vision"
    if vision:
        headless.require("env.view=vision")
    domain, task = NAMES[config.task]
    camera = CAMERAS.get(domain, 0) if config.camera < 0 else config.camera
    height, width = config.image_size if vision else FRAME

    def load(seed: int) -> Any:
        return suite.load(domain, task, task_kwargs={"random": seed})

    def draw(env: Any, observation: Any) -> np.ndarray:
        frame: np.ndarray = env.physics.render(height, width, camera_id=camera)
        return frame

    count = load(0).physics.model.ncam if config.camera >= 0 else camera + 1
    if camera >= count:
        allowed = f"0 to {count - 1}" if count else "none"
        raise UserError(
            f"env.camera={config.camera}: {config.task} has the cameras {allowed}; choose one, or "
            "-1 for the published one"
        )
    drawn = vision or (render and headless.can_draw())
    return finish(FromDMEnv(load, _reseed, draw if drawn else None), config, pixels=vision)


def _reseed(env: Any, seed: int) -> None:
    """Seeds the only random generator of a task."""
    env.task.random.seed(seed)
