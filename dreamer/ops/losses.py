"""Loss terms of the world model, per step and in nats (Hafner et al. 2025, equations 2 to 5)."""

import jax
import jax.numpy as jnp
from jax import Array

from dreamer.ops.distributions import Distribution
from dreamer.ops.transforms import symlog


def free_kl(p: Distribution, q: Distribution, free_nats: float) -> Array:
    """max(free_nats, KL(p || q)): no gradient flows where the divergence is below `free_nats`.

    Args:
      p, q: distributions of the same batch shape [...].
      free_nats: nats per step.

    Returns:
      [...].
    """
    return jnp.maximum(free_nats, p.kl_divergence(q))


def binary_cross_entropy(logit: Array, target: Array) -> Array:
    """-(y log s(x) + (1 - y) log s(-x)), s the sigmoid, target y in [0, 1]. Elementwise."""
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
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
    loss = -jnp.take_along_axis(log_probs, target[..., None].astype(jnp.int32), -1)[..., 0]
    return loss.sum(tuple(range(-ndims, 0)))
