"""Repeated timing of a call, and the limits of the machine."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from dreamer.system import allocator

LEAST = 3  # timed calls


@dataclass(frozen=True)
class Budget:
    """Limits of the timing of a call."""

    repeats: int = 50
    seconds: float = 10.0
    trace: Path | None = None  # folder for a profile by jax of the timed calls


@dataclass(frozen=True)
class Timing:
    """Seconds of one call."""

    median: float
    low: float  # a quarter of the calls were faster
    high: float  # a quarter were slower
    repeats: int


def measure(call: Callable[[], Any], budget: Budget, warm_up: int = 2) -> Timing:
    """Times a call, including its work on the devices.

    Args:
      call: returns arrays to wait for.
      budget: at least `LEAST` calls are timed.
      warm_up: number of calls before.
    """
    for number in range(warm_up):
        jax.block_until_ready(call())
        if number == 0:
            allocator.set_gaps_aside()  # as a run does after its first update
    times: list[float] = []
    end = time.perf_counter() + budget.seconds
    with jax.profiler.trace(budget.trace) if budget.trace else contextlib.nullcontext():
        while len(times) < LEAST or (len(times) < budget.repeats and time.perf_counter() < end):
            start = time.perf_counter()
            jax.block_until_ready(call())
            times.append(time.perf_counter() - start)
    low, median, high = np.percentile(times, [25, 50, 75]).tolist()
    return Timing(median, low, high, len(times))


def matrix_product(dtype: DTypeLike, budget: Budget) -> tuple[Timing, float]:
    """Times a large matrix product on the first device, and counts its operations."""
    size = 2048 if jax.default_backend() == "cpu" else 8192
    x = jax.random.normal(jax.random.key(0), (size, size), dtype)  # zeros are multiplied faster
    multiply = jax.jit(jnp.matmul)
    return measure(lambda: multiply(x, x), budget), 2.0 * size**3


def copy(budget: Budget) -> tuple[Timing, float]:
    """Times a copy in the memory of the first device, and counts the bytes read and written."""
    size = 2**26 if jax.default_backend() == "cpu" else 2**29
    x = jnp.arange(size, dtype=jnp.float32)
    shifted = jax.jit(lambda x: x + 1)  # XLA leaves out a plain copy
    return measure(lambda: shifted(x), budget), 2.0 * x.nbytes
