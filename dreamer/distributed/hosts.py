"""The hosts that train together, each a process: their number, and messages between them.

They pass through the key-value store of `jax.distributed`, beside the devices, which need not be
done with anything.
"""

import itertools
import json
import math
from typing import Any

import jax

_numbers = itertools.count()  # of the exchanges, which come in the same order on every host


def unite(
    coordinator: str, count: int, number: int, seconds: float, lost_after: int, listen: str = ""
) -> None:
    """Makes this process one of several hosts; before jax is used.

    Args:
      coordinator: host:port of the first; empty for what jax finds of SLURM, Open MPI or TPUs.
      count: of hosts, where there is a coordinator.
      number: of this one.
      seconds: to wait for the others. Then the process aborts, from C++.
      lost_after: seconds of silence after which a host is lost, and all others abort likewise.
      listen: host:port at which the first listens; empty is what jax chooses: all interfaces, or
        that of JAX_COORDINATOR_BIND_ADDRESS.

    Raises:
      RuntimeError, ValueError: they cannot be found, or the port is taken.
    """
    # Its handler of SIGTERM would take the place of ours.
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
    """Waits until every host has come here, and disconnects."""
    exchange("")
    jax.distributed.shutdown()


def index() -> int:
    """The number of this host."""
    return jax.process_index()


def count() -> int:
    """How many hosts there are."""
    return jax.process_count()


def exchange(text: str) -> list[str]:
    """The texts of all hosts in their order, when all have come here; of one, its own at once.

    They pass beside the devices, which need not be done with anything.

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
    if number:  # whoever is here has read the one before
        client.key_value_delete(f"dreamer/{number - 1}/{index()}")
    return found


def gather(value: Any) -> list[Any]:
    """As `exchange`, of what JSON can hold."""
    return [json.loads(text) for text in exchange(json.dumps(value))]


def _wait(client: Any, key: str) -> str:
    """The text under a key once it is there; a host that is lost ends the wait. In between, Python
    hears its signals."""
    while True:
        try:
            return str(client.blocking_key_value_get(key, 1000))
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
