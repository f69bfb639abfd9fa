"""Rows of replay from actors: received as chunks of several steps, added to replay one by one.

Legend: T steps, n environments of one actor.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

Row = dict[str, Any]  # nested, leaves [n, ...], a result of `driver.transition`


class Chunk(NamedTuple):
    """Consecutive rows of an actor."""

    rows: Row  # leaves [T, n, ...]
    restarts: Sequence[tuple[str, bool]] = ()  # of its environments: cause, whether it failed
    version: int = 0  # number of updates of the weights it acted with


class Stream:
    """The rows of one actor, in order. The newest is held back until the next arrives: if the actor
    dies first, its episodes end there."""

    def __init__(self) -> None:
        self._rows: deque[Row] = deque()
        self._broken = False  # no row follows the newest

    @property
    def ready(self) -> bool:
        """Whether `take` has a row."""
        return len(self._rows) > (0 if self._broken else 1)

    def put(self, rows: Row) -> None:
        """Adds the rows of a chunk, [T, n, ...]."""
        self._broken = False
        for index in range(len(rows["is_first"])):
            self._rows.append(jax.tree.map(lambda x, i=index: x[i], rows))

    def take(self) -> Row:
        """Removes and returns the oldest row, when `ready`."""
        return self._rows.popleft()

    def break_off(self) -> None:
        """Truncates the running episodes at the newest row, since the actor died."""
        self._broken = True
        if self._rows:
            self._rows.append(truncated(self._rows.pop()))


def truncated(row: Row) -> Row:
    """The row as the last of its episodes, without actions."""
    return row | {
        "is_last": np.ones_like(row["is_last"]),
        "action": jax.tree.map(np.zeros_like, row["action"]),
    }


def stack(rows: Sequence[Row]) -> Row:
    """Stacks rows [n, ...] to [T, n, ...]."""
    return jax.tree.map(lambda *x: np.stack(x), *rows)


def join(rows: Sequence[Row]) -> Row:
    """Concatenates rows of several actors to one of all environments."""
    return jax.tree.map(lambda *x: np.concatenate(x), *rows)
