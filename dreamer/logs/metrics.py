"""Metrics of updates: averaged, and read one call late to avoid waiting for the device."""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

SKIPPED = "optimizer/skipped"  # 1 for an update whose loss or gradient was not finite, else 0


@dataclass(frozen=True)
class Reading:
    """Metrics of the updates since the last reading."""

    averages: dict[str, float]  # over updates that were not skipped; {} without any
    skipped: int = 0  # number of skipped updates
    in_a_row: int = 0  # number of consecutive skipped updates up to the latest, across readings
    not_finite: tuple[str, ...] = ()  # names of metrics in the last skipped update


class LateMetrics:
    """Metrics of dispatched calls, fetched as one array per call."""

    def __init__(self) -> None:
        self.names: list[str] = []  # in the order of `stack`
        self._in_a_row = 0
        self._calls: list[Array] = []

    def stack(self, metrics: Mapping[str, Array]) -> Array:
        """Stacks scalars by name into one array, in a compiled update; stores their order."""
        self.names = sorted(metrics)
        return jnp.stack([metrics[name] for name in self.names])

    def add(self, stacked: Array) -> None:
        """Adds the metrics of one call, [..., M] of any number of updates, for the next reading."""
        self._calls.append(stacked)

    def skipped(self, stacked: Array | np.ndarray) -> np.ndarray:
        """Whether each update [...] of a call with these metrics [..., M] was skipped."""
        return np.asarray(jax.device_get(stacked))[..., self.names.index(SKIPPED)] > 0

    def read(self, wait: bool = False) -> Reading:
        """Reads the metrics since the last reading; those of the newest call, which may still run,
        only if `wait` is set."""
        done = self._calls if wait else self._calls[:-1]
        self._calls = self._calls[len(done) :]
        if not done:
            return Reading({}, in_a_row=self._in_a_row)
        calls = [np.reshape(call, (-1, len(self.names))) for call in jax.device_get(done)]
        rows = np.concatenate(calls)
        skipped = self.skipped(rows)
        whole = np.flatnonzero(~skipped)
        before = -1 - int(whole[-1]) if len(whole) else self._in_a_row
        self._in_a_row = before + len(skipped)
        averages = {}
        if len(whole):
            averages = dict(zip(self.names, rows[whole].mean(0).tolist(), strict=True))
            del averages[SKIPPED]
        last = rows[skipped][-1:]  # empty if none was skipped
        names = [self.names[i] for _, i in np.argwhere(~np.isfinite(last))]
        return Reading(averages, int(skipped.sum()), self._in_a_row, tuple(names))
