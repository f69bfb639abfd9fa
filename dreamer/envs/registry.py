"""The suites by name.

A suite is a module with `make(config, num_envs, seed, render)`, imported when it is used.
"""

import importlib
from dataclasses import dataclass

from dreamer.config import Env
from dreamer.envs.base import BatchedEnv
from dreamer.errors import UserError, nearest


@dataclass(frozen=True)
class Suite:
    """Where a suite lives and how to install what it needs."""

    module: str
    install: str


SUITES = {
    "gymnasium": Suite("dreamer.envs.gymnasium_suite", "pip install gymnasium"),
    "gymnax": Suite("dreamer.envs.jax.gymnax_suite", "pip install 'dreamer[gymnax]'"),
    "atari": Suite("dreamer.envs.atari", 'pip install "gymnasium[atari]"'),
}


def make(config: Env, num_envs: int, seed: int, render: bool = False) -> BatchedEnv:
    """Makes the environments of a configuration's section `env`.

    Args:
      config: Chooses the suite, the task and its options.
      num_envs: Environments stepped together (`config.num_envs` is the number for training).
      seed: All randomness of the environments derives from it.
      render: Whether `render` returns frames; slower to start, no slower to step.

    Raises:
      UserError: The suite or task is unknown, its package is not installed or its spaces are not
        supported.
    """
    suite = SUITES.get(config.suite)
    if suite is None:
        raise UserError(
            f"env.suite={config.suite} is unknown{nearest(config.suite, SUITES)}; "
            f"suites are {', '.join(SUITES)}"
        )
    try:
        module = importlib.import_module(suite.module)
    except ImportError as error:
        raise UserError(
            f"env.suite={config.suite} needs the package {error.name}, which is not installed; "
            f"{suite.install}"
        ) from error
    env: BatchedEnv = module.make(config, num_envs, seed, render)
    return env
