"""The suites by name.

A suite is a module with `TASKS`, the names of its tasks, and one of these, imported on first use:
- `make_env(config, render)`, which makes one gymnasium environment;
- `make(config, num_envs, seed, render)`, which makes a `BatchedEnv`;
- `make_simulator(config)`, which makes a `jax.simulators.Simulator`, if it is written in JAX.
"""

import functools
import importlib
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from dreamer.config import trust
from dreamer.config.env import Env
from dreamer.envs.base import BatchedEnv
from dreamer.envs.faults import attempt, story
from dreamer.envs.vector import VectorEnv
from dreamer.errors import EnvironmentFault, UserError, nearest

LISTED = 30  # tasks at most in a message


@dataclass(frozen=True)
class Suite:
    """The module of a suite, its package, and the command that installs the package."""

    module: str
    package: str
    install: str
    jax: bool = False  # written in JAX


def _extra(name: str, package: str, jax: bool = False, note: str = "") -> Suite:
    """A suite behind an extra of this project."""
    folder = "dreamer.envs.jax" if jax else "dreamer.envs"
    install = f"pip install 'dreamer[{name.replace('_', '-')}]'{note}"
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
    "navix": _extra("navix", "navix", jax=True, note=", with Python 3.12"),
    "brax": _extra("brax", "brax", jax=True),
    "playground": _extra("playground", "playground", jax=True),
    "jumanji": _extra("jumanji", "jumanji", jax=True),
}


def is_jax(config: Env) -> bool:
    """Whether the suite is written in JAX."""
    return config.suite in SUITES and SUITES[config.suite].jax


def make_jax(config: Env) -> Any:
    """Makes one environment written in JAX as pure functions, a `JaxEnv`.

    Raises:
      UserError: As `make`, or the suite is not written in JAX.
    """
    trust.require(config)
    if not is_jax(config):
        allowed = ", env=".join(name for name, suite in SUITES.items() if suite.jax)
        raise UserError(
            f"run.loop=device needs environments written in JAX, which env.suite={config.suite} is "
            f"not; set run.loop=host, or choose one of env={allowed}"
        )
    suite = _module(config.suite)
    _check_task(config, suite.TASKS)
    episodes = importlib.import_module("dreamer.envs.jax.episodes")
    return attempt(f"env.task={config.task} cannot be made:", episodes.make, suite, config)


def make(config: Env, num_envs: int, seed: int, render: bool = False) -> BatchedEnv:
    """Makes the environments of a configuration's section `env`.

    Args:
      config: Chooses the suite, the task and its options.
      num_envs: Environments stepped together (`config.num_envs` is the number for training).
      seed: All randomness of the environments derives from it.
      render: Whether `render` returns frames; slower to start, no slower to step.

    Raises:
      UserError: The suite or task is unknown, its package is not installed or fails, its spaces are
        not supported, or it names code that the user has not named, see `trust`.
    """
    env: BatchedEnv
    if is_jax(config):
        batched = importlib.import_module("dreamer.envs.jax.batched")
        env = batched.BatchedJax(make_jax(config), num_envs, seed, config.first)
        return env
    trust.require(config)
    suite = _module(config.suite)
    if config.suite != "gymnasium":  # which imports the packages of its ids
        _check_task(config, suite.TASKS)
    arguments = config, num_envs, seed, render
    cannot = f"env.task={config.task} cannot be made:"
    if hasattr(suite, "make"):
        env = attempt(cannot, suite.make, *arguments)
        return env
    maker = functools.partial(suite.make_env, config, render)
    try:
        env = attempt(cannot, VectorEnv, maker, *arguments)
    except UserError as error:
        if str(error).startswith("env."):  # it names the key at fault
            raise
        raise UserError(f"env.task={config.task}: {error}") from error
    return env


def _check_task(config: Env, tasks: Collection[str]) -> None:
    """Refuses a task that a suite lacks, naming the nearest."""
    task, suite = config.task, config.suite
    if task not in tasks:
        few = len(tasks) <= LISTED
        listing = ", ".join(tasks) if few else f"listed by python -m dreamer.envs {suite}"
        raise UserError(
            f"env.task={task} is no task of {suite}{nearest(task, tasks)}; tasks are {listing}"
        )


def tasks(name: str) -> list[str]:
    """The names of a suite's tasks.

    Raises:
      UserError: The suite is unknown or not installed.
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
