"""The DeepMind Control Suite, from vectors or from images, as published.

Source: Tassa et al. 2018, "DeepMind Control Suite"; names of tasks, cameras and the size of images
as in the reference implementation. Episodes of 1000 steps end by truncation.
"""

import functools
import logging
from typing import Any

import gymnasium
import numpy as np

from dreamer.config.env import DmcEnv
from dreamer.envs import headless
from dreamer.envs.base import BatchedEnv
from dreamer.envs.dm_adapter import FromDMEnv
from dreamer.envs.single import batch, check_task, finish
from dreamer.errors import UserError

headless.choose()  # dm_control reads it when it is imported
from dm_control import suite  # noqa: E402

logging.getLogger("absl").setLevel(logging.ERROR)  # of what models are written in an old way

CUP = "ball_in_cup"
NAMES = {f"{domain.replace(CUP, 'cup')}_{task}": (domain, task) for domain, task in suite.ALL_TASKS}
TASKS = tuple(NAMES)
CAMERAS = {"quadruped": 2}  # the published ones; of all other bodies the first
FRAME = (240, 320)  # height and width of frames for people


def make(config: DmcEnv, num_envs: int, seed: int, render: bool = False) -> BatchedEnv:
    """Makes the environments; see `registry.make`.

    Raises:
      UserError: the task or the camera is unknown, or nothing can draw the images.
    """
    check_task(config, "dmc", TASKS)
    if config.view == "vision":
        headless.require("env.view=vision")
    _check_camera(config)
    maker = functools.partial(_make_one, config, render and headless.can_draw())
    return batch(maker, config, num_envs, seed, render)


def _check_camera(config: DmcEnv) -> None:
    """Refuses a camera that the body lacks."""
    if config.camera < 0:
        return
    domain, task = NAMES[config.task]
    count = suite.load(domain, task).physics.model.ncam
    if config.camera >= count:
        allowed = f"0 to {count - 1}" if count else "none"
        raise UserError(
            f"env.camera={config.camera}: {config.task} has the cameras {allowed}; choose one, or "
            "-1 for the published one"
        )


def _make_one(config: DmcEnv, render: bool) -> gymnasium.Env:
    vision = config.view == "vision"
    domain, task = NAMES[config.task]
    camera = CAMERAS.get(domain, 0) if config.camera < 0 else config.camera
    height, width = config.image_size if vision else FRAME

    def load(seed: int) -> Any:
        return suite.load(domain, task, task_kwargs={"random": seed})

    def draw(env: Any) -> np.ndarray:
        frame: np.ndarray = env.physics.render(height, width, camera_id=camera)
        return frame

    env = FromDMEnv(load, _reseed, draw if vision or render else None)
    return finish(env, config, pixels=vision)


def _reseed(env: Any, seed: int) -> None:
    """Everything random in a task of the suite comes from one generator."""
    env.task.random.seed(seed)
