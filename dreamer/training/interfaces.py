"""What the trainer knows of a loop, and a loop of its learner."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from dreamer.agents.interface import Agent
from dreamer.datasets.initial import Initial
from dreamer.envs.base import Restart
from dreamer.logs.metrics import Reading

Episodes = list[tuple[float, int]]  # return and length of each that ended


class Learner(Protocol):
    """Replay, and learning from it."""

    stored: str  # where the replay is, in words
    updates: int  # gradient updates dispatched so far

    @property
    def state(self) -> Any:
        """The agent's state on the devices, also the pattern to restore one."""
        ...

    @property
    def params(self) -> Any:
        """Parameters after all dispatched updates, on the first device."""
        ...

    def read_metrics(self, wait: bool = False) -> Reading:
        """Metrics since the last reading, see `LateMetrics.read`."""
        ...

    def sequences(self, count: int, seed: tuple[int, ...]) -> dict[str, Any] | None:
        """Replayed sequences, leaves [count, T + 1, ...], which change nothing; None while there
        are none."""
        ...


class Loop(Protocol):
    """Environments, and a learner that learns from them. `start` or `set_state` comes first."""

    where: str  # the environments are: host or device
    agent: Agent
    phase: int  # number of the agent's phase
    native_actions: Any  # the environment's own action space, None where it has none
    loaded: int  # steps that were in the replay at the start

    @property
    def gauges(self) -> Mapping[str, float]:
        """What else is logged with the metrics of updates."""
        ...

    @property
    def learner(self) -> Learner: ...

    @property
    def step(self) -> int:
        """Environment steps so far, or updates where nothing acts."""
        ...

    @property
    def restarts(self) -> Sequence[Restart]:
        """Restarts of environments in this run, see `BatchedEnv`."""
        ...

    def start(self, initial: Initial) -> None:
        """Takes the initial data, and starts the first episodes."""
        ...

    def advance(self, until: int) -> Episodes:
        """One iteration on the host, or one compiled chunk, which ends at step `until` if it can.

        Returns:
          The episodes that ended; those of a chunk come one call late.

        Raises:
          EnvironmentFault: environments failed too often. What came before can be saved.
        """
        ...

    def drain(self) -> Episodes:
        """Episodes that ended and were not returned yet."""
        ...

    def get_counters(self) -> dict[str, Any]:
        """What resumes the loop exactly beside `learner.state` and `get_arrays()`, made of JSON
        types."""
        ...

    def get_arrays(self) -> tuple[dict[str, Any], bool]:
        """Replay, pending latents, the policy's carry and environments written in JAX; and whether
        they are copies. Those that are not must be written before anything changes them."""
        ...

    def set_state(self, state: Any, arrays: dict[str, Any], counters: dict[str, Any]) -> str:
        """Restores what any loop saved; returns what could not be restored exactly."""
        ...

    def close(self) -> None:
        """Ends environments, threads and actors."""
        ...
