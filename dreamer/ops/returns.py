"""Lambda returns (Sutton 1988; Hafner et al. 2025, equation 7)."""

import jax
import jax.numpy as jnp
from jax import Array


def lambda_return(reward: Array, discount: Array, lam: Array | float, bootstrap: Array) -> Array:
    """R[t] = r[t+1] + d[t+1] ((1 - lam[t+1]) v[t+1] + lam[t+1] R[t+1]), starting from R[T-1] =
    v[T-1].

    Position 0 of `reward` and `discount` does not enter: they belong to the step before.

    Args:
      reward: r [T, ...], received on arriving at each state.
      discount: d [T, ...], 0 where the episode has terminated.
      lam: scalar or [T, ...]; 0 stops the mixing at the end of an episode.
      bootstrap: v [T, ...], value estimates.

    Returns:
      [T - 1, ...].
    """
    lam = jnp.broadcast_to(lam, reward.shape)

    def step(later: Array, now: tuple[Array, Array, Array, Array]) -> tuple[Array, Array]:
        r, d, mix, v = now
        value = r + d * ((1 - mix) * v + mix * later)
        return value, value

    inputs = (reward[1:], discount[1:], lam[1:], bootstrap[1:])
    _, returns = jax.lax.scan(step, bootstrap[-1], inputs, reverse=True)
    return returns
