"""Gymnasium spaces as specs, with the batched conversion of observations and actions.

Legend: N environments.

Kinds: uint8 boxes (H, W, C), or (H, W) with values up to 255, are images; other boxes are float32
vectors, except integers of at most 256 values; these, Discrete, MultiDiscrete and MultiBinary are
int32 classes that count from 0 (the start of a space is removed). Entries with unequal numbers of
classes become a key each: `key_0`, `key_1`, ... Classes in arrays of rank 3 and more become rows.
Nested Dict and Tuple spaces are flattened, keys joined by '_'. Arrays without elements are left
out, see `empty`. Masks are booleans.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from dm_env import specs
from gymnasium import spaces

from dreamer.envs.base import Specs
from dreamer.errors import UserError

MAX_CLASSES = 256  # integers with more values than this are a vector
MAX_ONE_HOT = 2**16  # of all entries and keys: networks take classes as one-hot vectors
MAX_RANK = 2  # of classes that are observed
MAX_STEPS = 2**53  # integers that a float64 represents exactly
SUPPORTED = "Box, Discrete, MultiDiscrete, MultiBinary and Dict or Tuple of these"


class Mask(spaces.MultiBinary):
    """Which classes of an action are valid: 1 or 0 for each, see `masks`."""


@dataclass(frozen=True)
class Codec:
    """Specs of a space, and the conversion between its batches and a dict of arrays [N, ...].

    For observations `convert` maps native to dict; for actions, dict to native.
    """

    specs: Specs
    convert: Callable[[Any], Any]


def image_shape(space: gymnasium.Space) -> tuple[int, int, int] | None:
    """Returns (H, W, C) of one image, None for other spaces.

    An image is uint8 (H, W, C), or (H, W) with all the values of a byte; a smaller range in (H, W)
    has classes, such as the pieces on a board.
    """
    if not (isinstance(space, spaces.Box) and space.dtype == np.uint8):
        return None
    if len(space.shape) == 2 and (space.high == 255).all():
        return (*space.shape, 1)
    return space.shape if len(space.shape) == 3 and not channels_first(space.shape) else None


def channels_first(shape: tuple[int, ...]) -> bool:
    """Returns whether this is likely the shape of an image (C, H, W).

    The last axis is longer than channels are, and the first is the shortest, or the only unequal
    one.
    """
    if len(shape) != 3 or shape[2] <= 4:
        return False
    return shape[0] < min(shape[1:]) or shape[0] != shape[1] == shape[2]


def children(space: gymnasium.Space) -> list[tuple[Any, gymnasium.Space]] | None:
    """Returns the named parts of a Dict or Tuple space, None for any other."""
    match space:
        case spaces.Dict():
            return list(space.spaces.items())
        case spaces.Tuple():
            return list(enumerate(space.spaces))
        case _:
            return None


def empty(space: gymnasium.Space, key: str) -> list[str]:
    """Returns the names and shapes of the parts of a space that have no elements."""
    parts = children(space)
    if parts is None:
        return [f"'{key}' of shape {space.shape}"] if 0 in (space.shape or ()) else []
    return [name for child, part in parts for name in empty(part, join(key, child))]


def codecs(observations: gymnasium.Space, actions: gymnasium.Space) -> tuple[Codec, Codec]:
    """Returns the codecs of the observations and of the actions of an environment.

    Raises:
      UserError: A space, or one inside it, is not supported, or has no elements at all.
    """
    both = observation_codec(observations), action_codec(actions)
    for what, space, codec in zip(
        ("observation", "action"), (observations, actions), both, strict=True
    ):
        if not codec.specs:
            raise UserError(f"the {what} space {space} is empty; give it an {what}")
    return both


def observation_codec(space: gymnasium.Space, key: str = "") -> Codec:
    """Returns the specs of an observation space and the encoder of its batches.

    Raises:
      UserError: The space, or one inside it, is not supported; two keys become the same.
    """
    parts = children(space)
    if parts is None:
        return _observation_leaf(space, key or ("image" if image_shape(space) else "observation"))
    inner = [(name, observation_codec(part, join(key, name))) for name, part in parts]

    def encode(batch: Any) -> dict[str, np.ndarray]:
        encoded: dict[str, np.ndarray] = {}
        for name, codec in inner:
            encoded.update(codec.convert(batch[name]))
        return encoded

    return Codec(_merge([codec.specs for _, codec in inner], "observation"), encode)


def _observation_leaf(space: gymnasium.Space, key: str) -> Codec:
    shape, image, whole = space.shape or (), image_shape(space), classes(space)
    leaf: specs.Array
    if 0 in shape:
        return Codec({}, lambda batch: {})
    if space.dtype == np.uint8 and channels_first(shape):
        raise UserError(
            f"observation '{key}' of shape {shape} and type uint8 is an image with its channels "
            "first; images are (height, width, channels): move the axis in a wrapper, such as "
            "gymnasium.wrappers.TransformObservation"
        )
    if space.dtype == np.uint8 and len(shape) > 3 and is_bytes(space):
        raise UserError(
            f"observation '{key}' of shape {shape} and type uint8 is a stack of images; images are "
            "(height, width, channels): put what is stacked into the channels, in a wrapper"
        )
    if isinstance(space, Mask):
        leaf = specs.BoundedArray(shape, bool, False, True, key)
    elif image:
        leaf = specs.BoundedArray(image, np.uint8, 0, 255, key)
    elif whole is not None:
        return _observed_classes(key, *whole)
    elif not isinstance(space, spaces.Box):
        raise UserError(_unsupported("observation", key, space))
    elif len(shape) <= 2:
        leaf = specs.Array(shape, np.float32, key)
    else:
        raise UserError(
            f"observation '{key}' is a Box of shape {shape} and type {space.dtype}; images are "
            "uint8 from 0 to 255 of shape (height, width, channels), vectors have rank 0 to 2; "
            "scale, cast or reshape it in a wrapper"
        )
    return Codec(
        {key: leaf}, lambda batch: {key: np.array(batch, leaf.dtype).reshape(-1, *leaf.shape)}
    )


def _observed_classes(key: str, start: np.ndarray, count: np.ndarray) -> Codec:
    if count.ndim > MAX_RANK:
        count, start = count.reshape(len(count), -1), start.reshape(len(start), -1)
    leaves = class_specs(key, count, max_rank=MAX_RANK)

    def encode(batch: Any) -> dict[str, np.ndarray]:
        numbers = np.asarray(batch).astype(np.int64).reshape(-1, *start.shape) - start
        if len(leaves) == 1:
            return {key: numbers.astype(np.int32).reshape(-1, *leaves[key].shape)}
        columns = numbers.astype(np.int32).reshape(len(numbers), -1)
        return {name: columns[:, i].copy() for i, name in enumerate(leaves)}

    return Codec(leaves, encode)


def action_codec(space: gymnasium.Space, key: str = "") -> Codec:
    """Returns the specs of an action space and the decoder of its batches.

    Continuous actions are clipped to [-1, 1], then scaled to the bounds of the space.

    Raises:
      UserError: The space, or one inside it, is not supported or has an infinite bound; two keys
        become the same.
    """
    parts = children(space)
    if parts is None:
        return _action_leaf(space, key or "action")
    inner = [(name, action_codec(part, join(key, name))) for name, part in parts]

    def decode(action: Any) -> Any:
        native = {name: codec.convert(action) for name, codec in inner}
        return native if isinstance(space, spaces.Dict) else tuple(native.values())

    return Codec(_merge([codec.specs for _, codec in inner], "action"), decode)


def action_units(space: gymnasium.Space, key: str = "") -> dict[str, dict[str, Any]]:
    """Returns the native units of the actions of `action_codec`, by key.

    Continuous actions have `low` and `high`, lists [A] of the values at -1 and 1; classes have
    `start`, the value of class 0, a list if there are several entries.
    """
    parts = children(space)
    if parts is not None:
        units = [action_units(part, join(key, name)) for name, part in parts]
        return {name: unit for part in units for name, unit in part.items()}
    leaves, whole = action_codec(space, key).specs, classes(space)
    if whole is None:
        assert isinstance(space, spaces.Box), "others are refused by the codec"
        bounds = {"low": space.low.ravel().tolist(), "high": space.high.ravel().tolist()}
        return dict.fromkeys(leaves, bounds)
    starts = [whole[0]] if len(leaves) == 1 else list(whole[0].flat)
    return {
        name: {"start": np.reshape(start, leaf.shape).tolist()}
        for (name, leaf), start in zip(leaves.items(), starts, strict=True)
    }


def _action_leaf(space: gymnasium.Space, key: str) -> Codec:
    dtype, shape = space.dtype, space.shape or ()
    if 0 in shape:
        return Codec({}, lambda action: np.zeros((len(next(iter(action.values()))), *shape), dtype))
    whole = classes(space)
    if whole is None and isinstance(space, spaces.Box):
        return _continuous(space, key)
    if whole is None:
        raise UserError(_unsupported("action", key, space))
    start, count = whole
    leaves = class_specs(key, count, max_rank=1)

    def decode(action: Any) -> np.ndarray:
        columns = [np.asarray(action[name]) for name in leaves]
        joined = columns[0] if len(columns) == 1 else np.stack(columns, -1)
        return (joined.reshape(-1, *shape).astype(np.int64) + start).astype(dtype)

    return Codec(leaves, decode)


def _continuous(space: spaces.Box, key: str) -> Codec:
    """Of floats, or of integers of too many values for classes, to which actions are rounded."""
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    whole = not np.issubdtype(space.dtype, np.floating)
    if not np.isfinite(high - low).all() or (whole and (high - low >= MAX_STEPS).any()):
        raise UserError(
            f"action '{key}' of shape {space.shape} and type {space.dtype} has an infinite bound, "
            "or bounds too far apart, continuous actions need finite ones; bound it in a wrapper, "
            "which env.entry_point or an id registered for it can make"
        )
    leaf = specs.BoundedArray((low.size,), np.float32, -1.0, 1.0, key)

    def decode(action: Any) -> np.ndarray:
        unit = (np.asarray(action[key], np.float64).reshape(-1, *space.shape) + 1.0) / 2.0
        scaled = low + unit * (high - low)
        scaled = np.rint(scaled) if whole else scaled
        return np.clip(scaled, low, high).astype(space.dtype)  # the same as clipping to [-1, 1]

    return Codec({key: leaf}, decode)


def classes(space: gymnasium.Space) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns (first value, number of values) per entry; None if the space holds no classes."""
    match space:
        case spaces.Discrete():
            return np.asarray(space.start, np.int64), np.asarray(space.n, np.int64)
        case spaces.MultiDiscrete():
            return space.start.astype(np.int64), space.nvec.astype(np.int64)
        case spaces.MultiBinary():
            return np.zeros(space.shape, np.int64), np.full(space.shape, 2, np.int64)
        case spaces.Box() if not np.issubdtype(space.dtype, np.floating):
            low, high = space.low.astype(np.float64), space.high.astype(np.float64)
            if (high - low < MAX_CLASSES).all():
                return low.astype(np.int64), (high - low).astype(np.int64) + 1
    return None


def class_specs(key: str, count: np.ndarray, max_rank: int) -> Specs:
    """Returns one spec if the number of classes is equal and the rank allows, else one each."""
    _refuse_many(f"'{key}' of shape {count.shape}", count.sum(dtype=np.float64))
    if count.ndim == 0:
        return {key: specs.DiscreteArray(int(count), np.int32, key)}
    if count.ndim <= max_rank and (count == count.flat[0]).all():
        return {key: specs.BoundedArray(count.shape, np.int32, 0, int(count.flat[0]) - 1, key)}
    names = [f"{key}_{i}" for i in range(count.size)]
    return {
        name: specs.DiscreteArray(int(n), np.int32, name)
        for name, n in zip(names, count.flat, strict=True)
    }


def join(key: str, name: Any) -> str:
    name = str(name).replace("/", "_")
    return f"{key}_{name}" if key else name


def _merge(parts: list[Specs], what: str) -> Specs:
    merged: dict[str, Any] = {}
    for part in parts:
        for key, leaf in part.items():
            if key in merged:
                raise UserError(
                    f"two {what}s are both named '{key}' once nested keys are joined by '_'; "
                    "rename one"
                )
            merged[key] = leaf
    whole = [leaf for leaf in merged.values() if leaf.dtype == np.int32]
    sizes = [np.prod(leaf.shape) * (np.max(leaf.maximum) + 1.0) for leaf in whole]
    _refuse_many(f"all {what}s together, of {len(whole)} keys,", sum(sizes))
    return merged


def _refuse_many(what: str, number: float) -> None:
    """Refuses more classes than networks take."""
    if number > MAX_ONE_HOT:
        raise UserError(
            f"{what} has {number:,.0f} classes, each an input of the networks, which take at most "
            f"{MAX_ONE_HOT:,} in all; encode them in a wrapper: numbers as float32, an image as "
            "uint8 (height, width, channels)"
        )


def is_bytes(space: gymnasium.Space) -> bool:
    """Returns whether all values from 0 to 255 are allowed."""
    return isinstance(space, spaces.Box) and bool(((space.low == 0) & (space.high == 255)).all())


def _unsupported(what: str, key: str, space: gymnasium.Space) -> str:
    return (
        f"{what} '{key}' is a {type(space).__name__} space, which is not supported; supported are "
        f"{SUPPORTED}; turn it into one of them in a wrapper"
    )
