"""The base class of loops, and the agent and the learner that a configuration chooses for them."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any

import jax
import numpy as np

from dreamer.agents.interface import Agent
from dreamer.agents.registry import make_agent
from dreamer.config import Config
from dreamer.datasets.initial import NOTHING, Initial
from dreamer.distributed import mesh
from dreamer.envs import registry
from dreamer.envs.base import Restart, Specs
from dreamer.errors import UserError
from dreamer.ops.random import purpose_key
from dreamer.replay import memory
from dreamer.rollout.driver import transition_spec
from dreamer.training import device_replay
from dreamer.training.device_learner import DeviceLearner
from dreamer.training.host_learner import HostLearner
from dreamer.training.learner import Learner

Episodes = list[tuple[float, int]]  # return and length of each that ended


class Loop(ABC):
    """Environments, and a learner that learns from them. `start` or `set_state` comes first.

    Args:
      config: the whole configuration.
      devices: to train on.
      specs: of observations and actions.
      option: one that is for agents of one phase only, "" if none is set.

    Raises:
      UserError: the agent does not fit into memory, or not together with the option.
    """

    where = "host"  # the environments are: host or device
    native_actions: Any = None  # the environment's own action space, None where it has none
    learner: Learner
    phase = 0  # number of the agent's phase
    gauges: Mapping[str, float] = {}  # other metrics, logged with those of updates

    def __init__(
        self,
        config: Config,
        devices: list[jax.Device],
        specs: tuple[Specs, Specs],
        option: str = "",
    ) -> None:
        self._config, self._num_envs = config, config.env.num_envs
        self.agent = agent_that_fits(config, specs, devices)
        refuse_phases(self.agent, option)
        self.step = 0  # environment steps so far, or updates where nothing acts
        self.loaded = 0  # steps that were in the replay at the start

    @property
    def restarts(self) -> Sequence[Restart]:
        """Restarts of environments in this run, see `BatchedEnv`."""
        return ()

    def start(self, initial: Initial = NOTHING) -> None:
        """Takes the initial data, and starts the first episodes."""
        self.learner.start(initial)
        self.loaded = initial.steps(self._num_envs)

    @abstractmethod
    def advance(self, until: int) -> Episodes:
        """One iteration on the host, or one compiled chunk, which ends at step `until` if it can.

        Returns:
          The episodes that ended; those of a chunk come one call late.

        Raises:
          EnvironmentFault: environments failed too often. What came before can be saved.
        """

    def drain(self) -> Episodes:
        """Episodes that ended and were not returned yet."""
        return []

    def get_counters(self) -> dict[str, Any]:
        """Everything that resumes the loop exactly beside `learner.state` and `get_arrays()`, made
        of JSON types."""
        return {
            "step": self.step,
            "loaded": self.loaded,
            "phase": self.phase,
            "learner": self.learner.get_counters(),
        }

    def get_arrays(self) -> tuple[dict[str, Any], bool]:
        """Replay, pending latents, the policy's carry and environments written in JAX; and whether
        they are copies. Those that are not must be written before anything changes them."""
        return self.learner.get_arrays()

    def set_state(self, state: Any, arrays: dict[str, Any], counters: dict[str, Any]) -> str:
        """Restores what any loop saved; returns a note on what cannot be restored exactly."""
        self.step, self.loaded = counters.get("step", 0), counters["loaded"]
        lost = self.learner.set_state(state, arrays, counters["learner"])
        return f"not restored: {', '.join(lost)}" if lost else ""

    def close(self) -> None:
        """Ends environments, threads and actors."""
        self.learner.close()


def spaces(config: Config) -> tuple[tuple[Specs, Specs], Any]:
    """Specs of observations and actions, and the environment's own action space, None where it has
    none: of an environment made for this alone."""
    with closing(registry.make(config.env, 1, config.seed)) as env:
        specs = env.observation_spec(), env.action_spec()
        return specs, getattr(env, "native_actions", None)


def agent_that_fits(config: Config, specs: tuple[Specs, Specs], devices: list[jax.Device]) -> Agent:
    """The agent for specs of observations and actions, if training it can fit.

    Raises:
      UserError: its weights, or what it imagines in an update, need more than the memory there is,
        with `run.seeds` those of all runs together.
    """
    agent = make_agent(config.agent, *specs, config.updates)
    size, rssm, settings, runs = config.agent, config.agent.rssm, config.replay, config.run.seeds
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
    parts = {
        f"size={config.size} with agent.units={size.units}, agent.depth={size.depth}, "
        f"agent.rssm.deter={rssm.deter}, agent.rssm.hidden={rssm.hidden}: {weights:,} parameters": (
            runs * (state + 4 * weights)  # the gradients
        ),
        f"agent.returns.imagination={size.returns.imagination} from replay.batch_size="
        f"{settings.batch_size} times replay.batch_length={settings.batch_length} steps": (
            runs * imagined
        ),
    }
    for part, needed in parts.items():
        if needed > usable:
            raise UserError(
                f"{part} need at least {memory.gib(needed)} of memory but {memory.gib(usable)} "
                "can be used on each device; choose smaller ones"
            )
    return agent


def make_learner(config: Config, agent: Agent, devices: list[jax.Device]) -> Learner:
    """The learner whose replay is where `replay.where` says.

    auto is the device if it has memory of its own, the capacity fits, and the environments can be
    spread over all devices.

    Raises:
      UserError: the replay does not fit there.
    """
    where = config.replay.where
    refuse_phases(agent, "replay.where=device" if where == "device" else "")
    possible = (
        agent.single_phase
        and not config.replay.folder
        and config.env.num_envs % len(devices) == 0
        and device_replay.fits(config, transition_spec(agent), devices)
    )
    on_device = where == "device" or (where == "auto" and possible)
    return (DeviceLearner if on_device else HostLearner)(config, agent, devices)


def refuse_phases(agent: Agent, option: str) -> None:
    """Refuses an option, unless it is "", where the agent does not act and learn in one phase.

    Raises:
      UserError: the agent has other phases.
    """
    if option and not agent.single_phase:
        names = ", ".join(phase.name for phase in agent.phases)
        raise UserError(
            f"{option} is for agents that act and learn all the time, and agent.kind="
            f"{agent.config.kind} has phases ({names}); leave it out"
        )
