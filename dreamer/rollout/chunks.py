"""Rows of replay on their way from actors: several steps at a time, and one by one into the replay.

Legend: T steps, n environments of one actor.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

Row = dict[str, Any]  # nested, leaves [n, ...], as `transition` makes it


class Chunk(NamedTuple):
    """What an actor saw and did in a row."""

    rows: Row  # leaves [T, n, ...]
    restarts: Sequence[tuple[str, bool]] = ()  # of its environments: why, whether because it failed
    version: int = 0  # updates after which the weights were taken that it acted with


class Stream:
    """The rows of one actor, in order. The newest waits for the one after it: should the actor die
    meanwhile, its episodes end there."""

    def __init__(self) -> None:
        self._rows: deque[Row] = deque()
        self._broken = False  # no row comes after the newest

    @property
    def ready(self) -> bool:
        """Whether there is a row to take."""
        return len(self._rows) > (0 if self._broken else 1)

    def put(self, rows: Row) -> None:
        """Takes the rows of a chunk, [T, n, ...]."""
        self._broken = False
        for index in range(len(rows["is_first"])):
            self._rows.append(jax.tree.map(lambda x, i=index: x[i], rows))

    def take(self) -> Row:
        """The oldest row, when `ready`."""
        return self._rows.popleft()

    def break_off(self) -> None:
        """Ends the episodes at the newest row, as truncated where they were not over; the actor
        died."""
        self._broken = True
        if self._rows:
            self._rows.append(truncated(self._rows.pop()))


def truncated(row: Row) -> Row:
    """The row as the last of its episodes, in which no action is taken."""
    return row | {
        "is_last": np.ones_like(row["is_last"]),
        "action": jax.tree.map(np.zeros_like, row["action"]),
    }


def stack(rows: Sequence[Row]) -> Row:
    """Rows [n, ...] as one of [T, n, ...]."""
    return jax.tree.map(lambda *x: np.stack(x), *rows)


def join(rows: Sequence[Row]) -> Row:
    """Rows of several actors as one of all environments."""
    return jax.tree.map(lambda *x: np.concatenate(x), *rows)
