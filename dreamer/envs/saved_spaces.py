"""Spaces as JSON in checkpoints and recorded episodes, which then need no environment."""

import math
from typing import Annotated, Any, Literal

import gymnasium
import numpy as np
from dm_env import specs
from gymnasium import spaces
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from dreamer.envs.base import Specs
from dreamer.envs.spaces import children, classes

MOST = 2**26  # elements of one array
MOST_CLASSES = 2**31 - 1

Shape = tuple[Annotated[int, Field(ge=0, le=MOST)], ...]
Whole = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Number = Annotated[str, Field(pattern=r"^(u?int(8|16|32|64)|float(16|32|64)|bool)$")]
Classes = Annotated[int, Field(ge=1, le=MOST_CLASSES)]


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Array(_Form):
    """A spec of dm_env; bounds are one number where they are the same for all elements."""

    shape: Shape
    dtype: Literal["float32", "int32", "uint8", "bool"]
    low: float | list[float] | None = None
    high: float | list[float] | None = None


class _Box(_Form):
    kind: Literal["box"] = "box"
    shape: Shape
    dtype: Number
    low: Whole | float | list[Whole] | list[float]
    high: Whole | float | list[Whole] | list[float]


class _Classes(_Form):
    """Discrete of shape (), MultiDiscrete, or MultiBinary with starts 0 and counts 2."""

    kind: Literal["discrete", "multi_discrete", "multi_binary"]
    shape: Shape
    count: list[Classes]
    start: list[Whole]
    dtype: Number


class _Parts(_Form):
    kind: Literal["dict", "tuple"]
    parts: list[tuple[str, "_Space"]]


_Space = Annotated[_Box | _Classes | _Parts, Field(discriminator="kind")]
_SPACE: TypeAdapter[Any] = TypeAdapter(_Space)
_SPECS: TypeAdapter[dict[str, _Array]] = TypeAdapter(dict[str, _Array])


def dump_space(space: gymnasium.Space | None) -> Any:
    """Returns a space as JSON types; None for None and for kinds that actions cannot have."""
    form = _form(space)
    return form and form.model_dump(mode="json")


def load_space(saved: Any) -> gymnasium.Space | None:
    """The inverse of `dump_space`.

    Raises:
      ValueError: It is not one of its results.
    """
    try:
        return None if saved is None else _space(_SPACE.validate_python(saved))
    except (ValidationError, RecursionError, TypeError, AssertionError, OverflowError) as error:
        raise ValueError("not the form of a space") from error


def dump_specs(leaves: Specs) -> dict[str, Any]:
    """Returns specs of a `BatchedEnv` as JSON types."""
    return {key: _array(leaf).model_dump(mode="json") for key, leaf in leaves.items()}


def load_specs(saved: Any) -> Specs:
    """The inverse of `dump_specs`.

    Raises:
      ValueError: It is not one of its results.
    """
    try:
        found = _SPECS.validate_python(saved)
        return {key: _leaf(key, form) for key, form in found.items()}
    except (ValidationError, RecursionError, TypeError, OverflowError) as error:
        raise ValueError("not the form of specs") from error


def _form(space: gymnasium.Space | None) -> Any:
    match space:
        case spaces.Dict() | spaces.Tuple():
            parts = [(str(name), _form(part)) for name, part in children(space) or ()]
            if any(form is None for _, form in parts):
                return None
            return _Parts(kind="dict" if isinstance(space, spaces.Dict) else "tuple", parts=parts)
        case spaces.Box():
            low, high = _bounds(space.low), _bounds(space.high)
            return _Box(shape=space.shape, dtype=space.dtype.name, low=low, high=high)
        case spaces.Discrete():
            kind = "discrete"
        case spaces.MultiDiscrete():
            kind = "multi_discrete"
        case spaces.MultiBinary():
            kind = "multi_binary"
        case _:
            return None
    start, count = (np.ravel(numbers).tolist() for numbers in classes(space) or ())
    dtype: Any = space.dtype.name
    return _Classes(kind=kind, shape=space.shape or (), count=count, start=start, dtype=dtype)


def _space(form: Any) -> gymnasium.Space:
    if isinstance(form, _Parts):
        parts = [(name, _space(part)) for name, part in form.parts]
        return spaces.Dict(parts) if form.kind == "dict" else spaces.Tuple([p for _, p in parts])
    if isinstance(form, _Box):
        low, high = (_full(x, form.shape, form.dtype) for x in (form.low, form.high))
        return spaces.Box(low, high, form.shape, np.dtype(form.dtype).type)
    count, start = (_full(x, form.shape, form.dtype) for x in (form.count, form.start))
    dtype: Any = count.dtype.type
    match form.kind:
        case "discrete":
            return spaces.Discrete(int(count), start=int(start), dtype=dtype)
        case "multi_discrete":
            return spaces.MultiDiscrete(count, dtype=dtype, start=start)
        case _:
            return spaces.MultiBinary(form.shape)


def _array(leaf: specs.Array) -> _Array:
    bounds = {}
    if isinstance(leaf, specs.BoundedArray):
        pairs = (("low", leaf.minimum), ("high", leaf.maximum))
        bounds = {name: _bounds(np.broadcast_to(x, leaf.shape).astype(float)) for name, x in pairs}
    dtype: Any = np.dtype(leaf.dtype).name
    return _Array(shape=tuple(map(int, leaf.shape)), dtype=dtype, **bounds)


def _leaf(key: str, form: _Array) -> specs.Array:
    whole = form.dtype == "int32"
    if form.low is None or form.high is None:
        if whole:
            raise ValueError(f"{key} has no bounds")
        return specs.Array(form.shape, np.dtype(form.dtype), key)
    low, high = (_full(x, form.shape, form.dtype) for x in (form.low, form.high))
    if whole and ((low != 0).any() or (high < 0).any() or not high.size):
        raise ValueError(f"{key} has classes that do not count from 0")
    if whole and not form.shape:
        return specs.DiscreteArray(int(high) + 1, np.int32, key)
    return specs.BoundedArray(form.shape, np.dtype(form.dtype), low, high, key)


def _bounds(values: np.ndarray) -> Any:
    """Returns numbers as a list, or one number if all are the same."""
    same = values.size > 0 and (values == values.flat[0]).all()
    return values.flat[0].item() if same else values.ravel().tolist()


def _full(numbers: Any, shape: Shape, dtype: str) -> np.ndarray:
    """Returns numbers as an array, a view of a single one.

    Raises:
      ValueError: They are too many or too few, or not of this type.
    """
    if math.prod(shape) > MOST:
        raise ValueError(f"an array of shape {shape} is too large")
    found = np.array(numbers)
    if np.isnan(found).any():
        raise ValueError("a bound is not a number")
    if np.issubdtype(np.dtype(dtype), np.integer):
        limits = np.iinfo(dtype)
        if ((found < limits.min) | (found > limits.max)).any():
            raise ValueError(f"numbers beyond {dtype}")
    found = found.astype(dtype)
    return np.broadcast_to(found, shape) if found.ndim == 0 else found.reshape(shape)
