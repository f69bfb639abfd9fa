"""Lambda returns (Sutton 1988; Hafner et al. 2025, equation 7)."""

import chex
import jax
import jax.numpy as jnp
from jax import Array


def lambda_return(reward: Array, discount: Array, lam: Array | float, bootstrap: Array) -> Array:
    """R[t] = r[t+1] + d[t+1] ((1 - lam[t+1]) v[t+1] + lam[t+1] R[t+1]), starting from R[T-1] =
    v[T-1].

    Position 0 of `reward` and `discount` is not used: it belongs to the previous step.

    Args:
      reward: r [T, ...], received on arriving at each state.
      discount: d [T, ...], 0 where the episode has terminated.
      lam: scalar or [T, ...]; 0 stops the mixing at the end of an episode.
      bootstrap: v [T, ...], value estimates.

    Returns:
      [T - 1, ...].
    """
    chex.assert_equal_shape([reward, discount, bootstrap])
    chex.assert_is_broadcastable(jnp.shape(lam), reward.shape)
    chex.assert_type([reward, discount, bootstrap], float)
    lam = jnp.broadcast_to(lam, reward.shape)[1:]
    # R[t] = offset[t] + gain[t] R[t+1]: composition of affine maps is associative, so a parallel
    # scan applies.
    offset = reward[1:] + discount[1:] * (1 - lam) * bootstrap[1:]
    gain = discount[1:] * lam

    def compose(later: tuple[Array, Array], now: tuple[Array, Array]) -> tuple[Array, Array]:
        return now[0] + now[1] * later[0], now[1] * later[1]

    offset, gain = jax.lax.associative_scan(compose, (offset, gain), reverse=True)
    return offset + gain * bootstrap[-1][None]
