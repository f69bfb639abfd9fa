"""The agent and the learner of a run, by its configuration."""

from typing import Any

import jax
import numpy as np

from dreamer.agents.interface import Agent
from dreamer.agents.registry import make_agent
from dreamer.config import Config
from dreamer.distributed import mesh
from dreamer.envs import registry
from dreamer.envs.base import Specs
from dreamer.errors import UserError
from dreamer.ops.random import purpose_key
from dreamer.replay import memory
from dreamer.rollout.driver import transition_spec
from dreamer.training import device_replay
from dreamer.training.device_learner import DeviceLearner
from dreamer.training.host_learner import HostLearner


def agent_that_fits(
    config: Config, specs: tuple[Specs, Specs], devices: list[jax.Device], runs: int = 1
) -> Agent:
    """The agent for specs of observations and actions, if training it can fit.

    Raises:
      UserError: its weights, or what it imagines in an update, need more than the memory there is.
    """
    agent = make_agent(config.agent, *specs, config.updates)
    size, rssm, settings = config.agent, config.agent.rssm, config.replay
    try:
        shapes = jax.eval_shape(agent.init, purpose_key(config.seed, "init"))
        weights = sum(leaf.size for leaf in jax.tree.leaves(shapes.params))
        state = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
    except OverflowError:  # a size beyond 2^63
        weights = state = 2**63
    starts = settings.batch_size * settings.batch_length // len(devices)
    feature = rssm.deter + rssm.stoch * (rssm.classes if rssm.latent == "categorical" else 1)
    imagined = starts * size.returns.imagination * feature * np.dtype(agent.dtype).itemsize
    limit = mesh.memory_limit(devices[0])
    usable = memory.available() // len(devices) if limit is None else limit
    of_size = f"size={config.size} with agent.units={size.units}, agent.depth={size.depth}, "
    for needed, what in (
        (
            runs * (state + 4 * weights),  # the gradients
            f"{of_size}agent.rssm.deter={rssm.deter}, agent.rssm.hidden={rssm.hidden}: "
            f"{weights:,} parameters",
        ),
        (
            runs * imagined,
            f"agent.returns.imagination={size.returns.imagination} from replay.batch_size="
            f"{settings.batch_size} times replay.batch_length={settings.batch_length} steps",
        ),
    ):
        if needed > usable:
            raise UserError(
                f"{what} need at least {memory.gib(needed)} of memory but {memory.gib(usable)} "
                "can be used on each device; choose smaller ones"
            )
    return agent


def agent_and_native_actions(config: Config, devices: list[jax.Device]) -> tuple[Agent, Any]:
    """The agent where no environment stays, and the environment's own action space, None where it
    has none: one is made for its spaces."""
    env = registry.make(config.env, 1, config.seed)
    try:
        specs = env.observation_spec(), env.action_spec()
        native = getattr(env, "native_actions", None)
    finally:
        env.close()
    return agent_that_fits(config, specs, devices), native


def make_learner(
    config: Config, agent: Agent, devices: list[jax.Device]
) -> HostLearner | DeviceLearner:
    """The learner whose replay is where `replay.where` says.

    auto takes the device where it has memory of its own, the capacity fits, and the environments
    can be spread over all devices.
    """
    choice, count = config.replay.where, len(devices)
    if not agent.single_phase:
        refuse_phases(agent, "replay.where=device", choice == "device")
        choice = "host"
    if choice == "auto":
        fits = device_replay.fits(config, transition_spec(agent), devices)
        spread = config.env.num_envs % count == 0
        choice = "device" if fits and spread and not config.replay.folder else "host"
    return (DeviceLearner if choice == "device" else HostLearner)(config, agent, devices)


def refuse_phases(agent: Agent, option: str, given: bool = True) -> None:
    """Refuses an option that is for agents of one phase, in which they act and learn.

    Raises:
      UserError: it is given, and the agent has other phases.
    """
    if given and not agent.single_phase:
        names = ", ".join(phase.name for phase in agent.phases)
        raise UserError(
            f"{option} is for agents that act and learn all the time, and agent.kind="
            f"{agent.config.kind} has phases ({names}); leave it out"
        )
