"""Running percentiles to normalise returns (Hafner et al. 2025, equation 8)."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import Array


class Percentiles(NamedTuple):
    """Running lower and upper percentile, float32 scalars, initially 0, not bias-corrected."""

    low: Array
    high: Array


def init() -> Percentiles:
    """Both at 0."""
    return Percentiles(jnp.zeros(()), jnp.zeros(()))


def update(
    state: Percentiles, x: Array, rate: float, low: float, high: float, axis_name: str | None = None
) -> Percentiles:
    """Moves both percentiles by `rate` toward those of `x`.

    Args:
      state: percentiles so far.
      x: any shape; the percentiles are taken over all of it, on all devices.
      rate: step size.
      low, high: percentiles, 0 to 100, linearly interpolated.
      axis_name: the device axis to gather `x` over, if any.

    Returns:
      The new percentiles.
    """
    chex.assert_rank([state.low, state.high], 0)
    chex.assert_type(x, float)
    x = jax.lax.stop_gradient(x.astype(jnp.float32)).reshape(-1)
    if axis_name:
        x = jax.lax.all_gather(x, axis_name).reshape(-1)
    now = jnp.percentile(x, jnp.array([low, high]))
    return Percentiles(
        (1 - rate) * state.low + rate * now[0], (1 - rate) * state.high + rate * now[1]
    )


def scale(state: Percentiles, floor: float) -> Array:
    """The range between the percentiles, at least `floor`; scalar."""
    chex.assert_rank([state.low, state.high], 0)
    return jnp.maximum(floor, state.high - state.low)
