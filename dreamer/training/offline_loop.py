"""Learning from recorded episodes alone: nothing acts, so nothing new comes into the replay.

A step is an update here, for `run.steps` and for all that happens every so many steps.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from dreamer.config import Config
from dreamer.datasets.initial import NOTHING, Initial
from dreamer.distributed import mesh
from dreamer.envs.base import Restart
from dreamer.training.interfaces import Episodes
from dreamer.training.learners import agent_and_native_actions, make_learner, refuse_phases


class OfflineLoop:
    """A `Loop` whose iteration is one call of updates.

    Args:
      config: the whole configuration.
      devices: to train on.
    """

    where = "host"
    gauges: Mapping[str, float] = {}
    restarts: Sequence[Restart] = ()  # nothing acts
    phase = 0

    def __init__(self, config: Config, devices: list[jax.Device]) -> None:
        self._config = config
        self.agent, self.native_actions = agent_and_native_actions(config, devices)
        refuse_phases(self.agent, "run.offline=true")
        self.learner = make_learner(config, self.agent, devices)
        self.loaded = 0
        self._dispatched: jax.Array | None = None  # there when the last call is done

    @property
    def step(self) -> int:
        return self.learner.updates

    def start(self, initial: Initial = NOTHING) -> None:
        self.learner.start(initial)
        self.loaded = initial.steps(self._config.env.num_envs)

    def advance(self, until: int) -> Episodes:
        """Dispatches one call of updates, when the one before the last is done: a request to stop
        does not wait for more."""
        before = self._dispatched
        self.learner.train(self._config.run.updates_per_call)
        jax.block_until_ready(before)
        updates = mesh.unreplicate(self.learner.state.updates)
        self._dispatched = updates + 0  # the state is donated
        return []

    def drain(self) -> Episodes:
        return []

    def get_counters(self) -> dict[str, Any]:
        return {"offline": True, "loaded": self.loaded, "learner": self.learner.get_counters()}

    def get_arrays(self) -> tuple[dict[str, Any], bool]:
        return self.learner.get_arrays()

    def set_state(self, state: Any, arrays: dict[str, Any], counters: dict[str, Any]) -> str:
        self.loaded = counters["loaded"]
        lost = self.learner.set_state(state, arrays, counters["learner"])
        return f"not restored: {', '.join(lost)}" if lost else ""

    def close(self) -> None:
        self.learner.close()
