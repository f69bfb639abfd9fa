"""Devices and hosts: the only file that knows how many there are. One device is a mesh of size one.

`jax.pmap` compiles the update over the chosen devices of all hosts with the axis named "data". The
state is the same on every device; batches are split by sequences. Every host is a process that
handles the arrays of its own devices, so lists of devices are those of this host; only the axis
spans all hosts.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from dreamer.config import Config
from dreamer.distributed import hosts
from dreamer.errors import UserError

AXIS = "data"
Tree = TypeVar("Tree")


def devices_of(config: Config) -> list[jax.Device]:
    """The devices that `platform`, `devices` and `replay.batch_size` choose; raises as
    `local_devices`."""
    return local_devices(config.platform, config.devices, config.replay.batch_size)


def local_devices(platform: str, count: int, batch_size: int) -> list[jax.Device]:
    """The devices to train on.

    Args:
      platform: auto (what jax prefers), cpu, gpu or tpu.
      count: how many; 0 is all of them.
      batch_size: sequences per update, to be split evenly.

    Raises:
      UserError: the platform is missing or has too few devices, or they do not divide the batch.
    """
    try:
        found = jax.local_devices(backend=None if platform == "auto" else platform)
    except (RuntimeError, AssertionError):  # which of the two depends on the platform
        if platform == "auto":
            raise
        raise UserError(
            f"platform={platform}: jax finds no such device here; set "
            "platform=auto, or install its extra: pip install 'dreamer[cuda]' or 'dreamer[tpu]'"
        ) from None
    if count > len(found):
        raise UserError(
            f"devices={count}: there are {len(found)}; allowed are 0 (all) to {len(found)}"
        )
    chosen = found[: count or len(found)]
    axis = len(chosen) * hosts.count()
    if batch_size % axis:
        where = f" of {hosts.count()} hosts" if hosts.count() > 1 else ""
        raise UserError(
            f"replay.batch_size={batch_size} cannot be split over {axis} devices{where}; make it a "
            f"multiple of {axis}, or use fewer with devices=N"
        )
    return chosen


def everywhere(devices: Sequence[jax.Device]) -> list[jax.Device]:
    """The same number of devices of every host as of this host, in the order of the axis."""
    if hosts.count() == 1:
        return list(devices)
    found = jax.devices(devices[0].platform)
    own = [[d for d in found if d.process_index == one] for one in range(hosts.count())]
    return [device for each in own for device in each[: len(devices)]]


def place(devices: Sequence[jax.Device]) -> jax.Array:
    """The number of a device among those of its host, in compiled code."""
    return jax.lax.axis_index(AXIS) % len(devices)


def peak_memory(device: jax.Device) -> int | None:
    """The peak bytes in use of a device's own memory; None if it has none."""
    return (device.memory_stats() or {}).get("peak_bytes_in_use")


def memory_limit(device: jax.Device) -> int | None:
    """The usable bytes of a device's own memory; None if it has none."""
    return (device.memory_stats() or {}).get("bytes_limit")


def replicated(devices: Sequence[jax.Device]) -> NamedSharding:
    """The sharding of arrays that are whole on every device."""
    return NamedSharding(Mesh(np.array(devices), (AXIS,)), PartitionSpec())


def first_device() -> SingleDeviceSharding:
    """The sharding of arrays that are on the first local device alone."""
    return SingleDeviceSharding(jax.local_devices()[0])


def cpu_device() -> jax.Device:
    """The CPU of this host.

    Raises:
      UserError: JAX_PLATFORMS excludes it.
    """
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        raise UserError(
            "run.policy_device=cpu needs jax's CPU platform, which JAX_PLATFORMS excludes; "
            "add it as in JAX_PLATFORMS=cuda,cpu"
        ) from None


def copy_to(tree: Tree, device: jax.Device) -> Tree:
    """Copies every array onto one device."""
    return jax.device_put(tree, SingleDeviceSharding(device), may_alias=False)


def to_device(tree: Tree, device: jax.Device | None = None) -> Tree:
    """Puts every array onto one device, by default the first local one."""
    return jax.device_put(tree, SingleDeviceSharding(device) if device else first_device())


def place_like(tree: Tree, like: Any) -> Tree:
    """Puts every array onto the device of `like`, if that is one, with its sharding: a function is
    then not compiled again for results computed from `like`."""
    first = next(iter(jax.tree.leaves(like)), None)
    if isinstance(first, jax.Array) and len(first.devices()) == 1:
        return jax.device_put(tree, first.sharding)
    return tree


def replicate(tree: Tree, devices: Sequence[jax.Device]) -> Tree:
    """Copies every array onto every device."""
    return jax.device_put(tree, replicated(devices))


def unreplicate(tree: Tree) -> Tree:
    """The first device's copy of replicated arrays, without moving data."""
    return jax.tree.map(lambda x: x.addressable_shards[0].data, tree)


def spread(tree: Tree, devices: Sequence[jax.Device]) -> Tree:
    """Puts arrays [X, ...] onto X devices, a shard each."""
    sharding = NamedSharding(Mesh(np.array(devices), (AXIS,)), PartitionSpec(AXIS))
    return jax.device_put(tree, sharding)


def split(batch: Tree, devices: Sequence[jax.Device]) -> Tree:
    """Splits sequences over devices, in numpy: [K, B, ...] to [X, K, B/X, ...]."""
    count = len(devices)

    def one(x: np.ndarray) -> np.ndarray:
        return np.moveaxis(x.reshape(x.shape[0], count, -1, *x.shape[2:]), 1, 0)

    return jax.tree.map(one, batch)


def join(tree: Any) -> Any:
    """The inverse of `split`, fetching to the host: [X, K, B/X, ...] to [K, B, ...]."""

    def one(x: jax.Array) -> np.ndarray:
        value = np.moveaxis(np.asarray(x), 0, 1)
        return value.reshape(value.shape[0], -1, *value.shape[3:])

    return jax.tree.map(one, tree)


def repeat(
    body: Callable, carry: Any, inputs: Any, length: int, devices: Sequence[jax.Device]
) -> tuple[Any, Any]:
    """`jax.lax.scan`; unrolled on CPU, where XLA runs convolutions in loops ten times slower."""
    if devices[0].platform != "cpu":
        return jax.lax.scan(body, carry, inputs, length)
    outputs = []
    for index in range(length):
        carry, output = body(carry, jax.tree.map(lambda x, i=index: x[i], inputs))
        outputs.append(output)
    return carry, jax.tree.map(lambda *x: jnp.stack(x), *outputs)


def compile_shards(
    function: Callable,
    devices: Sequence[jax.Device],
    in_axes: Any,
    out_axes: Any,
    donate: Any,
    barrier: bool = True,
) -> Callable:
    """Compiles a function of one device's shard for all devices.

    Args:
      function: to compile; it may use the axis `AXIS`.
      devices: X of this host.
      in_axes, out_axes: of each argument and result: 0 if it is spread as [X, ...], None if it is
        replicated.
      donate: arguments whose memory the results may reuse.
      barrier: whether hosts wait for each other before the first call. On CPU, a host gives up on
        one that is 30 s late, as it may be while it compiles what others find in a cache.
    """
    mapped: Any = jax.pmap(
        function,
        axis_name=AXIS,
        devices=everywhere(devices),
        in_axes=in_axes,
        out_axes=out_axes,
        donate_argnums=donate,
    )
    if not barrier or hosts.count() == 1:
        return mapped
    compiled = False

    def call(*arguments: Any) -> Any:
        nonlocal compiled
        if not compiled:
            mapped.lower(*arguments).compile()
            hosts.exchange("")
            compiled = True
        return mapped(*arguments)

    return call


def compile_updates(step: Callable, devices: Sequence[jax.Device]) -> Callable:
    """Compiles K updates into one call over the devices.

    Args:
      step: (state, batch, key, axis_name) to (state, latents, metrics), one update on one device's
        shard.
      devices: to run on.

    Returns:
      A function of (state, batches, key): the state is donated, batches have leaves [X, K, B/X,
      ...], the key is the run's. It returns the new state, latents [X, K, B/X, ...], and metrics
      with an axis of the K updates.
    """

    def updates(state: Any, batches: Any, key: jax.Array) -> tuple[Any, Any, Any]:
        def body(state: Any, batch: Any) -> tuple[Any, tuple[Any, Any]]:
            state, latents, metrics = step(state, batch, key, AXIS)
            return state, (latents, metrics)

        count = len(batches["is_first"])
        state, (latents, metrics) = repeat(body, state, batches, count, devices)
        return state, latents, metrics

    return compile_shards(updates, devices, (None, 0, None), (None, 0, None), donate=0)


def fingerprint(tree: Any) -> int:
    """A checksum of 32 bits over all bits of the arrays."""
    return int(_fingerprint(unreplicate(tree)))


@jax.jit
def _fingerprint(tree: Any) -> jax.Array:
    def one(x: jax.Array) -> jax.Array:
        flat = jnp.ravel(x)
        raw = jax.lax.bitcast_convert_type(flat, jnp.dtype(f"uint{8 * flat.dtype.itemsize}"))
        odd = 2 * jnp.arange(raw.size, dtype=jnp.uint32) + 1
        return jnp.sum(raw.astype(jnp.uint32) * odd, dtype=jnp.uint32)

    sums = [one(leaf) * jnp.uint32(2 * i + 1) for i, leaf in enumerate(jax.tree.leaves(tree))]
    return jnp.sum(jnp.stack(sums), dtype=jnp.uint32)
