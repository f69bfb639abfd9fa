"""The decoder: a latent state back to the observations of its step."""

from collections.abc import Mapping

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from dreamer.config import DecoderConfig
from dreamer.nets import spaces
from dreamer.nets.encoder import smallest_image
from dreamer.nets.layers import (
    MLP,
    Block,
    BlockLinear,
    RMSNorm,
    UpsampleConv,
    linear,
)


class Decoder(nn.Module):
    """Predictions for every observation, each as its loss wants it.

    Images are in [0, 1], continuous vectors in symlog space, discrete ones logits with a last axis
    of classes.
    """

    config: DecoderConfig
    observations: tuple[tuple[str, spaces.Spec], ...]
    units: int
    depth: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, latent: Mapping[str, Array]) -> dict[str, Array]:
        """Decodes a batch of states.

        Args:
          latent: deter [..., D] and stoch [..., S, K] (gaussian: [..., S]); any number of leading
            axes.

        Returns:
          A prediction for every observation key, [..., *shape] (discrete: [..., *shape, classes]).
        """
        specs = dict(self.observations)
        images = {key: spec for key, spec in specs.items() if spaces.kind(spec) == "image"}
        vectors = {key: spec for key, spec in specs.items() if key not in images}
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
        if images:
            predictions |= self._images(deter, stoch, images)
        return predictions

    def _images(
        self, deter: Array, stoch: Array, images: Mapping[str, spaces.Spec]
    ) -> dict[str, Array]:
        batch = deter.shape[:-1]
        size = next(iter(images.values())).shape[:2]
        height, width = smallest_image(size, len(self.config.mults))
        x = self._project(
            deter.reshape(-1, deter.shape[-1]), stoch.reshape(-1, stoch.shape[-1]), height, width
        )
        x = nn.silu(RMSNorm(self.dtype, name="norm_space")(x))
        kernel = self.config.kernel
        for stage, mult in reversed(list(enumerate(self.config.mults[:-1]))):
            x = UpsampleConv(self.depth * mult, kernel, self.dtype, name=f"conv{stage}")(x)
            x = nn.silu(RMSNorm(self.dtype, name=f"norm{stage}")(x))
        channels = [spec.shape[-1] for spec in images.values()]
        x = UpsampleConv(sum(channels), kernel, self.dtype, name="pixels")(x)
        x = nn.sigmoid(x.astype(jnp.float32)).reshape(*batch, *size, -1)
        parts = jnp.split(x, np.cumsum(channels)[:-1].tolist(), -1)
        return dict(zip(images, parts, strict=True))

    def _project(self, deter: Array, stoch: Array, height: int, width: int) -> Array:
        """The smallest image [N, H, W, C]: blocks of deter write own channels, stoch writes all."""
        channels = self.depth * self.config.mults[-1]
        blocks = self.config.blocks
        out = BlockLinear(height * width * channels, blocks, self.dtype, name="space_deter")
        from_deter = out(deter).reshape(-1, blocks, height, width, channels // blocks)
        from_deter = jnp.moveaxis(from_deter, 1, 3).reshape(-1, height, width, channels)
        hidden = Block(2 * self.units, self.dtype, name="space_hidden")(stoch)
        from_stoch = linear(height * width * channels, self.dtype, "space_stoch")(hidden)
        return from_deter + from_stoch.reshape(-1, height, width, channels)
