"""bsuite: small experiments, each of one ability: memory, exploration, credit, noise, scale.

Source: Osband et al. 2020, "Behaviour Suite for Reinforcement Learning". Every end of an episode is
terminal: bsuite's environments do not mark time limits.
"""

from typing import Any

import dm_env
import gymnasium
import numpy as np
from bsuite import bsuite, sweep

from dreamer.config.env import BsuiteEnv
from dreamer.envs.dm_adapter import FromDMEnv
from dreamer.envs.wrappers import finish
from dreamer.errors import UserError

TASKS = tuple(sweep.SWEEP)


def make_env(config: BsuiteEnv, render: bool) -> gymnasium.Env:
    """Makes one environment, which draws no frames.

    Raises:
      UserError: Its data cannot be downloaded.
    """
    name = config.task.split(sweep.SEPARATOR)[0]

    def load(seed: int) -> dm_env.Environment:
        env: dm_env.Environment = bsuite.load(name, sweep.SETTINGS[config.task])
        return env

    try:
        return finish(FromDMEnv(load, _reseed), config)
    except OSError as error:
        raise UserError(
            f"env.task={config.task}: its data cannot be downloaded: {error}; choose an experiment "
            "other than mnist, or put the data into /tmp/mnist"
        ) from error


def _reseed(env: Any, seed: int) -> None:
    """Seeds the environment and the noise wrappers around it.

    What defines the task, such as the meaning of actions in deep_sea, has seeds of its own.
    """
    layer = env
    for number in range(10):
        generator = vars(layer).get("_rng")
        if isinstance(generator, np.random.RandomState):
            generator.seed((seed + number) % 2**32)
        layer = vars(layer).get("_env")
        if layer is None:
            return
