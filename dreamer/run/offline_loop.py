"""Learning from recorded episodes alone: nothing acts, so nothing new comes into the replay.

A step is an update here, for `run.steps` and for all that happens every so many steps.
"""

from collections.abc import Sequence
from typing import Any

import jax

from dreamer import parallel
from dreamer.agent.agent import State
from dreamer.config import Config
from dreamer.envs.base import Restart
from dreamer.run.beginning import NOTHING, Beginning
from dreamer.run.store_loop import StoreLoop, make_agent, make_store


class OfflineLoop(StoreLoop):
    """The counterpart of `HostLoop`, whose turn is one call of updates.

    Args:
      config: the whole configuration.
      devices: to train on.
    """

    restarts: Sequence[Restart] = ()  # nothing acts

    def __init__(self, config: Config, devices: list[jax.Device]) -> None:
        self._config = config
        self.agent, self.native_actions = make_agent(config, devices)
        self.store = make_store(config, self.agent, devices)
        self.loaded = 0  # steps in replay
        self._dispatched: jax.Array | None = None  # there when the last call is done

    @property
    def step(self) -> int:
        """Gradient updates dispatched so far."""
        return self.store.updates

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
