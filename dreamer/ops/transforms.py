"""Symlog, symexp and the two-hot code of scalars (Hafner et al. 2025, equations 1, 9 and 10)."""

import chex
import jax
import jax.numpy as jnp
from jax import Array


def symlog(x: Array) -> Array:
    """sign(x) log(1 + |x|), elementwise; the inverse of `symexp`."""
    chex.assert_type(x, float)
    return jnp.sign(x) * jnp.log1p(jnp.abs(x))


def symexp(x: Array) -> Array:
    """sign(x) (exp(|x|) - 1), elementwise; the inverse of `symlog`."""
    chex.assert_type(x, float)
    return jnp.sign(x) * jnp.expm1(jnp.abs(x))


def symexp_bins(count: int) -> Array:
    """Exactly symmetric bins, symexp of an even grid over [-20, 20].

    Args:
      count: number of bins M; an odd count has one bin at 0, an even count two.

    Returns:
      Ascending bins [M], float32.
    """
    if count % 2:
        half = symexp(jnp.linspace(-20.0, 0.0, (count - 1) // 2 + 1, dtype=jnp.float32))
        return jnp.concatenate([half, -half[:-1][::-1]])
    half = symexp(jnp.linspace(-20.0, 0.0, count // 2, dtype=jnp.float32))
    return jnp.concatenate([half, -half[::-1]])


def two_hot_mean(logits: Array, bins: Array) -> Array:
    """Expected value of a distribution over symmetric bins.

    Each bin is added to its mirror image first, so uniform probabilities give exactly 0.

    Args:
      logits: [..., M].
      bins: [M], symmetric around 0.

    Returns:
      [...], float32.
    """
    chex.assert_rank(bins, 1)
    chex.assert_shape(logits, (..., *bins.shape))
    probs = jax.nn.softmax(logits.astype(jnp.float32))
    weighted = probs * jnp.broadcast_to(bins, probs.shape)
    count = bins.shape[-1]
    low = weighted[..., : count // 2]
    high = weighted[..., (count + 1) // 2 :]
    middle = weighted[..., count // 2 : (count + 1) // 2].sum(-1)
    return middle + (low[..., ::-1] + high).sum(-1)


def two_hot(target: Array, bins: Array) -> tuple[Array, Array, Array, Array]:
    """The two neighbouring bins of a scalar and the weights that reproduce it.

    A target on a bin has weight 1 there; a target outside is clipped to the outermost bin; NaN
    gives NaN weights.

    Args:
      target: [...].
      bins: [M], ascending.

    Returns:
      (low index, high index, low weight, high weight), each [...]; the weights sum to 1.
    """
    chex.assert_rank(bins, 1)
    chex.assert_type([target, bins], float)
    count = bins.shape[-1]
    # Compares all bins at once: a binary search would be a loop of small operations.
    above = (target[..., None] >= jnp.expand_dims(bins, range(target.ndim))).sum(-1)
    low, high = jnp.clip(above - 1, 0, count - 1), jnp.clip(above, 0, count - 1)
    outside = (low == high) & ~jnp.isnan(target)  # which must not count as the lowest bin
    to_low = jnp.where(outside, 0.0, jnp.abs(bins[low] - target))
    to_high = jnp.where(outside, 1.0, jnp.abs(bins[high] - target))
    total = to_low + to_high
    return low, high, to_high / total, to_low / total


def two_hot_loss(logits: Array, target: Array, bins: Array) -> Array:
    """Cross-entropy between the two-hot code of `target` and softmax(logits).

    Args:
      logits: [..., M].
      target: [...], in the space of the bins; no gradient flows into it.
      bins: [M].

    Returns:
      [...], nats, float32.
    """
    chex.assert_rank(bins, 1)
    chex.assert_shape(logits, (*target.shape, *bins.shape))
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
    low, high, low_weight, high_weight = two_hot(
        jax.lax.stop_gradient(target.astype(jnp.float32)), bins
    )

    def pick(index: Array) -> Array:
        return jnp.take_along_axis(log_probs, index[..., None], -1)[..., 0]

    return -(low_weight * pick(low) + high_weight * pick(high))
