"""What loops have in common whose replay and learner are a store, driven from the host."""

from typing import Any

import jax

from dreamer.agent.agent import Agent, State
from dreamer.config import Config
from dreamer.envs import registry
from dreamer.run import device_memory
from dreamer.run.device_store import DeviceStore
from dreamer.run.host_store import HostStore
from dreamer.run.metrics import Reading
from dreamer.run.policy import transition_spec


class StoreLoop:
    """A loop with its `store`."""

    where = "host"
    native_actions: Any = None  # the environment's own action space, where it tells
    store: HostStore | DeviceStore

    @property
    def stored(self) -> str:
        """Where the replay lies."""
        return self.store.where

    @property
    def updates(self) -> int:
        """Gradient updates dispatched so far."""
        return self.store.updates

    @property
    def params(self) -> Any:
        """Parameters after them, on the first device."""
        return self.store.params

    @property
    def state(self) -> State:
        """What learning changes, for a checkpoint and as the pattern to restore one."""
        return self.store.state

    def drain(self) -> list[tuple[float, int]]:
        """Episodes that ended but were not yet told: none."""
        return []

    def read_metrics(self, wait: bool = False) -> Reading:
        """Those since the last reading, see `LateMetrics.read`."""
        return self.store.read_metrics(wait)

    def sequences(self, count: int, seed: tuple[int, ...]) -> dict[str, Any] | None:
        """Replayed sequences to look at, which change nothing; None while there are none."""
        return self.store.sequences(count, seed)


def make_agent(config: Config, devices: list[jax.Device]) -> tuple[Agent, Any]:
    """The agent where no environment stays, and the environment's own action space if it tells: one
    is made for its spaces."""
    env = registry.make(config.env, 1, config.seed)
    try:
        specs = env.observation_spec(), env.action_spec()
        native = getattr(env, "native_actions", None)
    finally:
        env.close()
    return device_memory.make_agent(config, specs, devices), native


def make_store(config: Config, agent: Agent, devices: list[jax.Device]) -> HostStore | DeviceStore:
    """The replay that `replay.where` chooses.

    auto takes the device where it has memory of its own, the capacity fits, and the environments
    can be spread over all devices.
    """
    choice, count = config.replay.where, len(devices)
    if choice == "auto":
        fits = device_memory.fits(config, transition_spec(agent), devices)
        spread = config.env.num_envs % count == 0
        choice = "device" if fits and spread and not config.replay.folder else "host"
    return (DeviceStore if choice == "device" else HostStore)(config, agent, devices)
