"""Replay in device memory: learning from it in compiled code, saving and restoring it.

Everything is spread over X devices, each with its own environments and windows.
"""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from dreamer.agents.interface import Agent
from dreamer.config import Config
from dreamer.config.section import INT32
from dreamer.datasets.recorded import Recording
from dreamer.distributed import hosts, mesh
from dreamer.errors import UserError
from dreamer.logs.metrics import SKIPPED, LateMetrics
from dreamer.ops.random import purpose_key
from dreamer.replay import device, host, memory, tree
from dreamer.replay.filling import fill
from dreamer.rollout.driver import transition_spec

# Of a device's own memory, kept back for parameters, activations and compiled programs.
HEADROOM = 0.3


@struct.dataclass
class Stored:
    """What one device stores."""

    replay: device.Replay
    index: Array  # int32 [B, 2], windows whose latents are pending, not written back yet
    latent: Any  # those latents, leaves [B, T, ...]
    keys: Mapping[str, Array]  # random keys by purpose, their plain data uint32 [2]


class DeviceReplay:
    """Makes, saves and learns from a `Stored`, which is passed in and returned.

    Args:
      config: the whole configuration.
      agent: networks.
      devices: to spread over.
      advice: option to set where the devices are too many or too small.

    Raises:
      UserError: the capacity does not fit, or the environments cannot be spread.
    """

    def __init__(
        self,
        config: Config,
        agent: Agent,
        devices: list[jax.Device],
        advice: str,
    ) -> None:
        num_envs, count = config.env.num_envs, len(devices)
        if num_envs % count:
            raise UserError(
                f"env.num_envs={num_envs} cannot be spread over {count} devices; make it a "
                f"multiple of {count}, use fewer with devices=N, or set {advice}"
            )
        self.agent, self.devices, self.metrics = agent, devices, LateMetrics()
        self._seed, self._settings, self._num_envs = config.seed, config.replay, num_envs
        self._spec = transition_spec(agent)
        self.envs_each, self._batch_each = num_envs // count, config.replay.batch_size // count
        check(config, self._spec, devices, advice)
        self._sequences = jax.jit(self._sample_first, static_argnums=2)

    # --------------------------------------------------------------- compiled, on one device each

    def key(self, stored: Stored, purpose: str, number: Array) -> Array:
        """With one device the draws of acting are those of the host loop."""
        key = jax.random.fold_in(jax.random.wrap_key_data(stored.keys[purpose]), number)
        if len(self.devices) * hosts.count() == 1:
            return key
        return jax.random.fold_in(key, jax.lax.axis_index(mesh.AXIS))

    def learn(self, state: Any, stored: Stored) -> tuple[Any, Stored, Array]:
        """One gradient update; its latents are written back after the next batch is taken."""
        key = self.key(stored, "replay", state.updates)
        replay, batch, index = device.sample(stored.replay, key, self._batch_each)
        # Behind the barrier the batch has been read: the rings change in place, without a copy
        # (jax 0.10 makes one on CPU all the same).
        pending = stored.index, stored.latent
        batch, pending = jax.lax.optimization_barrier((batch, pending))
        replay = device.update(replay, *pending)
        train_key = jax.random.wrap_key_data(stored.keys["train"])
        state, latent, metrics = self.agent.train_step(state, batch, train_key, mesh.AXIS)
        # Latents of a skipped update are not written back.
        first = jnp.where(metrics[SKIPPED] > 0, host.GONE, index[:, 1])
        index = index.at[:, 1].set(first)
        stored = dataclasses.replace(stored, replay=replay, index=index, latent=latent)
        return state, stored, self.metrics.stack(metrics)

    def _sample_first(self, replay: device.Replay, seed: Array, count: int) -> Any:
        """Samples from one device's shard, leaves [1, ...], leaving the queue alone."""
        shard = jax.tree.map(lambda x: x[0], dataclasses.replace(replay, online=False))
        return device.sample(shard, jax.random.key(seed), count)[1]

    # --------------------------------------------------------------------------------- on the host

    def sequences(self, stored: Stored, count: int, seed: tuple[int, ...]) -> dict[str, Any] | None:
        """Replayed sequences of the first device, leaves [count, T + 1, ...], which change nothing;
        None while there are none."""
        shard = mesh.unreplicate(stored.replay)
        if int(shard.steps[0]) < shard.length:
            return None
        number = np.random.SeedSequence(seed).generate_state(1)[0]
        found: dict[str, Any] = jax.device_get(self._sequences(shard, number, count))
        return found

    def start(self, recording: Recording | None = None) -> Stored:
        """Makes a replay of recorded episodes, or an empty one directly on the devices; leaves
        [X, ...]."""
        if recording:
            return self._place(fill(self._empty(), recording.read(), recording.rows))
        settings = self._settings

        def init(_: Array) -> device.Replay:
            each = self.envs_each * (settings.capacity // self._num_envs)
            length = settings.batch_length + 1
            return device.init(self._spec, each, self.envs_each, length, settings.online)

        make = mesh.compile_shards(init, self.devices, (0,), 0, donate=(), barrier=False)
        return self._complete(make(np.arange(len(self.devices))))

    def get_arrays(self, stored: Stored, updated: bool) -> tuple[dict[str, Any], bool]:
        """Replay and pending latents in the format of `HostLearner`; whether the replay is a copy.

        Args:
          stored: leaves [X, ...].
          updated: whether there was an update, whose latents are pending.
        """
        replay = self._fetch(stored.replay)
        # Arrays of another memory were copied when they were fetched.
        own = self.devices[0].platform != "cpu"
        copy = not own and host.nbytes(replay) < 0.8 * memory.available()
        pending = {}
        if updated:
            fetched = {"index": stored.index, "latent": dict(stored.latent)}
            pending = jax.tree.map(lambda x: from_shards(x)[None], jax.device_get(fetched))
            pending["index"] = pending["index"].astype(np.int64)
            pending["index"][..., 0] += self._owner() * self.envs_each
        return {"replay": host.get_state(replay, copy), "pending": pending}, copy or own

    def set_state(self, arrays: dict[str, Any]) -> tuple[Stored, list[str]]:
        """Restores `get_arrays` of any learner; takes the replay out of `arrays`.

        Returns:
          Leaves [X, ...], and what cannot be restored exactly.
        """
        saved, lost = self._empty(), []
        same_windows = host.counters_of(arrays["replay"])["length"] == saved.length
        host.set_state(saved, arrays.pop("replay"))
        if arrays["pending"] and same_windows:
            host.check_windows(saved, "pending", arrays["pending"])
        pending = self._local(arrays["pending"]) if same_windows else None
        if arrays["pending"] and pending is None:
            lost.append("latents still to be written")
        if arrays.get("ahead"):
            lost.append("batches taken ahead")
        if saved.served % len(self.devices):
            lost.append("the place in the online queue")
        return self._place(saved, pending), lost

    def _empty(self) -> host.Replay:
        """A replay on the host, with the same number of slots on every device."""
        settings, num_envs = self._settings, self._num_envs
        return host.init(
            self._spec,
            settings.capacity // num_envs * num_envs,
            num_envs,
            settings.batch_length + 1,
            settings.online,
            check=False,  # the devices have the memory, and a restored replay is already in it
        )

    def _fetch(self, replay: device.Replay) -> host.Replay:
        """The replay of all devices as one of the host, whose arrays may be those of the device."""
        replay = jax.device_get(replay)
        rings = {path: from_shards(ring) for path, ring in tree.flatten(replay.rings).items()}
        num_envs, slots = rings["is_first",].shape
        served = int(replay.served[0]) * len(self.devices)
        counters = int(replay.steps[0]), int(replay.oldest[0]), served
        return host.Replay(rings, num_envs, slots, replay.length, replay.online, *counters)

    def _local(self, pending: dict[str, Any]) -> tuple[np.ndarray, Mapping[str, Any]] | None:
        """Pending windows [B, 2] with the numbers that environments have on their device, and
        latents; None where the windows were spread over devices in another way."""
        if not pending or len(pending["index"]) != 1:
            return None
        index, owner = np.array(pending["index"][0]), self._owner()
        if len(index) != len(owner) or (index[:, 0] // self.envs_each != owner).any():
            return None
        index[:, 0] %= self.envs_each
        return index, jax.tree.map(lambda x: x[0], pending["latent"])

    def _owner(self) -> np.ndarray:
        """The number of the device of each sequence in a batch [B]."""
        return np.repeat(np.arange(len(self.devices)), self._batch_each)

    def _place(
        self, replay: host.Replay, pending: tuple[np.ndarray, Mapping[str, Any]] | None = None
    ) -> Stored:
        """Puts a replay [N, ...] onto the devices as [X, N/X, ...], with pending latents."""
        count = len(self.devices)
        rings = jax.tree.map(partial(to_shards, count), tree.unflatten(replay.rings))
        numbers = replay.steps, replay.oldest, replay.served // count
        steps, oldest, served = (np.full(count, number, np.int32) for number in numbers)
        counters: Any = {"steps": steps, "oldest": oldest, "served": served}
        shards = device.Replay(rings, **counters, length=replay.length, online=replay.online)
        return self._complete(mesh.spread(shards, self.devices), pending)

    def _complete(
        self, replay: device.Replay, pending: tuple[np.ndarray, Mapping[str, Any]] | None = None
    ) -> Stored:
        """Adds pending latents and the keys to a replay that is on the devices already."""
        settings, count = self._settings, len(self.devices)
        shape = settings.batch_size, settings.batch_length
        latent = {
            name: np.zeros((*shape, *one), dtype)
            for name, (one, dtype) in self._spec["latent"].items()
        }
        index = np.full((shape[0], 2), (0, host.GONE))  # nothing is written
        if pending is not None:
            index, saved = pending
            latent = {name: saved[name].astype(x.dtype) for name, x in latent.items()}
        index, latent = jax.tree.map(partial(to_shards, count), (index.astype(np.int32), latent))
        keys: Any = {
            name: np.tile(jax.random.key_data(purpose_key(self._seed, name)), (count, 1))
            for name in ("act", "train", "replay")
        }
        return Stored(replay, *mesh.spread((index, latent, keys), self.devices))


def to_shards(count: int, x: np.ndarray) -> np.ndarray:
    """[N, ...] to [X, N/X, ...], X being `count`."""
    # The length, not -1: arrays without elements have no other.
    return x.reshape(count, len(x) // count, *x.shape[1:])


def from_shards(x: Any) -> np.ndarray:
    """[X, N/X, ...] to [N, ...], on the host."""
    return np.asarray(x).reshape(x.shape[0] * x.shape[1], *x.shape[2:])


def fits(config: Config, spec: Mapping[str, Any], devices: list[jax.Device]) -> bool:
    """Whether devices with memory of their own hold `replay.capacity` steps, and can count all."""
    needed, usable = _memory(config, spec, devices)
    return usable is not None and needed <= usable and _highest(config) <= INT32


def check(config: Config, spec: Mapping[str, Any], devices: list[jax.Device], advice: str) -> None:
    """Refuses a capacity beyond the devices' memory, which for CPU devices is the host's; and steps
    that int32 cannot count. With `run.seeds` the replays of all runs must fit together.

    Raises:
      UserError: with `advice`, the option to set.
    """
    capacity, seeds = config.replay.capacity, config.run.seeds
    needed, usable = _memory(config, spec, devices)
    if _highest(config) > INT32:
        raise UserError(
            f"run.steps={config.run.steps} with env.num_envs={config.env.num_envs} and "
            f"replay.capacity={capacity} are more steps than replay in device memory can count, "
            f"2**31 of each environment; use more environments or fewer steps, or set {advice}"
        )
    if usable is None:
        memory.check_fits(spec, capacity, seeds)
    elif seeds * needed > usable:
        largest = int(usable / (seeds * needed) * capacity)
        raise UserError(
            f"replay.capacity={capacity} needs {memory.gib(seeds * needed)} on each device but "
            f"{memory.gib(usable)} of it can be used; the largest capacity that fits is "
            f"replay.capacity={largest}, or set {advice}"
        )


def _memory(
    config: Config, spec: Mapping[str, Any], devices: list[jax.Device]
) -> tuple[int, int | None]:
    """Bytes that the replay needs on each device, and those that it may use there; None where
    devices have no memory of their own."""
    limit = mesh.memory_limit(devices[0])
    needed = memory.nbytes(spec, config.replay.capacity) // len(devices)
    return needed, None if limit is None else int((1 - HEADROOM) * limit)


def _highest(config: Config) -> int:
    """The largest value of any counter of a replay in device memory: steps stored, steps added by
    each environment, recorded ones included, and windows of the online queue."""
    capacity = config.replay.capacity
    steps = capacity + (0 if config.run.offline else config.run.steps)
    windows = steps // (config.replay.batch_length + 1) + config.replay.batch_size
    return max(capacity, steps // config.env.num_envs + 1, windows)
