"""The suites by name.

A suite is a module with `TASKS`, the names of its tasks, `make(config, num_envs, seed, render)`,
and `make_jax(config)` if it is written in JAX, imported when it is used.
"""

import importlib
from dataclasses import dataclass
from typing import Any

from dreamer.config import trust
from dreamer.config.env import Env
from dreamer.envs.base import BatchedEnv
from dreamer.envs.faults import attempt, story
from dreamer.errors import EnvironmentFault, UserError, nearest


@dataclass(frozen=True)
class Suite:
    """Where a suite lives, the package that it is from, and how to install what it needs."""

    module: str
    package: str
    install: str
    jax: bool = False  # written in JAX


def _extra(name: str, package: str, jax: bool = False) -> Suite:
    """A suite behind an extra of this project."""
    folder = "dreamer.envs.jax" if jax else "dreamer.envs"
    install = f"pip install 'dreamer[{name.replace('_', '-')}]'"
    return Suite(f"{folder}.{name}_suite", package, install, jax)


SUITES = {
    "gymnasium": Suite("dreamer.envs.gymnasium_suite", "gymnasium", "pip install gymnasium"),
    "atari": Suite("dreamer.envs.atari", "ale-py", 'pip install "gymnasium[atari]"'),
    "dmc": _extra("dmc", "dm_control"),
    "crafter": _extra("crafter", "crafter"),
    "minigrid": _extra("minigrid", "minigrid"),
    "memory_maze": _extra("memory_maze", "memory-maze"),
    "metaworld": _extra("metaworld", "metaworld"),
    "vizdoom": _extra("vizdoom", "vizdoom"),
    "bsuite": _extra("bsuite", "bsuite"),
    "gymnax": _extra("gymnax", "gymnax", jax=True),
    "craftax": _extra("craftax", "craftax", jax=True),
    "navix": Suite(
        "dreamer.envs.jax.navix_suite",
        "navix",
        "pip install 'dreamer[navix]', with Python 3.12",
        jax=True,
    ),
    "brax": _extra("brax", "brax", jax=True),
    "playground": _extra("playground", "playground", jax=True),
    "jumanji": _extra("jumanji", "jumanji", jax=True),
}


def make_jax(config: Env) -> Any:
    """Makes one environment written in JAX as pure functions, a `JaxEnv`.

    Raises:
      UserError: as `make`, or the suite is not written in JAX.
    """
    trust.require(config)
    if not is_jax(config):
        raise UserError(
            f"run.loop=device needs environments written in JAX, which env.suite={config.suite} is "
            f"not; set run.loop=host, or choose one of env={', env='.join(_written_in_jax())}"
        )
    suite = _module(config.suite)
    return attempt(f"env.task={config.task} cannot be made:", suite.make_jax, config)


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
      UserError: The suite or task is unknown, its package is not installed, its spaces are not
        supported, or whatever the package raises; or it names code that the user has not named, see
        `trust`.
    """
    trust.require(config)
    suite = _module(config.suite)
    cannot = f"env.task={config.task} cannot be made:"
    env: BatchedEnv = attempt(cannot, suite.make, config, num_envs, seed, render)
    return env


def tasks(name: str) -> list[str]:
    """The names of a suite's tasks.

    Raises:
      UserError: the suite is unknown or not installed.
    """
    return list(_module(name).TASKS)


def _module(name: str) -> Any:
    suite = SUITES.get(name)
    if suite is None:
        raise UserError(
            f"env.suite={name} is unknown{nearest(name, SUITES)}; suites are {', '.join(SUITES)}"
        )
    try:
        return attempt(
            f"env.suite={name} cannot be imported:", importlib.import_module, suite.module
        )
    except EnvironmentFault as error:
        cause = error.__cause__
        if not isinstance(cause, ImportError):
            raise
        lacks = f"needs the package {cause.name}, which is not installed"
        if not isinstance(cause, ModuleNotFoundError):
            lacks = f"cannot be imported: {story(cause)}"
        raise UserError(f"env.suite={name} {lacks}; {suite.install}") from cause
