"""Environments by the name of their suite."""

from collections.abc import Mapping
from typing import Any

from dreamer.api import arguments
from dreamer.cli import compose, groups
from dreamer.config import Config, trust
from dreamer.config.explain import validate
from dreamer.config.keys import ALIASES
from dreamer.envs import registry
from dreamer.envs.base import BatchedEnv
from dreamer.errors import UserError


def make_env(
    suite: str,
    task: str | None = None,
    *,
    seed: int = 0,
    num_envs: int = 1,
    render: bool = False,
    **keys: Any,
) -> BatchedEnv:
    """Makes environments that step together, see `dreamer.envs.base.BatchedEnv`.

    What is named here may run code from then on, also where a saved file names the same.

    Args:
      suite: a group such as atari100k, with its settings, or else a suite with its defaults.
      task: name of the task; None is the suite's first choice.
      seed: all randomness of the environments derives from it.
      num_envs: how many.
      render: whether `render()` gives frames.
      keys: any key of the configuration's section `env`, as in image_size=(96, 96).

    Raises:
      UserError: no such suite, task or key, a value that is not allowed, two that name the
        environment, or a missing package.
    """
    seed = arguments.seed(seed)
    given = {"num_envs": num_envs, **_by_name(task, keys)}
    if suite in groups.choices("env") or suite not in registry.SUITES:
        section = compose.compose([f"env={suite}"]).env.model_dump()
    else:
        section = {"suite": suite}
    config = validate(Config, {"env": section | given})
    trust.allow(config.env)
    return registry.make(config.env, num_envs, seed, render)


def _by_name(task: str | None, keys: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of `env`, and the task as one of them.

    Raises:
      UserError: the environment is named twice.
    """
    given = {"env.task": task} if task else {}
    for key, value in keys.items():
        path = ALIASES.get(f"env.{key}", f"env.{key}")
        if path in given:
            raise UserError(
                f"{path} is given twice: {given[path]} and {key}={value}; keep one of them"
            )
        given[path] = value
    compose.refuse_two_names(given)
    return {path.removeprefix("env."): value for path, value in given.items()}
