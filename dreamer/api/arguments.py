"""What the functions of the library are given: refused in one line where it cannot be."""

from typing import Any

import numpy as np

from dreamer.errors import UserError

SEEDS = 2**32  # as many as the configuration allows


def whole(name: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """A whole number, of Python or numpy.

    Args:
      name: of the argument.
      value: what was given.
      least, most: bounds, both allowed.

    Raises:
      UserError: it is another thing, or out of bounds.
    """
    is_whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not is_whole or value < least or (most is not None and value > most):
        limit = "" if most is None else f", <= {most}"
        raise UserError(f"{name}={_shown(value)}: expected integer >= {least}{limit}")
    return int(value)


def seed(value: Any) -> int:
    """A seed.

    Raises:
      UserError: it is none.
    """
    return whole("seed", value, 0, SEEDS - 1)


def expect(fits: bool, name: str, value: Any, expected: str) -> None:
    """Refuses an argument of another kind.

    Args:
      fits: whether it is of the kind.
      name: of the argument.
      value: what was given.
      expected: the kind in words, and how to get one.

    Raises:
      UserError: it is not.
    """
    if not fits:
        raise UserError(f"{name}: expected {expected}, not {_shown(value)}")


def _shown(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
