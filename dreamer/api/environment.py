"""Environments by the name of their suite."""

from typing import Any

from dreamer.api import arguments
from dreamer.cli import compose, groups
from dreamer.config import Config, trust
from dreamer.config.explain import validate
from dreamer.envs import registry
from dreamer.envs.base import BatchedEnv


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

    Code that is named here is allowed from then on, also where a saved file names it.

    Args:
      suite: a group such as atari100k, with its settings, or a suite with its defaults.
      task: name of the task; None is the default of the suite.
      seed: of all randomness of the environments.
      num_envs: number of environments.
      render: whether `render()` returns frames.
      keys: any key of the configuration's section `env`, as in image_size=(96, 96).

    Raises:
      UserError: no such suite, task or key, a value that is not allowed, two that name the
        environment, or a missing package.
    """
    seed = arguments.seed(seed)
    named = {"task": task} if task else {}
    pairs = [(f"env.{key}", value) for key, value in (*named.items(), *keys.items())]
    given = groups.each_once(pairs)
    compose.refuse_two_names(given)
    section: dict[str, Any] = {"suite": suite}
    if suite in groups.choices("env") or suite not in registry.SUITES:
        section = compose.compose([f"env={suite}"]).env.model_dump()
    section |= {"num_envs": num_envs}
    section |= {path.removeprefix("env."): value for path, value in given.items()}
    config = validate(Config, {"env": section})
    trust.allow(config.env)
    return registry.make(config.env, num_envs, seed, render)
