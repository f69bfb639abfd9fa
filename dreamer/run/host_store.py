"""Replay in host memory, or on disk, and learning from it."""

from pathlib import Path
from typing import Any

import jax

from dreamer.agent import agent as agents
from dreamer.agent.agent import Agent, State
from dreamer.config import Config
from dreamer.replay import host, memory
from dreamer.replay.filling import fill
from dreamer.run import paths
from dreamer.run.beginning import Beginning
from dreamer.run.learner import Learner
from dreamer.run.metrics import Reading
from dreamer.run.policy import transition_spec


class HostStore:
    """What the host loop remembers and learns.

    Args:
      config: the whole configuration.
      agent: networks.
      devices: to train on.

    Raises:
      UserError: the capacity does not fit.
    """

    def __init__(self, config: Config, agent: Agent, devices: list[jax.Device]) -> None:
        settings = config.replay
        self._agent = agent
        self.where = f"files of {settings.folder}" if settings.folder else "host memory"
        folder = paths.expand(settings.folder, "replay.folder") if settings.folder else None
        self.replay = _init(config, agent, folder)
        choice = settings.prefetch
        prefetch = choice == "thread" or (choice == "auto" and devices[0].platform != "cpu")
        per_call = config.run.updates_per_call
        self.learner = Learner(
            agent, devices, config.seed, settings.batch_size, per_call, prefetch=prefetch
        )

    @property
    def updates(self) -> int:
        """Gradient updates dispatched so far."""
        return self.learner.updates

    @property
    def params(self) -> Any:
        """Parameters after them, on the first device."""
        return self.learner.params

    @property
    def state(self) -> State:
        """What learning changes."""
        return self.learner.state

    def start(self, beginning: Beginning) -> None:
        """Takes what the run begins with."""
        if beginning.recording:
            fill(self.replay, beginning.recording.read(), beginning.recording.rows)
        if beginning.params is not None:
            state = agents.state_of(self._agent, beginning.params)
            self.learner.set_state(state, {}, self.learner.get_counters())

    def add(self, transition: dict[str, Any]) -> None:
        """Remembers one step of every environment."""
        self.learner.settle()
        host.add(self.replay, jax.device_get(transition))

    def train(self, owed: int) -> None:
        """Dispatches the updates owed."""
        self.learner.train(self.replay, owed)

    def read_metrics(self, wait: bool) -> Reading:
        """Those since the last reading, see `LateMetrics.read`."""
        return self.learner.read_metrics(wait)

    def sequences(self, count: int, seed: tuple[int, ...]) -> dict[str, Any] | None:
        """Replayed sequences to look at, see `sequences`."""
        self.learner.settle()
        return sequences(self.replay, count, seed)

    def get_counters(self) -> dict[str, int]:
        """Updates done and owed."""
        return self.learner.get_counters()

    def get_arrays(self) -> tuple[dict[str, Any], bool]:
        """Replay, pending latents and batches taken ahead; whether the replay is a copy.

        One too large to copy must be written before anything changes it.
        """
        self.learner.settle()
        copy = host.nbytes(self.replay) < 0.8 * memory.available()
        arrays = {
            "replay": host.get_state(self.replay, copy),
            "pending": self.learner.fetch_pending(),
            "ahead": self.learner.fetch_ahead(),
        }
        return arrays, copy

    def set_state(
        self, state: State, arrays: dict[str, Any], counters: dict[str, int]
    ) -> list[str]:
        """Restores what any store saved; takes the replay out of `arrays`. Says what was lost."""
        same_windows = host.counters_of(arrays["replay"])["length"] == self.replay.length
        pending, ahead = arrays["pending"], arrays.get("ahead")
        host.set_state(self.replay, arrays.pop("replay"))
        for name, windows in (("pending", pending), ("ahead", ahead)):
            if windows and same_windows:
                host.check_windows(self.replay, name, windows)
        lost = [] if same_windows or not pending else ["latents still to be written"]
        kept = self.learner.set_state(
            state, pending if same_windows else {}, counters, ahead if same_windows else None
        )
        if not kept or (ahead and not same_windows):
            lost.append("batches taken ahead")
        return lost

    def close(self) -> None:
        """Ends the thread."""
        self.learner.close()


def sequences(replay: host.Replay, count: int, seed: tuple[int, ...]) -> dict[str, Any] | None:
    """Replayed sequences, leaves [count, T + 1, ...], which change nothing; None while there are
    none."""
    if not host.num_items(replay):
        return None
    return host.sample(replay, seed, count, online=False)[1]


def _init(config: Config, agent: Agent, folder: Path | None) -> host.Replay:
    settings = config.replay
    spec, length = transition_spec(agent), settings.batch_length + 1
    num_envs = config.env.num_envs
    return host.init(spec, settings.capacity, num_envs, length, settings.online, folder)
