"""bsuite: small experiments, each of one ability: memory, exploration, credit, noise, scale.

Source: Osband et al. 2020, "Behaviour Suite for Reinforcement Learning". What bsuite calls the end
of an episode is terminal: its environments tell of no time limit.
"""

import functools
from typing import Any

import dm_env
import gymnasium
import numpy as np
from bsuite import bsuite, sweep

from dreamer.config.env import BsuiteEnv
from dreamer.envs.base import BatchedEnv
from dreamer.envs.dm_adapter import FromDMEnv
from dreamer.envs.single import batch, check_task, finish
from dreamer.errors import UserError

TASKS = tuple(sweep.SWEEP)


def make(config: BsuiteEnv, num_envs: int, seed: int, render: bool = False) -> BatchedEnv:
    """Makes the environments; see `registry.make`. They draw no frames.

    Raises:
      UserError: the task is unknown, or its data cannot be fetched.
    """
    check_task(config, "bsuite", TASKS)
    try:
        return batch(functools.partial(_make_one, config), config, num_envs, seed, render)
    except OSError as error:
        raise UserError(
            f"env.task={config.task} fetches its data from the net, which failed: {error}; choose "
            "an experiment other than mnist, or put the data into /tmp/mnist"
        ) from error


def _make_one(config: BsuiteEnv) -> gymnasium.Env:
    name = config.task.split(sweep.SEPARATOR)[0]

    def load(seed: int) -> dm_env.Environment:
        env: dm_env.Environment = bsuite.load(name, sweep.SETTINGS[config.task])
        return env

    return finish(FromDMEnv(load, _reseed), config)


def _reseed(env: Any, seed: int) -> None:
    """Of the environment and of the noise around it. What makes the task the one that it is, such
    as the actions' meaning in deep_sea, is drawn by settings of its own and stays."""
    layer = env
    for number in range(10):
        generator = vars(layer).get("_rng")
        if isinstance(generator, np.random.RandomState):
            generator.seed((seed + number) % 2**32)
        layer = vars(layer).get("_env")
        if layer is None:
            return
