"""Learning from recorded episodes alone: nothing acts, so the replay does not change.

A step is an update here, for `run.steps` and for everything that happens every so many steps.
"""

from typing import Any

import jax

from dreamer.config import Config
from dreamer.distributed import mesh
from dreamer.training.loop import Episodes, Loop, make_learner, spaces


class OfflineLoop(Loop):
    """A loop whose iteration is one call of updates.

    Args:
      config: the whole configuration.
      devices: to train on.
    """

    def __init__(self, config: Config, devices: list[jax.Device]) -> None:
        specs, self.native_actions = spaces(config)
        super().__init__(config, devices, specs, "run.offline=true")
        self.learner = make_learner(config, self.agent, devices)
        self._dispatched: jax.Array | None = None  # available when the last call is done

    def advance(self, until: int) -> Episodes:
        """Dispatches one call of updates, after waiting for the call before the last: a request to
        stop does not wait for more."""
        before = self._dispatched
        self.learner.train(self._config.run.updates_per_call)
        self.step = self.learner.updates
        jax.block_until_ready(before)
        updates = mesh.unreplicate(self.learner.state.updates)
        self._dispatched = updates + 0  # the state is donated
        return []

    def get_counters(self) -> dict[str, Any]:
        return {"offline": True, "loaded": self.loaded, "learner": self.learner.get_counters()}

    def set_state(self, state: Any, arrays: dict[str, Any], counters: dict[str, Any]) -> str:
        note = super().set_state(state, arrays, counters)
        self.step = self.learner.updates
        return note
