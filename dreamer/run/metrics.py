"""Metrics of updates, averaged and read late so that nothing waits for the device."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


class LateMetrics:
    """Metrics of dispatched calls, each fetched as one array."""

    def __init__(self) -> None:
        self.names: list[str] = []  # of what `stack` has seen
        self._calls: list[Array] = []

    def stack(self, metrics: Mapping[str, Array]) -> Array:
        """Inside a compiled update: scalars by name as one array, whose order is remembered."""
        self.names = sorted(metrics)
        return jnp.stack([metrics[name] for name in self.names])

    def add(self, stacked: Array) -> None:
        """Keeps the metrics of one call until they are read."""
        self._calls.append(stacked)

    def read(self, wait: bool = False) -> dict[str, float]:
        """Averages since the last reading, without the call still running unless asked to wait.

        Empty when there is nothing to read.
        """
        done = self._calls if wait else self._calls[:-1]
        self._calls = self._calls[len(done) :]
        if not done:
            return {}
        return dict(zip(self.names, np.mean(jax.device_get(done), 0).tolist(), strict=True))
