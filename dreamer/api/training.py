"""Training from a program, like `python -m dreamer.train`."""

import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from dreamer.agents import registry
from dreamer.agents.interface import Agent
from dreamer.api import arguments
from dreamer.api.agent import TrainedAgent, load
from dreamer.checkpoint import paths
from dreamer.cli import compose
from dreamer.config import Config
from dreamer.config.trust import OBJECT, settle
from dreamer.distributed import context
from dreamer.envs.base import BatchedEnv
from dreamer.system import runtime
from dreamer.system.signals import StopRequest
from dreamer.training import seeds
from dreamer.training import train as training
from dreamer.training.callbacks import Callback

Options = Config | Iterable[str] | Mapping[str, Any]


def train(
    options: Options = (), callbacks: Sequence[Callback] = (), trust: bool = False
) -> TrainedAgent:
    """Trains, or resumes the run in its folder, until `run.steps` or a request to stop.

    Ctrl-C and SIGTERM save and return, and so do callbacks that request a stop; the same call then
    resumes. Outside of the main thread, signals are not handled.

    Args:
      options: those of the command line, as ["env=atari100k", "env.task=pong"]; or a mapping such
        as {"env": "atari100k", "env.task": "pong", "run": {"steps": 5000}}, whose values are used
        exactly as they are; or a whole configuration.
      callbacks: called on steps, updates, episodes and checkpoints.
      trust: whether a whole configuration, which may be that of a saved run, may run code and reach
        outside of its folder although you have never named what it names.

    Returns:
      The agent of the newest checkpoint; with `run.seeds`, of the first run.

    Raises:
      UserError: an error that the user can fix, before anything is written.
    """
    arguments.expect(
        isinstance(callbacks, Sequence) and all(isinstance(each, Callback) for each in callbacks),
        *("callbacks", callbacks, "a list of objects of dreamer.Callback"),
    )
    config = _config(options, trust)
    context.refuse(config.run)
    in_main = threading.current_thread() is threading.main_thread()
    stop = StopRequest()
    with runtime.temporary(), stop if in_main else nullcontext():
        runtime.runtime(config.platform, config.xla_flags, keep_freed=False)
        training.train(config, stop, callbacks)
    first = config if config.run.seeds == 1 else seeds.split(config)[0]
    return load(paths.run_folder(first))


def make_agent(env: BatchedEnv, options: Options = (), trust: bool = False) -> Agent:
    """Makes an untrained agent for an environment, to use its parts in a program of one's own.

    Its methods `init`, `initial_carry`, `act` and `train_step` are pure functions of arrays, see
    `dreamer.agents.interface.Agent`.

    Args:
      env: whose observations and actions it is for.
      options: of sizes and of the section `agent`, in the forms that `train` takes.
      trust: see `train`.

    Raises:
      UserError: invalid options, or spaces that the agent does not support.
    """
    arguments.expect(isinstance(env, BatchedEnv), "env", env, "the result of dreamer.make_env")
    config = _config(options, trust)
    return registry.make_agent(
        config.agent, env.observation_spec(), env.action_spec(), config.updates
    )


def _config(options: Options, trusted: bool) -> Config:
    if isinstance(options, Config):
        settle(options, (), OBJECT, trusted)
        return options
    if isinstance(options, Mapping):
        return compose.compose({**options, "trust": True} if trusted else options)
    given = [options] if isinstance(options, str) else options
    given = list(given) if isinstance(given, Iterable) else [given]
    arguments.expect(
        all(isinstance(option, str) for option in given),
        *("options", options, "a list of texts KEY=VALUE, a mapping or a configuration"),
    )
    return compose.compose([*given, "trust=true"] if trusted else given)
