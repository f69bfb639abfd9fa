"""Observations and actions as inputs and outputs of networks, from their dm_env specs."""

import re
from collections.abc import Mapping
from typing import Literal, TypeAlias

import chex
import jax
import jax.numpy as jnp
import numpy as np
from dm_env import specs
from jax import Array
from jax.typing import DTypeLike

from dreamer.errors import UserError

Spec: TypeAlias = specs.Array
Specs: TypeAlias = Mapping[str, Spec]
Kind = Literal["image", "mask", "discrete", "continuous"]
Size = tuple[int, int]  # height, width

MIN_SIDE, MAX_SIDE = 3, 16  # pixels of the smallest image inside the networks


def kind(spec: Spec) -> Kind:
    """image: of rank 3; mask: booleans; discrete: other integers with bounds; continuous:
    floats."""
    if len(spec.shape) == 3:
        return "image"
    if spec.dtype == np.bool_:
        return "mask"
    return "discrete" if np.issubdtype(spec.dtype, np.integer) else "continuous"


def classes(spec: Spec) -> int:
    """Number of classes of a discrete spec, the same for all its entries."""
    assert isinstance(spec, specs.BoundedArray)
    return int(np.max(spec.maximum)) + 1


def check_observations(observations: Specs) -> None:
    """Refuses observations that the networks cannot model.

    Raises:
      UserError: naming the key and its shape.
    """
    if all(kind(spec) == "mask" for spec in observations.values()):
        raise UserError(
            "the environment has no observations; it needs at least one image or vector"
        )
    for key, spec in observations.items():
        is_image = spec.dtype == np.uint8 and len(spec.shape) == 3
        if not is_image and len(spec.shape) > 2:
            raise UserError(
                f"observation {key!r} of shape {spec.shape} and dtype {spec.dtype} is not "
                "supported; allowed are uint8 images of rank 3 and vectors of rank 0 to 2"
            )


def chosen(observations: Specs, pattern: str, option: str) -> dict[str, Spec]:
    """The observations whose full key matches a regular expression, masks excluded.

    Raises:
      UserError: no match, or an invalid regular expression.
    """
    keys = [key for key, spec in observations.items() if kind(spec) != "mask"]
    try:
        found = {key: observations[key] for key in keys if re.fullmatch(pattern, key)}
    except re.error as error:
        raise UserError(f"{option}={pattern}: invalid regular expression: {error}") from None
    if not found:
        raise UserError(f"{option}={pattern} matches no observation; there are {', '.join(keys)}")
    return found


def mask_key(action: str) -> str:
    """Key of the observation that masks an action."""
    return "action_mask" if action == "action" else f"action_mask_{action}"


def masked(observations: Specs, actions: Specs) -> dict[str, Spec]:
    """The specs of masks by action key.

    Raises:
      UserError: a mask has the wrong shape, or its action is not discrete.
    """
    found = {}
    for key, spec in actions.items():
        mask = observations.get(mask_key(key))
        if mask is None:
            continue
        shape = (*spec.shape, classes(spec)) if kind(spec) == "discrete" else None
        if kind(mask) != "mask" or mask.shape != shape:
            expected = f"booleans of shape {shape}" if shape else "none, it is continuous"
            raise UserError(
                f"observation {mask_key(key)!r} of shape {mask.shape} and dtype {mask.dtype} is "
                f"the mask of action {key!r}, for which is expected: {expected}"
            )
        found[key] = mask
    stray = {key for key, spec in observations.items() if kind(spec) == "mask"}
    stray -= {mask_key(key) for key in found}
    if stray:
        raise UserError(
            f"observation {min(stray)!r} is a mask of no action; the actions are "
            f"{', '.join(sorted(actions))}, whose masks are named "
            f"{', '.join(mask_key(key) for key in sorted(actions))}"
        )
    return found


def by_size(observations: Specs) -> dict[Size, dict[str, Spec]]:
    """The images, grouped by height and width."""
    groups: dict[Size, dict[str, Spec]] = {}
    for key, spec in observations.items():
        if kind(spec) == "image":
            groups.setdefault((spec.shape[0], spec.shape[1]), {})[key] = spec
    return groups


def stages(size: Size, mults: tuple[int, ...]) -> tuple[tuple[int, ...], list[Size]]:
    """The stages of the image networks, each of which halves both sides, rounded up.

    One per entry of `mults`; the first ones are dropped while the smallest image would have a side
    below 3 pixels, and the first is repeated while it would have a side above 16.

    Returns:
      The channels' multiples of each stage, and the sizes before, between and after the stages.
    """
    used = list(mults)
    while len(used) > 1 and min(halved(size, len(used))) < MIN_SIDE:
        used.pop(0)
    while max(halved(size, len(used))) > MAX_SIDE and min(halved(size, len(used) + 1)) >= MIN_SIDE:
        used.insert(0, mults[0])
    return tuple(used), [halved(size, count) for count in range(len(used) + 1)]


def halved(size: Size, times: int) -> Size:
    """Height and width after a number of halvings, rounded up."""
    height, width = (-(-side // 2**times) for side in size)
    return height, width


def flat(value: Array, spec: Spec, dtype: DTypeLike) -> Array:
    """One vector per step, one-hot classes or numbers: [..., *shape] to [..., n]."""
    chex.assert_shape(value, (..., *spec.shape))
    batch = value.shape[: value.ndim - len(spec.shape)]
    if kind(spec) == "discrete":
        value = jax.nn.one_hot(value, classes(spec), dtype=dtype)
    return value.astype(dtype).reshape(*batch, -1)


def embed_action(action: Mapping[str, Array], action_specs: Specs, dtype: DTypeLike) -> Array:
    """The action as one vector [..., A], keys in sorted order; discrete parts are one-hot."""
    return jnp.concatenate(
        [flat(action[key], action_specs[key], dtype) for key in sorted(action_specs)], -1
    )
