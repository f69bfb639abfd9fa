"""Loss terms of the world model, per step and in nats (Hafner et al. 2025, equations 2 to 5)."""

import chex
import jax
import jax.numpy as jnp
from jax import Array

from dreamer.ops.distributions import Distribution
from dreamer.ops.transforms import symlog


def free_kl(p: Distribution, q: Distribution, free_nats: float) -> Array:
    """max(free_nats, KL(p || q)): zero gradient where the divergence is below `free_nats`.

    Args:
      p, q: distributions of the same batch shape [...].
      free_nats: nats per step.

    Returns:
      [...].
    """
    chex.assert_equal(p.batch_shape, q.batch_shape)
    return jnp.maximum(free_nats, p.kl_divergence(q))


def binary_cross_entropy(logit: Array, target: Array) -> Array:
    """-(y log s(x) + (1 - y) log s(-x)), s the sigmoid, target y in [0, 1]. Elementwise."""
    chex.assert_is_broadcastable(jnp.shape(target), logit.shape)
    chex.assert_type(logit, float)
    logit = logit.astype(jnp.float32)
    return -(target * jax.nn.log_sigmoid(logit) + (1 - target) * jax.nn.log_sigmoid(-logit))


def image_loss(prediction: Array, target: Array) -> Array:
    """Squared error summed over an image.

    Args:
      prediction: [..., H, W, C] in [0, 1].
      target: [..., H, W, C] uint8.

    Returns:
      [...].
    """
    chex.assert_equal_shape([prediction, target])
    chex.assert_shape(prediction, (..., None, None, None))
    chex.assert_type([prediction, target], [float, jnp.uint8])
    error = prediction.astype(jnp.float32) - target.astype(jnp.float32) / 255
    return jnp.square(error).sum((-3, -2, -1))


def symlog_loss(prediction: Array, target: Array, ndims: int) -> Array:
    """Squared error in symlog space summed over the last `ndims` axes.

    Args:
      prediction: [..., *event], already in symlog space.
      target: [..., *event], raw.
      ndims: number of event axes.

    Returns:
      [...].
    """
    chex.assert_equal_shape([prediction, target])
    error = prediction.astype(jnp.float32) - symlog(target.astype(jnp.float32))
    return jnp.square(error).sum(tuple(range(-ndims, 0)))


def class_loss(logits: Array, target: Array, ndims: int) -> Array:
    """Cross-entropy of integer classes summed over the last `ndims` axes of the target.

    Args:
      logits: [..., *event, K].
      target: [..., *event], integers in [0, K).
      ndims: number of event axes.

    Returns:
      [...].
    """
    chex.assert_shape(logits, (*target.shape, None))
    chex.assert_type([logits, target], [float, int])
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
    loss = -jnp.take_along_axis(log_probs, target[..., None].astype(jnp.int32), -1)[..., 0]
    return loss.sum(tuple(range(-ndims, 0)))
