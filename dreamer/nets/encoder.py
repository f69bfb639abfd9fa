"""The encoder: observations of one step to one token."""

from collections.abc import Collection, Mapping

import chex
import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from dreamer.config.agent import EncoderConfig
from dreamer.nets import spaces
from dreamer.nets.layers import MLP, PooledConv, RMSNorm
from dreamer.ops.transforms import symlog


class Encoder(nn.Module):
    """Images through convolutions, vectors and masks through an MLP; concatenated, vectors
    first. Images of equal size are stacked as channels; each size has its own convolutions."""

    config: EncoderConfig
    observations: tuple[tuple[str, spaces.Spec], ...]
    units: int
    depth: int
    dtype: DTypeLike
    conv: type[nn.Module] = PooledConv  # in the form of `forms`

    @nn.compact
    def __call__(self, observation: Mapping[str, Array]) -> Array:
        """Encodes a batch of steps.

        Args:
          observation: [..., *shape] for every key; any number of leading axes.

        Returns:
          Tokens [..., E].
        """
        specs = dict(sorted(self.observations))
        for key, spec in specs.items():
            chex.assert_shape(observation[key], (..., *spec.shape))
        images = spaces.by_size(specs)
        vectors = [key for key, spec in specs.items() if spaces.kind(spec) != "image"]
        tokens = []
        if vectors:
            inputs = [self._vector(observation[key], specs[key]) for key in vectors]
            mlp = MLP(self.config.layers, self.units, self.dtype, name="mlp")
            tokens.append(mlp(jnp.concatenate(inputs, -1)))
        for size, group in images.items():
            image = jnp.concatenate([observation[key] for key in group], -1)
            tokens.append(self._convolve(image, prefix(size, images)))
        return jnp.concatenate(tokens, -1)

    def _vector(self, value: Array, spec: spaces.Spec) -> Array:
        if spaces.kind(spec) == "continuous":
            value = symlog(value.astype(jnp.float32))
        return spaces.flat(value, spec, self.dtype)

    def _convolve(self, image: Array, name: str) -> Array:
        batch, shape = image.shape[:-3], image.shape[-3:]
        mults, _ = spaces.stages((shape[0], shape[1]), self.config.mults)
        x = image.reshape(-1, *shape).astype(self.dtype) / 255 - 0.5
        for stage, mult in enumerate(mults):
            channels, kernel = self.depth * mult, self.config.kernel
            x = self.conv(channels, kernel, self.dtype, name=f"{name}conv{stage}")(x)
            x = nn.silu(RMSNorm(self.dtype, name=f"{name}norm{stage}")(x))
        return x.reshape(*batch, -1)


def prefix(size: spaces.Size, sizes: Collection) -> str:
    """Prefix of the layer names of an image size; empty if there is only one size."""
    return f"{size[0]}x{size[1]}_" if len(sizes) > 1 else ""
