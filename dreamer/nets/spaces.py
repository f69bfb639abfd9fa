"""How observations and actions look to the networks, from their dm_env specs."""

from collections.abc import Mapping
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from dm_env import specs
from jax import Array
from jax.typing import DTypeLike

from dreamer.errors import UserError

Spec: TypeAlias = specs.Array
Specs: TypeAlias = Mapping[str, Spec]
Kind = Literal["image", "discrete", "continuous"]


def kind(spec: Spec) -> Kind:
    """image: uint8 of rank 3; discrete: other integers with bounds; continuous: floats."""
    if len(spec.shape) == 3:
        return "image"
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
    if not observations:
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
    sizes = {key: spec.shape[:2] for key, spec in observations.items() if kind(spec) == "image"}
    if len(set(sizes.values())) > 1:
        raise UserError(
            f"images must share one height and width, got {sizes}; resize them in the environment"
        )


def flat(value: Array, spec: Spec, dtype: DTypeLike) -> Array:
    """One vector per step, of one-hot classes or the numbers: [..., *shape] to [..., n]."""
    batch = value.shape[: value.ndim - len(spec.shape)]
    if kind(spec) == "discrete":
        value = jax.nn.one_hot(value, classes(spec), dtype=dtype)
    return value.astype(dtype).reshape(*batch, -1)


def embed_action(action: Mapping[str, Array], action_specs: Specs, dtype: DTypeLike) -> Array:
    """The action as one vector [..., A], keys in sorted order; discrete parts are one-hot."""
    return jnp.concatenate(
        [flat(action[key], action_specs[key], dtype) for key in sorted(action_specs)], -1
    )
