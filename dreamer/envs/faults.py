"""Checks of what an environment returns, and its failures in words.

Legend: the arrays of a space are of one environment, or of several in a batched space.
"""

import functools
import multiprocessing
import re
import sysconfig
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from dreamer.envs.base import RESTARTED, Restart
from dreamer.envs.spaces import children, classes, empty, is_bytes, join
from dreamer.errors import EnvironmentFault, UserError, describe, warn

LARGEST = float(np.finfo(np.float32).max)  # what observations and rewards become
LEARNED = float(np.expm1(20))  # the outermost bins of rewards and values, see `ops.transforms`
LONGEST = 300  # characters of an exception
AGAIN = "; restarting does not help, it fails again at once"
UNDEFINED = (
    "which nothing can be learned from; fix the environment, or wrap it to clip what it gives "
    "(float32 holds up to 3.4e+38)"
)
BOUNDS = " as its space says; fix either, or do not compare them with env.check_bounds=false"
OLD = "as gymnasium defines it; gym before 0.26 and wrappers of that time differ"

Checker = Callable[[Any], str]


def checker(space: gymnasium.Space, key: str = "") -> Checker:
    """Makes a function that describes what is wrong with an observation of a space, or ''.

    It runs at every step, so all that depends on the space alone is computed here.
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
    whole = None if dtype == np.uint8 and len(shape) > 1 and is_bytes(space) else classes(space)
    largest = np.float64(min(LARGEST, float(np.finfo(dtype).max))) if dtype.kind == "f" else 0
    limits = _bounds(space)
    if whole:
        low, high = whole[0], whole[0] + whole[1] - 1
        limits = low, high, _range(low, high)

    def check(value: Any) -> str:
        array, wrong = _as_array(value)
        if array is None:
            return f"gave {name} {wrong}, expected shape {shape} and type {dtype}"
        same = array.dtype == dtype or np.can_cast(array.dtype, dtype, "same_kind")
        number = not shape and whole and array.dtype.kind in "iub"  # valid for a Discrete
        if array.shape != shape or not (same or number):
            return (
                f"gave {name} of shape {array.shape} and type {array.dtype}, expected shape "
                f"{shape} and type {dtype}"
            )
        if dtype.kind == "f" and not (np.abs(array) <= largest).all():
            return f"gave NaN or infinity as {name}, {UNDEFINED}"
        if limits:
            low, high, expected = limits
            outside = (array < low) | (array > high)
            if outside.any():
                wrong = array[outside].flat[0]
                return f"gave {name} with the value {wrong}, expected {expected}"
        return ""

    return check


def _bounds(space: gymnasium.Space) -> tuple[np.ndarray, np.ndarray, str] | None:
    """The bounds of a Box with a margin for rounding, and in words; None where it has none."""
    if not isinstance(space, spaces.Box) or is_bytes(space):
        return None
    low, high = (bound.astype(np.float64) for bound in (space.low, space.high))
    if not (np.isfinite(low).any() or np.isfinite(high).any()):
        return None
    expected = f"{_range(space.low, space.high)}{BOUNDS}"
    return low - 1e-5 * (1 + np.abs(low)), high + 1e-5 * (1 + np.abs(high)), expected


def numbers(reward: Any, shape: tuple[int, ...] = ()) -> np.ndarray:
    """Returns the reward of one environment, or of several, as float64 of this shape.

    Raises:
      EnvironmentFault: It is something else.
    """
    what, expected = ("rewards", f"{shape[0]} numbers") if shape else ("a reward", "one number")
    return _array(reward, what, shape, expected).astype(np.float64)


def flags(value: Any, name: str, shape: tuple[int, ...] = ()) -> np.ndarray:
    """Returns `terminated` or `truncated` of one environment, or of several, as bool of this shape.

    Raises:
      EnvironmentFault: It is something else.
    """
    expected = f"True or False{f' for each of {shape[0]}' if shape else ''}"
    array = _array(value, name, shape, expected)
    other = array[(array != 0) & (array != 1)]
    if other.size:
        raise EnvironmentFault(f"gave {name} with the value {other.flat[0]}, expected {expected}")
    return array.astype(bool)


def _array(value: Any, what: str, shape: tuple[int, ...], expected: str) -> np.ndarray:
    array, wrong = _as_array(value)
    if array is None:
        raise EnvironmentFault(f"gave {what} {wrong}, expected {expected}")
    if array.shape != shape or array.dtype.kind not in "biuf":
        raise EnvironmentFault(
            f"gave {what} of shape {array.shape} and type {array.dtype}, expected {expected}"
        )
    return array


def _as_array(value: Any) -> tuple[np.ndarray | None, str]:
    """Returns an array, or None and the reason, which may be any exception of the user's class."""
    try:
        return np.asarray(value), ""
    except ValueError:
        return None, "of unequal parts"
    except Exception as error:
        return None, f"as a {type(value).__name__}, which makes no array: {describe(error)}"


def two(result: Any) -> tuple[Any, Mapping[str, Any]]:
    """Returns the result of a reset: observation and info.

    Raises:
      EnvironmentFault: It is something else.
    """
    if isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], Mapping):
        return result
    raise EnvironmentFault(
        f"gave no observation and dict of info in its reset, but {_shape(result)}; end it with "
        f"`return observation, {{}}`, {OLD}"
    )


def five(result: Any) -> tuple[Any, Any, Any, Any, Mapping[str, Any]]:
    """Returns the result of a step: observation, reward, terminated, truncated and info.

    Raises:
      EnvironmentFault: It is something else.
    """
    if isinstance(result, tuple) and len(result) == 5 and isinstance(result[4], Mapping):
        return result
    raise EnvironmentFault(
        "gave no observation, reward, terminated, truncated and dict of info in its step, but "
        f"{_shape(result)}; end it with `return observation, reward, terminated, truncated, "
        f"{{}}`, {OLD}"
    )


def _shape(result: Any) -> str:
    if not isinstance(result, tuple):
        return f"a {type(result).__name__} alone" if result is not None else "None"
    return f"({', '.join(type(part).__name__ for part in result)})"


def check_space(space: Any, name: str) -> None:
    """Refuses an `observation_space` or `action_space` that is no space.

    Raises:
      UserError: Naming its type.
    """
    match space:
        case gymnasium.Space():
            return
        case None:
            got = "missing, or None"
        case type():
            got = f"the class {space.__name__} itself"
        case _ if callable(space):
            got = "a function"
        case _:
            got = f"a {type(space).__module__}.{type(space).__qualname__}"
    raise UserError(
        f"its {name} is {got}; set it, in the class or its __init__, to a space of "
        "gymnasium.spaces, such as Box(-1, 1, (3,)) or Discrete(2)"
    )


def wrong_reward(reward: Any) -> str:
    """Describes what is wrong with the rewards of one or more environments, or ''."""
    fine = (np.abs(np.asarray(reward, np.float64)) <= LARGEST).all()
    return "" if fine else f"gave NaN or infinity as reward, {UNDEFINED}"


def warn_of_large(rewards: np.ndarray, name: str) -> None:
    """Warns once of rewards, of any shape, that are too large to be learned."""
    if np.abs(rewards).max(initial=0) > LEARNED:
        warn_once(
            f"{name} gives rewards beyond {LEARNED:.3g}, the largest reward, return or value "
            "that is learned; larger ones count as this one: scale them in a wrapper"
        )


def warn_of_empty(space: gymnasium.Space, name: str) -> None:
    """Warns once of observations without elements, which are left out."""
    parts = empty(space, "")
    if parts:
        warn_once(f"{name} observes {', '.join(parts)}: it has no elements and is left out")


@functools.cache
def warn_once(line: str) -> None:
    """Prints a warning that this process has not printed before."""
    warn(line)


def _range(low: Any, high: Any) -> str:
    return f"{np.min(low)} to {np.max(high)}"


def _sorted(names: Any) -> str:
    return ", ".join(sorted(map(str, names))) or "none"


def attempt(failed: str, function: Callable, *arguments: Any, **options: Any) -> Any:
    """Calls a function of the user and returns its result.

    Args:
      failed: The words before the exception, such as "failed in its reset with".

    Raises:
      EnvironmentFault: For any exception, `SystemExit` included, in one line. A UserError passes,
        and a Ctrl-C, except in a worker, which receives none.
    """
    try:
        return function(*arguments, **options)
    except UserError:
        raise
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) and multiprocessing.parent_process() is None:
            raise
        raise EnvironmentFault(f"{failed} {story(error)}") from error


def story(error: BaseException) -> str:
    """Describes an exception in one line: its type, its message, and the line of the user's file.

    That is the innermost line outside of this package, installed packages and Python itself, or
    else in an installed package.
    """
    text = describe(error)
    text = text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."
    if isinstance(error, SyntaxError) and error.filename:
        return f"{type(error).__name__}: {error.msg} ({error.filename}, line {error.lineno})"
    paths = sysconfig.get_paths()
    installed = paths["purelib"], paths["platlib"]
    neither = str(Path(__file__).parents[1]), paths["stdlib"], "<"
    frames = traceback.extract_tb(error.__traceback__)
    packages = [frame for frame in frames if frame.filename.startswith(installed)]
    users = [frame for frame in frames if not frame.filename.startswith((*installed, *neither))]
    where = (users or packages)[-1:]
    return text + "".join(f" ({x.filename}, line {x.lineno}, in {x.name})" for x in where)


class Restarts:
    """Decides whether environments that failed are restarted.

    Args:
      most: Failures of a run that lead to a restart, `env.restarts`.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._last: dict[int, str] = {}  # fault by environment, until its next step

    def works(self, who: int) -> None:
        """Notes that an environment took a step."""
        self._last.pop(who, None)

    def line(self, who: int, fault: str, before: Sequence[Restart]) -> str:
        """Returns the line that reports the restart of an environment.

        Raises:
          EnvironmentFault: It is not restarted. There were as many failures `before`, or the fault
            equals the last, except for numbers, without a step in between.
        """
        if not self._most:
            raise EnvironmentFault(fault)
        number = 1 + sum(restart.failed for restart in before)
        if number > self._most:
            limit = f"with env.restarts={self._most}"
            raise EnvironmentFault(f"{fault}; failure {number} of the run, {limit}")
        alike = re.sub(r"0x[\da-f]+|\d[\d.]*(e[-+]?\d+)?", "", fault, flags=re.IGNORECASE)
        if self._last.get(who) == alike:
            raise EnvironmentFault(fault + AGAIN)
        self._last[who] = alike
        return f"{fault}{RESTARTED}, {number} of env.restarts={self._most}"
