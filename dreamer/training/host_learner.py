"""Learns from replay in host memory, or on disk: samples, dispatches updates, writes latents back
one call late."""

from concurrent.futures import Future, ThreadPoolExecutor
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
from dreamer.training.learner import Learner

# index int64 [K, B, 2] and data, leaves [X, K, B/X, ...] on X devices: the batches of one call
Batches = dict[str, Any]
# index and latent, leaves [K, B, T, ...] on the host, or still [X, K, B/X, T, ...] on X devices
Pending = dict[str, Any]


class HostLearner(Learner):
    """A learner whose replay is on the host.

    Nothing waits for the update just dispatched: its latents are fetched after the next one is
    dispatched, its metrics when they are read.

    With prefetching, a thread takes the batches of the next call from replay and sends them to the
    devices while this one runs. They are those that replay holds when this call is dispatched, so a
    run repeats; whatever changes the replay waits for the thread first.

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
        super().__init__(config, agent, devices)
        self.pending: Pending | None = None
        self._measured: jax.Array | None = None  # metrics of these updates
        self._unread = Reading({})  # metrics of the phase before
        self._batch_size = settings.batch_size
        # Every host samples from its own replay.
        own = (hosts.index(),) if hosts.count() > 1 else ()
        self._seeds = (config.seed, *own)
        self._key = mesh.replicate(purpose_key(config.seed, "train"), devices)
        auto = settings.prefetch == "auto" and devices[0].platform != "cpu"
        prefetch = auto or settings.prefetch == "thread"
        self._thread = ThreadPoolExecutor(1, "prefetch") if prefetch else None
        self._ahead: Future[Batches] | None = None
        self._compile(agent.phases[0].train_step)

    def _compile(self, train_step: TrainStep | None) -> None:
        self.metrics = LateMetrics()

        def step(state: Any, batch: Any, key: jax.Array, axis_name: str) -> tuple:
            assert train_step is not None, "this phase does not learn from replay"
            state, latent, metrics = train_step(state, batch, key, axis_name)
            return state, latent, self.metrics.stack(metrics)

        self._update = mesh.compile_updates(step, self.devices)

    def enter(self, train_step: TrainStep | None) -> None:
        """Learns by another function from here on, that of the next phase."""
        self._write_back()
        self._unread = self.metrics.read(wait=True)  # each phase has metrics of its own
        self._compile(train_step)

    def start(self, initial: Initial) -> None:
        if initial.recording:
            fill(self.replay, initial.recording.read(), initial.recording.rows)
        super().start(initial)

    def add(self, row: dict[str, Any]) -> None:
        self._settle()
        host.add(self.replay, jax.device_get(row))

    def _dispatch(self) -> None:
        batches = self._ahead.result() if self._ahead else self._take(self.updates)
        self.state, latents, metrics = self._update(self.state, batches["data"], self._key)
        self._ahead = None
        self._count(metrics)
        self._write_back()
        if self._thread is not None:
            self._ahead = self._thread.submit(self._take, self.updates)
        self.pending, self._measured = {"index": batches["index"], "latent": latents}, metrics

    def _take(self, update: int) -> Batches:
        """The batches of a call that starts with this update."""
        sampled = [
            host.sample(self.replay, (*self._seeds, update + i), self._batch_size)[1:]
            for i in range(self._per_call)
        ]
        data = jax.tree.map(lambda *x: np.stack(x), *[batch for batch, _ in sampled])
        return self._sent(data, np.stack([index for _, index in sampled]))

    def _sent(self, data: Any, index: np.ndarray) -> Batches:
        """Sends sequences [K, B, ...] to the devices."""
        return {"data": mesh.spread(mesh.split(data, self.devices), self.devices), "index": index}

    def _settle(self) -> None:
        """Waits until the thread has read the replay."""
        if self._ahead is not None:
            self._ahead.result()

    def _write_back(self) -> None:
        pending = self._fetch_pending()
        for i, index in enumerate(pending.get("index", ())):
            host.update(self.replay, index, {key: x[i] for key, x in pending["latent"].items()})
        self.pending = None

    def _fetch_pending(self) -> Pending:
        """The latents still to be written, on the host; {} when there are none. Latents of skipped
        updates belong to windows in which nothing is written."""
        if self.pending is None:
            return {}
        if self._measured is not None:
            index = self.pending["index"].copy()
            index[self.metrics.skipped(self._measured), :, 1] = host.GONE
            latent = mesh.join(self.pending["latent"])
            self.pending, self._measured = {"index": index, "latent": latent}, None
        return self.pending

    def read_metrics(self, wait: bool = False) -> Reading:
        unread, self._unread = self._unread, Reading({})
        return unread if unread.averages or unread.skipped else super().read_metrics(wait)

    def sequences(self, count: int, seed: tuple[int, ...]) -> dict[str, Any] | None:
        self._settle()
        if not host.num_items(self.replay):
            return None
        return host.sample(self.replay, seed, count, online=False)[1]

    def get_arrays(self) -> tuple[dict[str, Any], bool]:
        """Replay, pending latents and batches taken ahead; whether the replay is a copy, for which
        there may be no memory."""
        ahead = {}
        if self._ahead is not None:
            batches = self._ahead.result()
            ahead = batches | {"data": mesh.join(batches["data"])}
        copy = host.nbytes(self.replay) < 0.8 * memory.available()
        replay = host.get_state(self.replay, copy)
        return {"replay": replay, "pending": self._fetch_pending(), "ahead": ahead}, copy

    def set_state(self, state: Any, arrays: dict[str, Any], counters: dict[str, int]) -> list[str]:
        same_windows = host.counters_of(arrays["replay"])["length"] == self.replay.length
        host.set_state(self.replay, arrays.pop("replay"))
        pending, ahead = ((arrays.get(name) or {}) for name in ("pending", "ahead"))
        for name, windows in (("pending", pending), ("ahead", ahead)):
            if windows and same_windows:
                host.check_windows(self.replay, name, windows)
        lost = super().set_state(state, arrays, counters)
        self._ahead = self.pending = self._measured = None
        if pending and same_windows:
            dtypes = {key: dtype for key, (_, dtype) in self.agent.latent.items()}
            latent = {key: x.astype(dtypes[key]) for key, x in pending["latent"].items()}
            self.pending = pending | {"latent": latent}
        elif pending:
            lost.append("latents still to be written")
        same_call = ahead and ahead["index"].shape[:2] == (self._per_call, self._batch_size)
        if same_call and same_windows:
            self._ahead = Future()
            self._ahead.set_result(self._sent(ahead["data"], ahead["index"]))
        elif ahead:
            lost.append("batches taken ahead")
        return lost

    def close(self) -> None:
        if self._thread is not None:
            self._thread.shutdown()
