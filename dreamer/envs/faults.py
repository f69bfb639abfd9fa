"""What an environment did wrong, in words: what it gave, what it had promised, and where.

Legend: the arrays of a space may stand for one environment, or for several in a batched space.
"""

import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from dreamer.envs.spaces import children, classes, join
from dreamer.errors import EnvironmentFault

LARGEST = float(np.finfo(np.float32).max)  # what observations and rewards become
UNDEFINED = (
    "which nothing can be learned from; mend the environment, or wrap it to clip what it gives "
    "(float32 holds up to 3.4e+38)"
)
BOUNDS = " as its space says; mend either, or do not compare them with env.check_bounds=false"

Checker = Callable[[Any], str]


def checker(space: gymnasium.Space, key: str = "") -> Checker:
    """Makes a function that says what is wrong with an observation of a space: '' if nothing.

    It is called at every step, so all that can be known before is.
    """
    parts = children(space)
    name = f"observation '{key}'" if key else "observation"
    if parts is None:
        return _leaf_checker(space, name)
    inner = [(part, checker(child, join(key, part))) for part, child in parts]
    is_dict = isinstance(space, spaces.Dict)
    names = {part for part, _ in parts}

    def check(value: Any) -> str:
        if is_dict and not (isinstance(value, dict) and value.keys() == names):
            got = f"keys {_sorted(value)}" if isinstance(value, dict) else type(value).__name__
            return f"gave {name} with {got}, expected keys {_sorted(names)}"
        if not is_dict and not (isinstance(value, tuple | list) and len(value) == len(inner)):
            got = f"{len(value)} parts" if isinstance(value, tuple | list) else type(value).__name__
            return f"gave {name} with {got}, expected a tuple of {len(inner)} parts"
        return next(filter(None, (test(value[part]) for part, test in inner)), "")

    return check


def _leaf_checker(space: gymnasium.Space, name: str) -> Checker:
    dtype, shape = np.dtype(space.dtype), space.shape or ()
    whole = None if dtype == np.uint8 and len(shape) > 1 and _is_bytes(space) else classes(space)
    limits = _bounds(space)
    if whole:
        low, high = whole[0], whole[0] + whole[1] - 1
        limits = low, high, _range(low, high)

    def check(value: Any) -> str:
        try:
            array = np.asarray(value)
        except ValueError:
            return f"gave {name} of unequal parts, expected shape {shape} and type {dtype}"
        same = array.dtype == dtype or np.can_cast(array.dtype, dtype, "same_kind")
        number = not shape and whole and array.dtype.kind in "iub"  # a Discrete takes any
        if array.shape != shape or not (same or number):
            return (
                f"gave {name} of shape {array.shape} and type {array.dtype}, expected shape "
                f"{shape} and type {dtype}"
            )
        if dtype.kind == "f" and not (np.abs(array) <= LARGEST).all():
            return f"gave NaN or infinity as {name}, {UNDEFINED}"
        if limits:
            low, high, promised = limits
            outside = (array < low) | (array > high)
            if outside.any():
                wrong = array[outside].flat[0]
                return f"gave {name} with the value {wrong}, expected {promised}"
        return ""

    return check


def _bounds(space: gymnasium.Space) -> tuple[np.ndarray, np.ndarray, str] | None:
    """Those of a Box with a little more for rounding, and in words; None where it has none."""
    if not isinstance(space, spaces.Box) or _is_bytes(space):
        return None
    low, high = (bound.astype(np.float64) for bound in (space.low, space.high))
    if not (np.isfinite(low).any() or np.isfinite(high).any()):
        return None
    promised = f"{_range(space.low, space.high)}{BOUNDS}"
    return low - 1e-5 * (1 + np.abs(low)), high + 1e-5 * (1 + np.abs(high)), promised


def number(reward: Any) -> float:
    """A reward as Python has it.

    Raises:
      EnvironmentFault: it is no number.
    """
    try:
        array = np.asarray(reward)
    except ValueError:
        raise EnvironmentFault("gave a reward of unequal parts, expected one number") from None
    if array.shape or array.dtype.kind not in "biuf":
        raise EnvironmentFault(
            f"gave a reward of shape {array.shape} and type {array.dtype}, expected one number"
        )
    return float(array)


def wrong_reward(reward: Any) -> str:
    """What is wrong with the rewards of one or more environments: '' if nothing."""
    fine = (np.abs(np.asarray(reward, np.float64)) <= LARGEST).all()
    return "" if fine else f"gave NaN or infinity as reward, {UNDEFINED}"


def _is_bytes(space: gymnasium.Space) -> bool:
    """Whether every value of its type is allowed."""
    return isinstance(space, spaces.Box) and bool(((space.low == 0) & (space.high == 255)).all())


def _range(low: Any, high: Any) -> str:
    return f"{np.min(low)} to {np.max(high)}"


def _sorted(names: Any) -> str:
    return ", ".join(sorted(map(str, names))) or "none"


# ----------------------------------------------------------------------------------------------
# exceptions


def story(error: BaseException) -> str:
    """An exception in one line: its type, message, and the line of the user's file it came from.

    That is the innermost line outside of this package, installed packages and Python itself, or
    else outside of this package.
    """
    frames = traceback.extract_tb(error.__traceback__)
    own = str(Path(__file__).parents[1])
    others = [frame for frame in frames if not frame.filename.startswith(own)] or list(frames)
    paths = sysconfig.get_paths()
    installed = tuple(paths[name] for name in ("purelib", "platlib", "stdlib"))
    users = [frame for frame in others if not frame.filename.startswith((*installed, "<"))]
    where = (users or others)[-1:]
    message = " ".join(str(error).split())
    text = f"{type(error).__name__}: {message}" if message else type(error).__name__
    return text + "".join(f" ({x.filename}, line {x.lineno}, in {x.name})" for x in where)
