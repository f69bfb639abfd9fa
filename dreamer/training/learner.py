"""The base class of learners: replay, and learning from it."""

from abc import ABC, abstractmethod
from typing import Any

import jax

from dreamer.agents.interface import Agent
from dreamer.config import Config
from dreamer.datasets.initial import Initial
from dreamer.distributed import mesh
from dreamer.logs.metrics import LateMetrics, Reading
from dreamer.ops.random import purpose_key


class Learner(ABC):
    """Replay, and learning from it. `start` or `set_state` comes first.

    Args:
      config: the whole configuration.
      agent: networks.
      devices: to train on.
    """

    stored: str  # where the replay is, in words
    metrics: LateMetrics

    def __init__(self, config: Config, agent: Agent, devices: list[jax.Device]) -> None:
        self.agent, self.devices = agent, devices
        state = agent.init(purpose_key(config.seed, "init"))
        # The agent's state on the devices, also the pattern to restore one.
        self.state: Any = mesh.replicate(state, devices)
        self.updates = 0  # gradient updates dispatched so far
        self._owed, self._per_call = 0, config.run.updates_per_call

    @property
    def params(self) -> Any:
        """Parameters after all dispatched updates, on the first device."""
        return mesh.unreplicate(self.state.params)

    def start(self, initial: Initial) -> None:
        """Takes the initial data and weights of the run."""
        if initial.params is not None:
            self.replace(self.agent.state_of(initial.params))

    def replace(self, state: Any) -> None:
        """Continues from another state."""
        self.state = mesh.replicate(state, self.devices)

    @abstractmethod
    def add(self, row: dict[str, Any]) -> None:
        """Adds one step of every environment to the replay."""

    def train(self, owed: int) -> None:
        """Dispatches as many whole calls of K updates as are owed, keeping the rest for later."""
        self._owed += owed
        while self._owed >= self._per_call:
            self._dispatch()

    @abstractmethod
    def _dispatch(self) -> None:
        """Dispatches one call, and counts it before anything else may fail."""

    def _count(self, metrics: jax.Array) -> None:
        """Counts a call that was dispatched."""
        self.updates += self._per_call
        self._owed -= self._per_call
        self.metrics.add(metrics)

    def read_metrics(self, wait: bool = False) -> Reading:
        """Metrics since the last reading, see `LateMetrics.read`."""
        return self.metrics.read(wait)

    @abstractmethod
    def sequences(self, count: int, seed: tuple[int, ...]) -> dict[str, Any] | None:
        """Replayed sequences, leaves [count, T + 1, ...], which change nothing; None while there
        are none."""

    def get_counters(self) -> dict[str, int]:
        """Updates done and owed."""
        return {"updates": self.updates, "owed": self._owed}

    @abstractmethod
    def get_arrays(self) -> tuple[dict[str, Any], bool]:
        """Replay and pending latents; and whether the replay is a copy. One that is not must be
        written before anything changes it."""

    def set_state(self, state: Any, arrays: dict[str, Any], counters: dict[str, int]) -> list[str]:
        """Restores what any learner saved; takes the replay out of `arrays`. Returns what cannot
        be restored exactly."""
        self.replace(state)
        self.updates, self._owed = counters["updates"], counters["owed"]
        return []

    def close(self) -> None:  # noqa: B027, which most learners need not override
        """Ends threads."""
