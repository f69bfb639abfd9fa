"""The hosts that train together, one process each: their number, and messages between them.

Messages use the key-value store of `jax.distributed` and do not wait for devices.
"""

import itertools
import json
import math
from typing import Any

import jax

_numbers = itertools.count()  # of the exchanges, in the same order on every host


def unite(
    coordinator: str, count: int, number: int, seconds: float, lost_after: int, listen: str = ""
) -> None:
    """Makes this process one of several hosts, before jax is used.

    Args:
      coordinator: host:port of the first; if empty, jax detects SLURM, Open MPI or TPUs.
      count: number of hosts, with a coordinator.
      number: of this host.
      seconds: to wait for the others; then the process aborts in C++.
      lost_after: seconds of silence after which a host is lost and all others abort.
      listen: host:port at which the first listens; if empty, jax uses all interfaces, or
        JAX_COORDINATOR_BIND_ADDRESS.

    Raises:
      RuntimeError, ValueError: the hosts cannot be found, or the port is taken.
    """
    # Its SIGTERM handler would replace ours.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        coordinator_address=coordinator or None,
        coordinator_bind_address=listen or None,
        num_processes=count if coordinator else None,
        process_id=number if coordinator else None,
        cluster_detection_method="deactivate" if coordinator else None,
        initialization_timeout=math.ceil(seconds),
        heartbeat_timeout_seconds=lost_after,
        shutdown_timeout_seconds=lost_after,
    )


def leave() -> None:
    """Waits until every host leaves, and disconnects."""
    exchange("")
    jax.distributed.shutdown()


def index() -> int:
    """The number of this host."""
    return jax.process_index()


def count() -> int:
    """The number of hosts."""
    return jax.process_count()


def exchange(text: str) -> list[str]:
    """Gathers the texts of all hosts, in their order, on every host.

    Raises:
      RuntimeError: another host is lost.
    """
    if count() == 1:
        return [text]
    # The store behind `jax.distributed`, which has no public name.
    from jax._src.distributed import global_state

    client: Any = global_state.client
    number = next(_numbers)
    client.key_value_set(f"dreamer/{number}/{index()}", text)
    found = [_wait(client, f"dreamer/{number}/{one}") for one in range(count())]
    if number:  # every host has read the previous exchange
        client.key_value_delete(f"dreamer/{number - 1}/{index()}")
    return found


def gather(value: Any) -> list[Any]:
    """Gathers the values of all hosts, made of JSON types, see `exchange`."""
    return [json.loads(text) for text in exchange(json.dumps(value))]


def _wait(client: Any, key: str) -> str:
    """Waits for the text of a key, in intervals between which Python handles signals."""
    while True:
        try:
            return str(client.blocking_key_value_get(key, 1000))
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
