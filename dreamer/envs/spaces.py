"""Gymnasium spaces as specs, with the batched conversion of observations and actions.

Legend: N environments.

Kinds: uint8 boxes (H, W, C), or (H, W) with values up to 255, are images; other boxes are float32
vectors, unless they hold at most 256 whole numbers; Discrete, MultiDiscrete and MultiBinary are
int32 classes that count from 0 (the start of a space is removed). Entries with unequal numbers of
classes become a key each: `key_0`, `key_1`, ... Classes in arrays of rank 3 and more become rows.
Nested Dict and Tuple spaces are flattened, keys joined by '_'. Arrays without elements are left
out, which `empty` lists. Masks are booleans.
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

MAX_CLASSES = 256  # whole numbers with more values than this are read as a vector
MAX_ONE_HOT = 2**16  # of all entries and keys: classes are one-hot vectors to the networks
BYTE = 255
MAX_RANK = 2  # of classes that are observed
MAX_STEPS = 2**53  # whole numbers that a float64 tells apart
SUPPORTED = "Box, Discrete, MultiDiscrete, MultiBinary and Dict or Tuple of these"


class Mask(spaces.MultiBinary):
    """Which classes of an action are valid: 1 or 0 for each, see `masks`."""


@dataclass(frozen=True)
class Codec:
    """Specs of a space, and the way between its batched native form and a dict of arrays [N, ...].

    For observations `convert` maps native to dict; for actions, dict to native.
    """

    specs: Specs
    convert: Callable[[Any], Any]


def image_shape(space: gymnasium.Space) -> tuple[int, int, int] | None:
    """Returns (H, W, C) of one image, None for all else.

    An image is uint8 (H, W, C), or (H, W) with all the values of a byte; a smaller range in (H, W)
    is a board of pieces or the like, which are classes.
    """
    if not (isinstance(space, spaces.Box) and space.dtype == np.uint8):
        return None
    if len(space.shape) == 2 and (space.high == 255).all():
        return (*space.shape, 1)
    return space.shape if len(space.shape) == 3 and not channels_first(space.shape) else None


def channels_first(shape: tuple[int, ...]) -> bool:
    """Returns whether this is the shape of an image (C, H, W), as far as a shape shows it.

    The last axis is longer than channels are, and the first is the shortest, or the odd one out.
    """
    if len(shape) != 3 or shape[2] <= 4:
        return False
    return shape[0] < min(shape[1:]) or shape[0] != shape[1] == shape[2]


def children(space: gymnasium.Space) -> list[tuple[Any, gymnasium.Space]] | None:
    """Returns the named parts of a Dict or Tuple space, None for any other."""
    if isinstance(space, spaces.Dict):
        return list(space.spaces.items())
    if isinstance(space, spaces.Tuple):
        return list(enumerate(space.spaces))
    return None


def empty(space: gymnasium.Space, key: str) -> list[str]:
    """Returns the names and shapes of the parts of a space that have no elements."""
    parts = children(space)
    if parts is None:
        return [f"'{key}' of shape {space.shape}"] if 0 in (space.shape or ()) else []
    return [name for child, part in parts for name in empty(part, join(key, child))]


def codecs(observations: gymnasium.Space, actions: gymnasium.Space) -> tuple[Codec, Codec]:
    """Returns those of the observations and of the actions of an environment.

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


# ----------------------------------------------------------------------------------------------
# observations


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
    if 0 in (space.shape or ()):
        return Codec({}, lambda batch: {})
    if isinstance(space, Mask):
        mask = specs.BoundedArray(space.shape, bool, False, True, key)
        return Codec({key: mask}, lambda batch: {key: np.array(batch, bool)})
    if space.dtype == np.uint8 and channels_first(space.shape or ()):
        raise UserError(
            f"observation '{key}' of shape {space.shape} and type uint8 is an image with its "
            "channels first; images are (height, width, channels): move the axis in a wrapper, "
            "such as gymnasium.wrappers.TransformObservation"
        )
    if space.dtype == np.uint8 and len(space.shape or ()) > 3 and is_bytes(space):
        raise UserError(
            f"observation '{key}' of shape {space.shape} and type uint8 is a stack of images; "
            "images are (height, width, channels): put what is stacked into the channels, in a "
            "wrapper"
        )
    image = image_shape(space)
    if image:
        spec = specs.BoundedArray(image, np.uint8, 0, 255, key)
        return Codec(
            {key: spec}, lambda batch: {key: np.array(batch, np.uint8).reshape(-1, *image)}
        )
    whole = classes(space)
    if whole is not None:
        start, count = whole
        if count.ndim > MAX_RANK:
            count, start = count.reshape(len(count), -1), start.reshape(len(start), -1)
        leaves = class_specs(key, count, max_rank=MAX_RANK)

        def encode(batch: Any) -> dict[str, np.ndarray]:
            numbers = np.asarray(batch).astype(np.int64).reshape(-1, *start.shape)
            return _split(leaves, (numbers - start).astype(np.int32))

        return Codec(leaves, encode)
    if isinstance(space, spaces.Box) and len(space.shape) <= 2:
        leaf = specs.Array(space.shape, np.float32, key)
        return Codec({key: leaf}, lambda batch: {key: np.array(batch, np.float32)})
    if isinstance(space, spaces.Box):
        raise UserError(
            f"observation '{key}' is a Box of shape {space.shape} and type {space.dtype}; images "
            "are uint8 from 0 to 255 of shape (height, width, channels), vectors have rank 0 to 2; "
            "scale, cast or reshape it in a wrapper"
        )
    raise UserError(_unsupported("observation", key, space))


# ----------------------------------------------------------------------------------------------
# actions


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
    """What the actions of `action_codec` are in the units of the space, by key.

    Returns:
      Of continuous actions `low` and `high`, lists [A] of the values at -1 and 1; of classes
      `start`, the value of class 0, a list where there are several entries.
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
    """Of floats, or of more whole numbers than are told apart as classes, which are rounded to."""
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


# ----------------------------------------------------------------------------------------------
# shared


def classes(space: gymnasium.Space) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns (first value, number of values) per entry; None when the space holds no classes."""
    if isinstance(space, spaces.Discrete):
        return np.asarray(space.start, np.int64), np.asarray(space.n, np.int64)
    if isinstance(space, spaces.MultiDiscrete):
        return space.start.astype(np.int64), space.nvec.astype(np.int64)
    if isinstance(space, spaces.MultiBinary):
        return np.zeros(space.shape, np.int64), np.full(space.shape, 2, np.int64)
    if isinstance(space, spaces.Box) and not np.issubdtype(space.dtype, np.floating):
        low, high = space.low.astype(np.float64), space.high.astype(np.float64)
        if (high - low < MAX_CLASSES).all():
            return low.astype(np.int64), (high - low).astype(np.int64) + 1
    return None


def class_specs(key: str, count: np.ndarray, max_rank: int) -> Specs:
    """Returns one spec if the entries have equally many classes and rank allows, else one each."""
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


def _split(leaves: Specs, batch: np.ndarray) -> dict[str, np.ndarray]:
    """Distributes int32 [N, ...] over the keys of `class_specs`."""
    if len(leaves) == 1:
        name, leaf = next(iter(leaves.items()))
        return {name: batch.reshape(-1, *leaf.shape)}
    columns = batch.reshape(len(batch), -1)
    return {name: columns[:, i].copy() for i, name in enumerate(leaves)}


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
    return isinstance(space, spaces.Box) and bool(((space.low == 0) & (space.high == BYTE)).all())


def _unsupported(what: str, key: str, space: gymnasium.Space) -> str:
    return (
        f"{what} '{key}' is a {type(space).__name__} space, which is not supported; supported are "
        f"{SUPPORTED}; turn it into one of them in a wrapper"
    )
