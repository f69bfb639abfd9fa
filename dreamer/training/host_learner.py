"""Learns from replay in host memory, or on disk: samples, dispatches updates, writes latents back
one call late."""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from dreamer.agents.interface import Agent, TrainStep
from dreamer.checkpoint import paths
from dreamer.config import Config
from dreamer.datasets.initial import Initial
from dreamer.distributed import hosts, mesh
from dreamer.logs.metrics import LateMetrics, Reading
from dreamer.ops.random import purpose_key
from dreamer.replay import host, memory
from dreamer.replay.filling import fill
from dreamer.rollout.driver import transition_spec

# index [K, B, 2] and latent leaves [K, B, T, ...], on the host or still [X, K, B/X, T, ...] on X
# devices
Pending = dict[str, Any]


@dataclass(frozen=True)
class Batches:
    """What one call learns from."""

    data: Any  # leaves [X, K, B/X, ...], on their way to X devices
    index: np.ndarray  # int64 [K, B, 2]


class HostLearner:
    """A `Learner` whose replay is on the host.

    Nothing waits for the update just dispatched: its latents are fetched after the next one is on
    its way, its metrics when they are read.

    With prefetching, a thread takes the batches of the next call from replay and sends them to the
    devices while this one runs. They are those that replay holds when this call is dispatched, so a
    run repeats; whatever changes the replay settles the thread before.

    Args:
      config: the whole configuration.
      agent: networks.
      devices: to train on.

    Raises:
      UserError: the capacity does not fit.
    """

    def __init__(self, config: Config, agent: Agent, devices: list[jax.Device]) -> None:
        settings = config.replay
        folder = paths.expand(settings.folder, "replay.folder") if settings.folder else None
        self.stored = f"files of {settings.folder}" if folder else "host memory"
        self.replay = host.init(
            transition_spec(agent),
            *(settings.capacity, config.env.num_envs, settings.batch_length + 1, settings.online),
            folder,
        )
        self.updates = 0
        self.state: Any = mesh.replicate(agent.init(purpose_key(config.seed, "init")), devices)
        self.params = mesh.unreplicate(self.state.params)
        self.pending: Pending | None = None
        self._measured: jax.Array | None = None  # metrics of these updates
        self._agent, self._devices = agent, devices
        self._batch_size, self._per_call = settings.batch_size, config.run.updates_per_call
        # Every host samples from its own replay.
        own = (hosts.index(),) if hosts.count() > 1 else ()
        self._seeds = (config.seed, *own)
        self._key = mesh.replicate(purpose_key(config.seed, "train"), devices)
        self._metrics = LateMetrics()
        self._owed = 0
        auto = settings.prefetch == "auto" and devices[0].platform != "cpu"
        prefetch = auto or settings.prefetch == "thread"
        self._thread = ThreadPoolExecutor(1, "prefetch") if prefetch else None
        self._ahead: Future[Batches] | None = None
        self.enter(agent.phases[0].train_step)

    def enter(self, train_step: TrainStep | None) -> None:
        """Learns by another function from here on, that of the next phase."""

        def step(state: Any, batch: Any, key: jax.Array, axis_name: str) -> tuple:
            assert train_step is not None, "this phase does not learn from replay"
            state, latent, metrics = train_step(state, batch, key, axis_name)
            return state, latent, self._metrics.stack(metrics)

        self._write_back()
        self._unread = self._metrics.read(wait=True)  # each phase has metrics of its own
        self._metrics = LateMetrics()
        self._update = mesh.compile_updates(step, self._devices)

    def start(self, initial: Initial) -> None:
        """Takes the initial data and weights of the run."""
        if initial.recording:
            fill(self.replay, initial.recording.read(), initial.recording.rows)
        if initial.params is not None:
            self.replace(self._agent.state_of(initial.params))

    def add(self, row: dict[str, Any]) -> None:
        """Adds one step of every environment to the replay."""
        self._settle()
        host.add(self.replay, jax.device_get(row))

    def train(self, owed: int) -> None:
        """Dispatches as many whole calls of K updates as are owed, keeping the rest for later."""
        self._owed += owed
        while self._owed >= self._per_call:
            batches = self._ahead.result() if self._ahead else self._take(self.updates)
            self.state, latents, metrics = self._update(self.state, batches.data, self._key)
            self._ahead = None
            self.params = mesh.unreplicate(self.state.params)
            self.updates += self._per_call
            self._owed -= self._per_call
            self._write_back()
            if self._thread is not None:
                self._ahead = self._thread.submit(self._take, self.updates)
            self.pending, self._measured = {"index": batches.index, "latent": latents}, metrics
            self._metrics.add(metrics)

    def _take(self, update: int) -> Batches:
        """The batches of a call that begins with this update."""
        sampled = [
            host.sample(self.replay, (*self._seeds, update + i), self._batch_size)[1:]
            for i in range(self._per_call)
        ]
        data = jax.tree.map(lambda *x: np.stack(x), *[batch for batch, _ in sampled])
        data = mesh.spread(mesh.split(data, self._devices), self._devices)
        return Batches(data, np.stack([index for _, index in sampled]))

    def _settle(self) -> None:
        """Waits until the thread has read what it reads of the replay."""
        if self._ahead is not None:
            self._ahead.result()

    def _write_back(self) -> None:
        pending = self._fetch_pending()
        for i, index in enumerate(pending.get("index", ())):
            latent = {key: value[i] for key, value in pending["latent"].items()}
            host.update(self.replay, index, latent)
        self.pending = None

    def _fetch_pending(self) -> Pending:
        """The latents still to be written, on the host; {} when there are none. Those of skipped
        updates are of windows in which nothing is written."""
        if self.pending is None:
            return {}
        if self._measured is not None:
            index = self.pending["index"].copy()
            index[self._metrics.skipped(self._measured), :, 1] = host.GONE
            latent = mesh.join(self.pending["latent"])
            self.pending, self._measured = {"index": index, "latent": latent}, None
        return self.pending

    def read_metrics(self, wait: bool = False) -> Reading:
        """Those since the last reading, see `LateMetrics.read`."""
        if self._unread.averages or self._unread.skipped:
            unread, self._unread = self._unread, Reading({})
            return unread
        return self._metrics.read(wait)

    def sequences(self, count: int, seed: tuple[int, ...]) -> dict[str, Any] | None:
        """Replayed sequences, leaves [count, T + 1, ...], which change nothing; None while there
        are none."""
        self._settle()
        if not host.num_items(self.replay):
            return None
        return host.sample(self.replay, seed, count, online=False)[1]

    def get_counters(self) -> dict[str, int]:
        """Updates done and owed."""
        return {"updates": self.updates, "owed": self._owed}

    def get_arrays(self) -> tuple[dict[str, Any], bool]:
        """Replay, pending latents and batches taken ahead; whether the replay is a copy.

        One too large to copy must be written before anything changes it.
        """
        self._settle()
        copy = host.nbytes(self.replay) < 0.8 * memory.available()
        ahead = {}
        if self._ahead is not None:
            batches = self._ahead.result()
            ahead = {"data": mesh.join(batches.data), "index": batches.index}
        replay = host.get_state(self.replay, copy)
        return {"replay": replay, "pending": self._fetch_pending(), "ahead": ahead}, copy

    def set_state(self, state: Any, arrays: dict[str, Any], counters: dict[str, int]) -> list[str]:
        """Restores what any learner saved; takes the replay out of `arrays`. Returns what was
        lost."""
        same_windows = host.counters_of(arrays["replay"])["length"] == self.replay.length
        host.set_state(self.replay, arrays.pop("replay"))
        pending, ahead = ((arrays.get(name) or {}) for name in ("pending", "ahead"))
        for name, windows in (("pending", pending), ("ahead", ahead)):
            if windows and same_windows:
                host.check_windows(self.replay, name, windows)
        self.replace(state)
        self.updates, self._owed = counters["updates"], counters["owed"]
        same_call = ahead and ahead["index"].shape[:2] == (self._per_call, self._batch_size)
        self._ahead = self.pending = self._measured = None
        if pending and same_windows:
            self.pending = pending | {"latent": self._own_dtypes(pending["latent"])}
        if same_call and same_windows:
            data = mesh.spread(mesh.split(ahead["data"], self._devices), self._devices)
            self._ahead = Future()
            self._ahead.set_result(Batches(data, ahead["index"]))
        lost = ["latents still to be written"] if pending and not self.pending else []
        return lost + (["batches taken ahead"] if ahead and not self._ahead else [])

    def replace(self, state: Any) -> None:
        """Learns on from another state."""
        self.state = mesh.replicate(state, self._devices)
        self.params = mesh.unreplicate(self.state.params)

    def _own_dtypes(self, latent: dict[str, Any]) -> dict[str, Any]:
        return {key: value.astype(self._agent.latent[key][1]) for key, value in latent.items()}

    def close(self) -> None:
        """Ends the thread."""
        if self._thread is not None:
            self._thread.shutdown()
