"""Validation of the arguments of the library, with errors in one line."""

from typing import Any

import numpy as np

from dreamer.errors import UserError

SEEDS = 2**32  # as many as the configuration allows


def whole(name: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """Returns an integer of Python or numpy as int.

    Args:
      name: of the argument.
      value: of the argument.
      least, most: inclusive bounds.

    Raises:
      UserError: it is of another type, or out of bounds.
    """
    is_whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not is_whole or value < least or (most is not None and value > most):
        limit = "" if most is None else f", <= {most}"
        raise UserError(f"{name}={_shown(value)}: expected integer >= {least}{limit}")
    return int(value)


def seed(value: Any) -> int:
    """Returns a seed as int.

    Raises:
      UserError: it is none.
    """
    return whole("seed", value, 0, SEEDS - 1)


def expect(fits: bool, name: str, value: Any, expected: str) -> None:
    """Refuses an argument of a wrong type.

    Args:
      fits: whether its type is right.
      name: of the argument.
      value: of the argument.
      expected: the type in words, or a function that returns it.

    Raises:
      UserError: it is not.
    """
    if not fits:
        raise UserError(f"{name}: expected {expected}, not {_shown(value)}")


def _shown(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
