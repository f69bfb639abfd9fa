"""The suites by name.

A suite is a module with `make(config, num_envs, seed, render)`, and `make_jax(config)` if it is
written in JAX, imported when it is used.
"""

import importlib
from dataclasses import dataclass
from typing import Any

from dreamer.config.env import Env
from dreamer.envs.base import BatchedEnv
from dreamer.errors import UserError, nearest


@dataclass(frozen=True)
class Suite:
    """Where a suite lives and how to install what it needs."""

    module: str
    install: str
    jax: bool = False  # written in JAX


SUITES = {
    "gymnasium": Suite("dreamer.envs.gymnasium_suite", "pip install gymnasium"),
    "atari": Suite("dreamer.envs.atari", 'pip install "gymnasium[atari]"'),
    **{
        name: Suite(f"dreamer.envs.jax.{name}_suite", f"pip install 'dreamer[{name}]'", jax=True)
        for name in ("gymnax", "craftax", "brax", "playground")
    },
    "navix": Suite(
        "dreamer.envs.jax.navix_suite", "pip install 'dreamer[navix]', with Python 3.12", jax=True
    ),
}


def make_jax(config: Env) -> Any:
    """Makes one environment written in JAX as pure functions, a `JaxEnv`.

    Raises:
      UserError: as `make`, or the suite is not written in JAX.
    """
    if not is_jax(config):
        raise UserError(
            f"run.loop=device needs environments written in JAX, which env.suite={config.suite} is "
            f"not; set run.loop=host, or choose one of env={', env='.join(_written_in_jax())}"
        )
    return _module(config).make_jax(config)


def is_jax(config: Env) -> bool:
    """Whether the suite is written in JAX."""
    suite = SUITES.get(config.suite)
    return suite is not None and suite.jax


def _written_in_jax() -> list[str]:
    return [name for name, suite in SUITES.items() if suite.jax]


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
    env: BatchedEnv = _module(config).make(config, num_envs, seed, render)
    return env


def _module(config: Env) -> Any:
    suite = SUITES.get(config.suite)
    if suite is None:
        raise UserError(
            f"env.suite={config.suite} is unknown{nearest(config.suite, SUITES)}; "
            f"suites are {', '.join(SUITES)}"
        )
    try:
        return importlib.import_module(suite.module)
    except ImportError as error:
        raise UserError(
            f"env.suite={config.suite} needs the package {error.name}, which is not installed; "
            f"{suite.install}"
        ) from error
