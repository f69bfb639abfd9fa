"""Learns from replay on the host: samples, dispatches updates, writes latents back one call
late."""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from dreamer import parallel
from dreamer.agent import learning
from dreamer.agent.agent import Agent, State
from dreamer.replay import host
from dreamer.replay.host import Replay
from dreamer.run.metrics import LateMetrics, Reading

# index [K, B, 2] and latent leaves [K, B, T, ...], on the host or still [X, K, B/X, T, ...] on X
# devices
Pending = dict[str, Any]


def purpose_key(seed: int, purpose: str) -> jax.Array:
    """The run's random key for one purpose: init, train, act or replay."""
    purposes = ("init", "train", "act", "replay")
    return jax.random.fold_in(jax.random.key(seed), purposes.index(purpose))


@dataclass(frozen=True)
class Batches:
    """What one call learns from."""

    data: Any  # leaves [X, K, B/X, ...], on their way to X devices
    index: np.ndarray  # int64 [K, B, 2]


class Learner:
    """The state of learning on its devices.

    Nothing waits for the update just dispatched: its latents are fetched after the next one is on
    its way, its metrics when they are asked for.

    With prefetching, a thread takes the batches of the next call from replay and sends them to the
    devices while this one runs. They are those that replay holds when this call is dispatched, so a
    run repeats; whoever changes the replay must `settle` before.

    Args:
      agent: networks.
      devices: to train on.
      seed: of the run; decides initial weights, noise and sampled batches.
      batch_size: sequences per update over all devices.
      updates_per_call: updates K compiled into one call.
      prefetch: batches one call ahead.
    """

    def __init__(
        self,
        agent: Agent,
        devices: list[jax.Device],
        seed: int,
        batch_size: int,
        updates_per_call: int,
        prefetch: bool = False,
    ) -> None:
        self.devices = devices
        self.updates = 0
        self.pending: Pending | None = None
        self._measured: jax.Array | None = None  # metrics of these updates
        self._dtype = agent.dtype
        self._batch_size, self._per_call = batch_size, updates_per_call
        # Every host samples from its own replay.
        self._seeds = (seed, parallel.host()) if parallel.hosts() > 1 else (seed,)
        init_key, train_key = purpose_key(seed, "init"), purpose_key(seed, "train")
        self.state: State = parallel.replicate(agent.init(init_key), devices)
        self._key = parallel.replicate(train_key, devices)
        self._metrics = LateMetrics()
        self._owed = 0
        self._thread = ThreadPoolExecutor(1, "prefetch") if prefetch else None
        self._ahead: Future[Batches] | None = None

        def step(
            state: State, batch: Any, key: jax.Array, axis_name: str
        ) -> tuple[State, Any, jax.Array]:
            state, latent, metrics = learning.train_step(agent, state, batch, key, axis_name)
            return state, latent, self._metrics.stack(metrics)

        self._update = parallel.compile_updates(step, devices)
        self._params = parallel.unreplicate(self.state.params)

    @property
    def params(self) -> Any:
        """Parameters after all dispatched updates, on the first device."""
        return self._params

    def train(self, replay: Replay, owed: int) -> None:
        """Dispatches as many whole calls of K updates as are owed, keeping the rest for later.

        Args:
          replay: to sample from and to write latents to, in place.
          owed: updates newly owed.
        """
        self._owed += owed
        while self._owed >= self._per_call:
            self._call(replay)
            self._owed -= self._per_call

    def _call(self, replay: Replay) -> None:
        batches = self._ahead.result() if self._ahead else self._take(replay, self.updates)
        self.state, latents, metrics = self._update(self.state, batches.data, self._key)
        self._ahead = None
        self._params = parallel.unreplicate(self.state.params)
        self.updates += self._per_call
        self._write_back(replay)
        if self._thread is not None:
            self._ahead = self._thread.submit(self._take, replay, self.updates)
        self.pending, self._measured = {"index": batches.index, "latent": latents}, metrics
        self._metrics.add(metrics)

    def _take(self, replay: Replay, update: int) -> Batches:
        """The batches of a call that begins with this update."""
        sampled = [
            host.sample(replay, (*self._seeds, update + i), self._batch_size)[1:]
            for i in range(self._per_call)
        ]
        data = jax.tree.map(lambda *x: np.stack(x), *[batch for batch, _ in sampled])
        data = parallel.spread(parallel.split(data, self.devices), self.devices)
        return Batches(data, np.stack([index for _, index in sampled]))

    def settle(self) -> None:
        """Waits until the thread has read what it reads of the replay."""
        if self._ahead is not None:
            self._ahead.result()

    def _write_back(self, replay: Replay) -> None:
        if self.pending is not None:
            pending = self.fetch_pending()
            for i, index in enumerate(pending["index"]):
                host.update(
                    replay, index, {key: value[i] for key, value in pending["latent"].items()}
                )
            self.pending = None

    def fetch_pending(self) -> Pending:
        """The latents still to be written, on the host; {} when there are none. Those of skipped
        updates are of windows in which nothing is written."""
        if self.pending is None:
            return {}
        latent, index = self.pending["latent"], self.pending["index"].copy()
        if self._measured is not None:
            index[self._metrics.skipped(self._measured), :, 1] = host.GONE
            self.pending, self._measured = {"index": index, "latent": parallel.join(latent)}, None
        return self.pending

    def fetch_ahead(self) -> dict[str, Any]:
        """Batches already taken from replay, on the host; {} when there are none."""
        if self._ahead is None:
            return {}
        batches = self._ahead.result()
        return {"data": parallel.join(batches.data), "index": batches.index}

    def read_metrics(self, wait: bool = False) -> Reading:
        """Those since the last reading, see `LateMetrics.read`."""
        return self._metrics.read(wait)

    def get_counters(self) -> dict[str, int]:
        """What is needed to go on exactly beside `state` and `fetch_pending()`."""
        return {"updates": self.updates, "owed": self._owed}

    def set_state(
        self,
        state: State,
        pending: Pending,
        counters: dict[str, int],
        ahead: dict[str, Any] | None = None,
    ) -> bool:
        """Restores what `state`, `fetch_pending()`, `get_counters()` and `fetch_ahead()` were when
        saved; False if the batches taken ahead are not those of a call."""
        self.state = parallel.replicate(state, self.devices)
        self._params = parallel.unreplicate(self.state.params)
        self.pending = self._measured = None
        if pending:
            floats = {
                key: value.astype(self._dtype)
                for key, value in pending["latent"].items()
                if value.dtype != np.uint8
            }
            self.pending = pending | {"latent": pending["latent"] | floats}
        self.updates, self._owed = counters["updates"], counters["owed"]
        self._ahead = None
        if not ahead:
            return True
        if ahead["index"].shape[:2] != (self._per_call, self._batch_size):
            return False
        self._ahead = Future()
        data = parallel.spread(parallel.split(ahead["data"], self.devices), self.devices)
        self._ahead.set_result(Batches(data, ahead["index"]))
        return True

    def close(self) -> None:
        """Ends the thread."""
        if self._thread is not None:
            self._thread.shutdown()
