"""The distributions of latents and actions; the only file that imports distrax.

Samples are made from noise that is drawn beforehand, outside of any scan: a sample is a
deterministic, differentiable function of the distribution and its noise. Noise of None stands for
the mode.
"""

from typing import TypeAlias

import jax
import jax._src.core
import jax.numpy as jnp
from jax import Array

# tensorflow-probability, which distrax imports, still reads this table under its old name, which
# jax deprecates.
jax.core.pytype_aval_mappings = jax._src.core.pytype_aval_mappings

import distrax  # noqa: E402

Distribution: TypeAlias = distrax.Distribution


def one_hot(logits: Array, unimix: float) -> Distribution:
    """Categorical over one-hot vectors, mixed with the uniform distribution.

    p = (1 - unimix) softmax(logits) + unimix / K (Hafner et al. 2025, "unimix categoricals").

    Args:
      logits: [..., K].
      unimix: share of the uniform distribution.

    Returns:
      Distribution with event shape [K] and float32 parameters.
    """
    logits = logits.astype(jnp.float32)
    if unimix:
        probs = (1 - unimix) * jax.nn.softmax(logits) + unimix / logits.shape[-1]
        return _Mixed(probs)
    return distrax.OneHotCategorical(logits=logits, dtype=jnp.float32)


class _Mixed(distrax.OneHotCategorical):
    """Probabilities that sum up to 1 already; distrax would divide them by their sum again."""

    def __init__(self, probs: Array) -> None:
        super().__init__(probs=probs, dtype=jnp.float32)
        self._probs = probs


def normal(mean: Array, std: Array) -> Distribution:
    """Normal distributions with float32 parameters of any shape; the event is a scalar."""
    return distrax.Normal(mean.astype(jnp.float32), std.astype(jnp.float32))


def bounded_std(raw: Array, low: float, high: float) -> Array:
    """(high - low) sigmoid(raw + 2) + low: a bounded standard deviation, elementwise, float32."""
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
    if isinstance(inner, distrax.OneHotCategorical):
        chosen = inner.logits if noise is None else inner.logits + noise
        hard = jax.nn.one_hot(chosen.argmax(-1), chosen.shape[-1])
        return _straight_through(hard, inner.probs)
    return inner.mean() if noise is None else inner.mean() + inner.stddev() * noise


@jax.custom_jvp
def _straight_through(value: Array, soft: Array) -> Array:
    """value + soft - stop_gradient(soft), of which nothing is computed but the value."""
    return value


_straight_through.defjvp(lambda primals, tangents: (primals[0], tangents[1]))
