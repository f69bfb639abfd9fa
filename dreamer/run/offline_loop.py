"""Learning from recorded episodes alone: nothing acts, so nothing new comes into the replay.

A step is an update here, for `run.steps` and for all that happens every so many steps.
"""

from collections.abc import Sequence
from typing import Any

import jax

from dreamer import parallel
from dreamer.agent import agent as agents
from dreamer.agent.agent import State
from dreamer.config import Config
from dreamer.envs import registry
from dreamer.envs.base import Restart
from dreamer.run.beginning import NOTHING, Beginning
from dreamer.run.host_loop import make_store
from dreamer.run.metrics import Reading


class OfflineLoop:
    """The counterpart of `HostLoop`, whose turn is one call of updates.

    Args:
      config: the whole configuration.
      devices: to train on.
    """

    where = "host"
    restarts: Sequence[Restart] = ()  # nothing acts

    def __init__(self, config: Config, devices: list[jax.Device]) -> None:
        self._config = config
        env = registry.make(config.env, 1, config.seed)  # for its spaces
        try:
            specs = env.observation_spec(), env.action_spec()
        finally:
            env.close()
        self.agent = agents.make_agent(config.agent, *specs)
        self.store = make_store(config, self.agent, devices)
        self.loaded = 0  # steps in replay
        self._dispatched: jax.Array | None = None  # there when the last call is done

    @property
    def step(self) -> int:
        """Gradient updates dispatched so far."""
        return self.store.updates

    @property
    def updates(self) -> int:
        """The same."""
        return self.store.updates

    @property
    def stored(self) -> str:
        """Where the replay lies."""
        return self.store.where

    @property
    def params(self) -> Any:
        """Parameters after all dispatched updates, on the first device."""
        return self.store.params

    @property
    def state(self) -> State:
        """What learning changes, for a checkpoint and as the pattern to restore one."""
        return self.store.state

    def start(self, beginning: Beginning = NOTHING) -> None:
        """Takes the episodes, which there must be."""
        self.store.start(beginning)
        self.loaded = beginning.steps(self._config.env.num_envs)

    def turn(self) -> list[tuple[float, int]]:
        """Dispatches one call of updates, when the one before the last is done: whoever wants to
        stop does not wait for more. No episode ends."""
        before = self._dispatched
        self.store.train(self._config.run.updates_per_call)
        jax.block_until_ready(before)
        self._dispatched = parallel.unreplicate(self.state.updates) + 0  # the state is given away
        return []

    def drain(self) -> list[tuple[float, int]]:
        """Episodes that ended but were not yet told: none."""
        return []

    def read_metrics(self, wait: bool = False) -> Reading:
        """Those since the last reading, see `LateMetrics.read`."""
        return self.store.read_metrics(wait)

    def sequences(self, count: int, seed: tuple[int, ...]) -> dict[str, Any] | None:
        """Replayed sequences to look at, which change nothing."""
        return self.store.sequences(count, seed)

    def get_counters(self) -> dict[str, Any]:
        """What is needed to go on exactly beside `state` and `get_arrays()`, made of JSON types."""
        return {"offline": True, "loaded": self.loaded, "learner": self.store.get_counters()}

    def get_arrays(self) -> tuple[dict[str, Any], bool]:
        """Replay with its latents, and those still to be written back; whether it is a copy."""
        return self.store.get_arrays()

    def set_state(self, state: State, arrays: dict[str, Any], counters: dict[str, Any]) -> str:
        """Restores all three, and says what could not be restored exactly."""
        self.loaded = counters["loaded"]
        lost = self.store.set_state(state, arrays, counters["learner"])
        return f"not restored: {', '.join(lost)}" if lost else ""

    def close(self) -> None:
        """Ends the threads."""
        self.store.close()
