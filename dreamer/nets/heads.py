"""Heads on the feature of a state: reward, continuation, actor and critic."""

import math
from collections.abc import Mapping

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from dreamer.config.agent import ActorConfig
from dreamer.nets import spaces
from dreamer.nets.layers import MLP, linear
from dreamer.ops import distributions
from dreamer.ops.distributions import Distribution


class Head(nn.Module):
    """An MLP and a linear output: [..., F] to [..., outputs].

    The output is float32: bfloat16 two-hot logits do not cancel in the mean over bins as large as
    5e8.
    """

    layers: int
    units: int
    outputs: int
    scale: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, feat: Array) -> Array:
        chex.assert_type(feat, float)
        x = MLP(self.layers, self.units, self.dtype, name="mlp")(feat.astype(self.dtype))
        return linear(self.outputs, jnp.float32, "out", self.scale)(x)


class MaskHead(nn.Module):
    """Logits of which classes of each masked action are valid."""

    layers: int
    masks: tuple[tuple[str, spaces.Spec], ...]  # by action key
    units: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, feat: Array) -> dict[str, Array]:
        """Maps [..., F] to [..., *shape, classes] per action key."""
        chex.assert_type(feat, float)
        sizes = [math.prod(spec.shape) for _, spec in self.masks]
        logits = Head(self.layers, self.units, sum(sizes), 1.0, self.dtype, name="head")(feat)
        ends = [sum(sizes[: i + 1]) for i in range(len(sizes) - 1)]
        parts = zip(self.masks, jnp.split(logits, ends, -1), strict=True)
        return {key: x.reshape(*x.shape[:-1], *spec.shape) for (key, spec), x in parts}


class Actor(nn.Module):
    """The policy: one distribution per action key on a shared MLP."""

    config: ActorConfig
    actions: tuple[tuple[str, spaces.Spec], ...]
    units: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, feat: Array) -> dict[str, Array]:
        """Raw outputs per action key, [..., *shape, classes or 2 (mean, std)]; see `policy`."""
        chex.assert_type(feat, float)
        x = MLP(self.config.layers, self.units, self.dtype, name="mlp")(feat.astype(self.dtype))
        batch = x.shape[:-1]
        outputs = {}
        for key, spec in self.actions:
            size = math.prod(spec.shape)
            if spaces.kind(spec) == "discrete":
                logits = linear(size * spaces.classes(spec), self.dtype, f"logits_{key}", 0.01)(x)
                outputs[key] = logits.reshape(*batch, *spec.shape, spaces.classes(spec))
            else:
                parts = [
                    linear(size, self.dtype, f"{part}_{key}", 0.01)(x) for part in ("mean", "std")
                ]
                outputs[key] = jnp.stack([part.reshape(*batch, *spec.shape) for part in parts], -1)
        return outputs

    def policy(
        self, outputs: dict[str, Array], masks: Mapping[str, Array]
    ) -> dict[str, Distribution]:
        """Distributions of the model's actions from the raw outputs; needs no parameters.

        Discrete actions are one-hot [..., *shape, classes] with a uniform part mixed in. Continuous
        ones are normal with mean tanh(x) and a bounded standard deviation, neither clipped nor
        squashed: the environment clips them, and the model scales them down. The event is the whole
        action.

        Args:
          outputs: of this module.
          masks: bool [..., *shape, classes] of masked actions; False gives probability zero.
        """
        policies = {}
        for key, spec in self.actions:
            x = outputs[key].astype(jnp.float32)
            if spaces.kind(spec) == "discrete":
                dist = distributions.one_hot(x, self.config.unimix, masks.get(key))
            else:
                std = distributions.bounded_std(x[..., 1], self.config.min_std, self.config.max_std)
                dist = distributions.normal(jnp.tanh(x[..., 0]), std)
            policies[key] = distributions.independent(dist, len(spec.shape))
        return policies

    def noise(self, key: Array, batch: tuple[int, ...]) -> dict[str, Array]:
        """Gumbel or normal noise of actions, per key [*batch, *shape(, classes)]."""
        chex.assert_shape(key, ())
        noise = {}
        for (name, spec), part in zip(
            self.actions, jax.random.split(key, len(self.actions)), strict=True
        ):
            if spaces.kind(spec) == "discrete":
                noise[name] = jax.random.gumbel(part, (*batch, *spec.shape, spaces.classes(spec)))
            else:
                noise[name] = jax.random.normal(part, (*batch, *spec.shape))
        return noise
