"""The optimiser as one optax chain: adaptive gradient clipping, then LaProp with warm-up."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from dreamer.ops.packing import Packing


def clip_by_weight_norm(
    limit: float, floor: float = 1e-3, packing: Packing | None = None
) -> optax.GradientTransformation:
    """Adaptive gradient clipping per tensor: g / max(1, |g| / (limit max(floor, |w|))).

    Unlike `optax.adaptive_grad_clip` the norms are those of the whole tensor, not of its units
    (Brock et al. 2021, as used in Hafner et al. 2025).

    Args:
      limit: largest gradient norm as a share of the weight norm.
      floor: lower bound of the weight norm.
      packing: layout of gradients and weights if they are packed arrays instead of trees.
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


class RateState(NamedTuple):
    """The learning rate of the next update."""

    step: jax.Array  # int32, its number
    fraction: jax.Array  # float32, of the highest rate, warm-up aside


def scale_by_rate(
    learning_rate: float, warmup: int = 0, end: int | None = None
) -> optax.GradientTransformation:
    """Scales updates by -rate: linear warm-up, then constant or falling linearly to a tenth.

    The fraction reached is in the state, so the rate stays continuous where a resumed run has
    another `end`: from there it falls linearly to the new one.

    Args:
      learning_rate: the highest.
      warmup: updates of linear warm-up; the first update has a rate of exactly 0. None at 0.
      end: the update, counted from 0, from which the rate is a tenth of the highest; None is never.
    """
    lowest = 0.1

    def init(params: optax.Params) -> RateState:
        del params
        return RateState(jnp.zeros((), jnp.int32), jnp.ones(()))

    def update(
        updates: optax.Updates, state: RateState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, RateState]:
        del params
        step, fraction = state
        warm = jnp.minimum(1.0, step / warmup) if warmup else 1.0
        rate = learning_rate * warm * fraction
        if end is not None:
            left = jnp.maximum(1, end - step)
            lower = fraction - (fraction - lowest) / left
            fraction = jnp.where(step < warmup, fraction, lower)
        scaled = jax.tree.map(lambda x: -rate * x, updates)
        return scaled, RateState(optax.safe_increment(step), fraction)

    return optax.GradientTransformation(init, update)


def laprop(
    rate: optax.GradientTransformation,
    agc: float,
    beta1: float,
    beta2: float,
    eps: float,
    packing: Packing | None = None,
) -> optax.GradientTransformation:
    """AGC, RMS scaling, momentum, learning rate (LaProp: Ziyin et al. 2020, both averages
    bias-corrected).

    Args:
      rate: `scale_by_rate`.
      agc: limit of `clip_by_weight_norm`.
      beta1: decay of the momentum.
      beta2: decay of the squared gradients.
      eps: added outside the square root.
      packing: layout of gradients and weights if they are packed arrays instead of trees.
    """
    return optax.chain(
        clip_by_weight_norm(agc, packing=packing),
        optax.scale_by_rms(beta2, eps, eps_in_sqrt=False, bias_correction=True),
        optax.ema(beta1, debias=True),
        rate,
    )
