"""The optimiser as one optax chain: adaptive gradient clipping, then LaProp with warm-up."""

import jax
import jax.numpy as jnp
import optax

from dreamer.ops.packing import Packing


def clip_by_weight_norm(
    limit: float, floor: float = 1e-3, packing: Packing | None = None
) -> optax.GradientTransformation:
    """Adaptive gradient clipping by whole tensors: g / max(1, |g| / (limit max(floor, |w|))).

    Unlike `optax.adaptive_grad_clip` the norms are those of the whole tensor, not of its units
    (Brock et al. 2021, as used in Hafner et al. 2025).

    Args:
      limit: largest gradient norm as a share of the weight norm.
      floor: smallest weight norm that is counted.
      packing: if gradients and weights come as arrays packed so, instead of as trees.
    """
    if packing:

        def clip_packed(gradients: jax.Array, weights: jax.Array) -> jax.Array:
            allowed = limit * jnp.maximum(floor, packing.norms(weights))
            return gradients / packing.spread(jnp.maximum(1.0, packing.norms(gradients) / allowed))

        return optax.stateless(clip_packed)

    def clip(gradient: jax.Array, weight: jax.Array) -> jax.Array:
        allowed = limit * jnp.maximum(floor, jnp.linalg.norm(weight.reshape(-1)))
        return gradient / jnp.maximum(1.0, jnp.linalg.norm(gradient.reshape(-1)) / allowed)

    def update(updates: optax.Updates, params: optax.Params) -> optax.Updates:
        return jax.tree.map(clip, updates, params)

    return optax.stateless(update)


def schedule(learning_rate: float, warmup: int = 0, anneal: int = 0) -> optax.Schedule:
    """The learning rate of each update, counted from 0 (Hafner et al. 2025, reference code).

    Args:
      learning_rate: the highest.
      warmup: updates of linear warm-up; the first update has a rate of exactly 0. None at 0.
      anneal: the update at which the rate, falling linearly from the end of the warm-up, reaches a
        tenth of the highest, where it stays. At 0 it never falls.
    """
    rise = optax.linear_schedule(0.0, learning_rate, warmup)
    fall = optax.linear_schedule(learning_rate, 0.1 * learning_rate, max(0, anneal - warmup))
    return optax.join_schedules([rise, fall], [warmup])


def laprop(
    learning_rate: optax.ScalarOrSchedule,
    agc: float,
    beta1: float,
    beta2: float,
    eps: float,
    packing: Packing | None = None,
) -> optax.GradientTransformation:
    """AGC, RMS scaling, momentum, learning rate (LaProp: Ziyin et al. 2020, both averages
    bias-corrected).

    Args:
      learning_rate: a number, or `schedule`.
      agc: limit of `clip_by_weight_norm`.
      beta1: decay of the momentum.
      beta2: decay of the squared gradients.
      eps: added outside the square root.
      packing: if gradients and weights come as arrays packed so, instead of as trees.
    """
    return optax.chain(
        clip_by_weight_norm(agc, packing=packing),
        optax.scale_by_rms(beta2, eps, eps_in_sqrt=False, bias_correction=True),
        optax.ema(beta1, debias=True),
        optax.scale_by_learning_rate(learning_rate),
    )
