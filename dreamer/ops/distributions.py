"""The distributions of latents and actions; the only file that imports distrax.

Noise is drawn in advance, outside any scan: a sample is a deterministic, differentiable function of
the distribution and its noise. Noise of None gives the mode.
"""

from typing import TypeAlias

import chex
import jax
import jax._src.core
import jax.numpy as jnp
from jax import Array

# tensorflow-probability, which distrax imports, still reads this table under its old name, which
# jax deprecates.
jax.core.pytype_aval_mappings = jax._src.core.pytype_aval_mappings

import distrax  # noqa: E402

Distribution: TypeAlias = distrax.Distribution
INVALID = -1e9  # logit of an invalid class; exp of it is zero


def one_hot(logits: Array, unimix: float, valid: Array | None = None) -> Distribution:
    """Categorical over one-hot vectors, mixed with the uniform distribution.

    p = (1 - unimix) softmax(logits) + unimix / K (Hafner et al. 2025, "unimix categoricals"). With
    a mask both are over the valid classes alone: the others have probability zero.

    Args:
      logits: [..., K].
      unimix: share of the uniform distribution.
      valid: bool [..., K]; where none of the K is valid, all are.

    Returns:
      Distribution with event shape [K] and float32 parameters.
    """
    chex.assert_type(logits, float)
    logits = logits.astype(jnp.float32)
    if valid is not None:
        chex.assert_equal_shape([logits, valid])
        chex.assert_type(valid, bool)
        return _masked(logits, unimix, valid | ~valid.any(-1, keepdims=True))
    if unimix:
        probs = (1 - unimix) * jax.nn.softmax(logits) + unimix / logits.shape[-1]
        return _Mixed(probs)
    return distrax.OneHotCategorical(logits=logits, dtype=jnp.float32)


def _masked(logits: Array, unimix: float, valid: Array) -> Distribution:
    """With finite logits everywhere: those of invalid classes are low enough that their
    probability and entropy are zero in value and gradient."""
    log_probs = jax.nn.log_softmax(jnp.where(valid, logits, INVALID))
    if unimix:
        uniform = valid / valid.sum(-1, keepdims=True)
        mixed = (1 - unimix) * jnp.exp(log_probs) + unimix * uniform
        log_probs = jnp.log(jnp.where(valid, mixed, 1.0))
    logits = jnp.where(valid, log_probs, INVALID)
    return distrax.OneHotCategorical(logits=logits, dtype=jnp.float32)


class _Mixed(distrax.OneHotCategorical):
    """Probabilities, which already sum to 1; distrax would normalise them again."""

    def __init__(self, probs: Array) -> None:
        super().__init__(probs=probs, dtype=jnp.float32)
        self._probs = probs


def normal(mean: Array, std: Array) -> Distribution:
    """Normal distributions with float32 parameters of any shape; the event is a scalar."""
    chex.assert_equal_shape([mean, std])
    chex.assert_type([mean, std], float)
    return distrax.Normal(mean.astype(jnp.float32), std.astype(jnp.float32))


def bounded_std(raw: Array, low: float, high: float) -> Array:
    """(high - low) sigmoid(raw + 2) + low: a bounded standard deviation, elementwise, float32."""
    chex.assert_type(raw, float)
    return (high - low) * jax.nn.sigmoid(raw.astype(jnp.float32) + 2.0) + low


def independent(dist: Distribution, ndims: int) -> Distribution:
    """Reads the last `ndims` batch axes as one event: log-probability, entropy, KL are sums."""
    return distrax.Independent(dist, ndims) if ndims else dist


def draw(dist: Distribution, noise: Array | None) -> Array:
    """A sample, or the mode without noise, with gradients to the parameters of the distribution.

    Normals are reparameterised: mean + std noise. One-hot samples are argmax(logits + noise)
    (Gumbel-max) and carry the gradient of the probabilities (straight-through, Bengio et al. 2013).

    Args:
      dist: from this file, possibly inside `independent`.
      noise: of the shape of the sample, standard Gumbel for one-hot and standard normal for normal
        distributions.

    Returns:
      Batch shape + event shape, float32.
    """
    inner = dist.distribution if isinstance(dist, distrax.Independent) else dist
    if noise is not None:
        chex.assert_shape(noise, (*inner.batch_shape, *inner.event_shape))
    if isinstance(inner, distrax.OneHotCategorical):
        chosen = inner.logits if noise is None else inner.logits + noise
        hard = jax.nn.one_hot(chosen.argmax(-1), chosen.shape[-1])
        return _straight_through(hard, inner.probs)
    return inner.mean() if noise is None else inner.mean() + inner.stddev() * noise


@jax.custom_jvp
def _straight_through(value: Array, soft: Array) -> Array:
    """value + soft - stop_gradient(soft), computing only the value."""
    return value


_straight_through.defjvp(lambda primals, tangents: (primals[0], tangents[1]))
