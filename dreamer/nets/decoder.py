"""The decoder: a latent state back to the observations of its step."""

import math
from collections.abc import Mapping

import chex
import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from dreamer.config.agent import DecoderConfig
from dreamer.nets import spaces
from dreamer.nets.encoder import prefix
from dreamer.nets.layers import (
    MLP,
    Block,
    BlockLinear,
    RMSNorm,
    UpsampleConv,
    linear,
)


class Decoder(nn.Module):
    """Predictions of every observation, in the form its loss takes.

    Images are in [0, 1], continuous vectors in symlog space, discrete ones logits with a last axis
    of classes.
    """

    config: DecoderConfig
    observations: tuple[tuple[str, spaces.Spec], ...]
    units: int
    depth: int
    dtype: DTypeLike
    conv: type[nn.Module] = UpsampleConv  # in the form of `forms`

    @nn.compact
    def __call__(self, latent: Mapping[str, Array]) -> dict[str, Array]:
        """Decodes a batch of states.

        Args:
          latent: deter [..., D] and stoch [..., S, K] (gaussian: [..., S]); any number of leading
            axes.

        Returns:
          A prediction for every observation key, [..., *shape] (discrete: [..., *shape, classes]).
        """
        chex.assert_tree_shape_prefix(dict(latent), latent["deter"].shape[:-1])
        specs = dict(self.observations)
        images = spaces.by_size(specs)
        vectors = {key: spec for key, spec in specs.items() if spaces.kind(spec) != "image"}
        deter = latent["deter"]
        batch = deter.shape[:-1]
        stoch = latent["stoch"].reshape(*batch, -1)
        predictions = {}
        if vectors:
            x = MLP(self.config.layers, self.units, self.dtype, name="mlp")(
                jnp.concatenate([stoch, deter], -1)
            )
            for key, spec in vectors.items():
                shape = spec.shape + (
                    (spaces.classes(spec),) if spaces.kind(spec) == "discrete" else ()
                )
                x_key = linear(int(np.prod(shape)), self.dtype, f"out_{key}")(x)
                predictions[key] = x_key.reshape(*batch, *shape).astype(jnp.float32)
        for size, group in images.items():
            predictions |= self._images(deter, stoch, size, group, prefix(size, images))
        return predictions

    def _images(
        self,
        deter: Array,
        stoch: Array,
        size: spaces.Size,
        images: Mapping[str, spaces.Spec],
        name: str,
    ) -> dict[str, Array]:
        batch = deter.shape[:-1]
        mults, sizes = spaces.stages(size, self.config.mults)
        deter, stoch = (x.reshape(-1, x.shape[-1]) for x in (deter, stoch))
        x = self._project(deter, stoch, self.depth * mults[-1], sizes[-1], name)
        x = nn.silu(RMSNorm(self.dtype, name=f"{name}norm_space")(x))
        kernel = self.config.kernel
        for stage, mult in reversed(list(enumerate(mults[:-1]))):
            conv = self.conv(self.depth * mult, kernel, self.dtype, name=f"{name}conv{stage}")
            x = crop(conv(x), sizes[stage + 1])
            x = nn.silu(RMSNorm(self.dtype, name=f"{name}norm{stage}")(x))
        channels = [spec.shape[-1] for spec in images.values()]
        x = self.conv(sum(channels), kernel, self.dtype, name=f"{name}pixels")(x)
        x = nn.sigmoid(crop(x, size).astype(jnp.float32)).reshape(*batch, *size, -1)
        parts = jnp.split(x, np.cumsum(channels)[:-1].tolist(), -1)
        return dict(zip(images, parts, strict=True))

    def _project(
        self, deter: Array, stoch: Array, channels: int, size: spaces.Size, name: str
    ) -> Array:
        """The smallest image [N, H, W, C]; a block of deter gives its own channels, stoch all."""
        blocks, shape = self.config.blocks, (*size, channels)
        out = BlockLinear(
            deter.shape[-1], math.prod(shape), blocks, self.dtype, name=f"{name}space_deter"
        )
        from_deter = out(deter).reshape(-1, blocks, *size, channels // blocks)
        from_deter = jnp.moveaxis(from_deter, 1, 3).reshape(-1, *shape)
        hidden = Block(2 * self.units, self.dtype, name=f"{name}space_hidden")(stoch)
        from_stoch = linear(math.prod(shape), self.dtype, f"{name}space_stoch")(hidden)
        return from_deter + from_stoch.reshape(-1, *shape)


def crop(x: Array, size: spaces.Size) -> Array:
    """Crops the extra row and column of odd sides: [N, *size, C]."""
    chex.assert_rank(x, 4)
    return x[:, : size[0], : size[1]]
