"""Replay in device memory: the rings of `replay.host` as arrays of a pytree, for compiled loops.

Legend as there: N environments, B batch, L window length, S slots of a ring. The same four
functions, `init`, `add`, `sample`, `update`, are pure here: jit them, donate the replay, and
nothing is copied. Rings, online queue and late updates behave the same; only the uniform draws
differ, since they come from jax's random keys.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array


@struct.dataclass
class Replay:
    """Rings and counters. Absolute step `s` of environment `n` is stored in `ring[n, s % S]`."""

    rings: Mapping[str, Any]  # leaves [N, S, ...]
    steps: Array  # int32, added so far, per environment
    oldest: Array  # int32, absolute step of the oldest stored row
    served: Array  # int32, windows of the online queue that were sampled or lost
    length: int = struct.field(pytree_node=False)  # L
    online: bool = struct.field(pytree_node=False)

    @property
    def num_envs(self) -> int:
        return self.rings["is_first"].shape[0]

    @property
    def slots(self) -> int:
        return self.rings["is_first"].shape[1]


def init(
    spec: Mapping[str, Any], capacity: int, num_envs: int, length: int, online: bool = True
) -> Replay:
    """Returns an empty replay.

    Args:
      spec: nested dict of (shape, dtype) of one step of one environment, with `is_first`, `is_last`
        and a group `latent`.
      capacity: steps over all environments; the oldest are dropped.
      num_envs: N, environments that add together.
      length: L, steps per sampled window, the context step included.
      online: serve every new window once before sampling uniformly.

    Raises:
      ValueError: the capacity is less than one window per environment.
    """
    if capacity < length * num_envs:
        raise ValueError(f"{capacity=} holds no window of {length} steps in {num_envs} rings")
    slots = capacity // num_envs
    rings = jax.tree.map(
        lambda leaf: jnp.zeros((num_envs, slots, *leaf[0]), leaf[1]),
        dict(spec),
        is_leaf=lambda x: isinstance(x, tuple),
    )
    # Arrays of their own, so that all can be donated.
    steps, oldest, served = (jnp.zeros((), jnp.int32) for _ in range(3))
    return Replay(rings, steps, oldest, served, length, online)


def add(replay: Replay, transition: Mapping[str, Any]) -> Replay:
    """Appends one step of every environment, leaves [N, ...]; drops the oldest when full."""
    slot = replay.steps % replay.slots

    def put(ring: Array, row: Array) -> Array:
        assert row.dtype == ring.dtype, f"{row.dtype} for a ring of {ring.dtype}"
        return jax.lax.dynamic_update_index_in_dim(ring, row, slot, 1)

    rings = jax.tree.map(put, replay.rings, dict(transition))
    steps = replay.steps + 1
    oldest = jnp.maximum(replay.oldest, steps - replay.slots)
    return dataclasses.replace(replay, rings=rings, steps=steps, oldest=oldest)


def num_items(replay: Replay) -> Array:
    """The number of complete windows stored, over all environments."""
    stored = replay.steps - replay.oldest
    return replay.num_envs * jnp.maximum(0, stored - replay.length + 1)


def sample(replay: Replay, key: Array, batch_size: int) -> tuple[Replay, dict[str, Any], Array]:
    """Samples windows from the online queue, then uniformly with replacement from all stored.

    There must be one: compiled code raises nothing, and would return unwritten rows.

    Args:
      replay: To sample from.
      key: Random key of this batch.
      batch_size: B.

    Returns:
      The replay; nested dict of arrays [B, L, ...], of the latents only the context row [B, 1,
      ...]; int32 [B, 2] of environment and absolute first step of each window, for `update`.
    """
    replay, queued, count = _pop_queue(replay, batch_size)
    drawn = _draw_uniform(replay, key, batch_size)
    index = jnp.where(jnp.arange(batch_size)[:, None] < count, queued, drawn)
    env, steps = index[:, :1], index[:, 1:] + jnp.arange(replay.length)[None]
    batch = {
        name: jax.tree.map(
            lambda ring, rows=steps[:, :1] if name == "latent" else steps: ring[
                env, rows % replay.slots
            ],
            part,
        )
        for name, part in replay.rings.items()
    }
    # Where an episode was abandoned, the step before the next `is_first` becomes the last.
    last = batch["is_last"][:, :-1] | batch["is_first"][:, 1:]
    batch["is_last"] = batch["is_last"].at[:, :-1].set(last)
    return replay, batch, index


def update(replay: Replay, index: Array, latent: Mapping[str, Array]) -> Replay:
    """Writes new latents, leaves [B, L - 1, ...], to the trained rows of sampled windows.

    Rows that were overwritten since the windows were sampled are skipped. A row of several windows
    gets the latent of the last of them, on every kind of device.
    """
    env, first = index[:, 0], index[:, 1]
    steps = first[:, None] + jnp.arange(1, replay.length)[None]  # [B, L - 1]
    ahead = steps[:, :, None] - first[None, None]  # [B, L - 1, B], offset in every other window
    order = jnp.arange(len(index))
    again = (
        (env[:, None, None] == env[None, None])
        & (ahead >= 1)
        & (ahead < replay.length)
        & (order[:, None, None] < order[None, None])
    ).any(-1)
    keep = (steps >= replay.oldest) & ~again
    slot = jnp.where(keep, steps % replay.slots, replay.slots)  # dropped beyond the ring
    rings = dict(replay.rings)
    rings["latent"] = jax.tree.map(
        lambda ring, value: ring.at[env[:, None], slot].set(value, mode="drop"),
        rings["latent"],
        dict(latent),
    )
    return dataclasses.replace(replay, rings=rings)


def _pop_queue(replay: Replay, most: int) -> tuple[Replay, Array, Array]:
    """Takes the next windows [most, 2] of the online queue, and the `count` of complete ones.

    Entry q of the queue starts at step q // N * L of environment q % N.
    """
    num_envs, length = replay.num_envs, replay.length
    end = replay.steps // length * num_envs
    lost = -(-replay.oldest // length) * num_envs
    start = jnp.minimum(jnp.maximum(replay.served, lost), end) if replay.online else end
    entry = start + jnp.arange(most)
    served = jnp.minimum(start + most, end)
    windows = jnp.stack([entry % num_envs, entry // num_envs * length], 1)
    return dataclasses.replace(replay, served=served), windows, served - start


def _draw_uniform(replay: Replay, key: Array, count: int) -> Array:
    """`count` windows [count, 2] uniformly, with replacement."""
    item = jax.random.randint(key, (count,), 0, num_items(replay))
    return jnp.stack([item % replay.num_envs, replay.oldest + item // replay.num_envs], 1)
