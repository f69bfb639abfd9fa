"""The encoder: observations of one step to one token."""

from collections.abc import Mapping

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from dreamer.config import EncoderConfig
from dreamer.errors import UserError
from dreamer.nets import spaces
from dreamer.nets.layers import MLP, PooledConv, RMSNorm
from dreamer.ops.transforms import symlog


def smallest_image(size: tuple[int, int], stages: int) -> tuple[int, int]:
    """Height and width after `stages` halvings.

    Raises:
      UserError: if the size is not divisible by 2^stages or the result is outside 3 to 16 pixels a
        side.
    """
    factor = 2**stages
    smallest = (size[0] // factor, size[1] // factor)
    if any(side % factor for side in size) or not all(3 <= side <= 16 for side in smallest):
        raise UserError(
            f"images of {size[0]}x{size[1]} cannot be encoded in {stages} stages; each side must "
            f"be divisible by {factor} and between {3 * factor} and {16 * factor}; set "
            "env.image_size, or the stages agent.encoder.mults and agent.decoder.mults"
        )
    return smallest


class Encoder(nn.Module):
    """Images through convolutions, vectors through an MLP, concatenated with the vectors first."""

    config: EncoderConfig
    observations: tuple[tuple[str, spaces.Spec], ...]
    units: int
    depth: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, observation: Mapping[str, Array]) -> Array:
        """Encodes a batch of steps.

        Args:
          observation: [..., *shape] for every key; any number of leading axes.

        Returns:
          Tokens [..., E].
        """
        specs = dict(sorted(self.observations))
        images = [key for key, spec in specs.items() if spaces.kind(spec) == "image"]
        vectors = [key for key in specs if key not in images]
        tokens = []
        if vectors:
            inputs = [self._vector(observation[key], specs[key]) for key in vectors]
            mlp = MLP(self.config.layers, self.units, self.dtype, name="mlp")
            tokens.append(mlp(jnp.concatenate(inputs, -1)))
        if images:
            tokens.append(self._convolve(jnp.concatenate([observation[key] for key in images], -1)))
        return jnp.concatenate(tokens, -1)

    def _vector(self, value: Array, spec: spaces.Spec) -> Array:
        if spaces.kind(spec) == "continuous":
            value = symlog(value.astype(jnp.float32))
        return spaces.flat(value, spec, self.dtype)

    def _convolve(self, image: Array) -> Array:
        batch, shape = image.shape[:-3], image.shape[-3:]
        smallest_image((shape[0], shape[1]), len(self.config.mults))
        x = image.reshape(-1, *shape).astype(self.dtype) / 255 - 0.5
        for stage, mult in enumerate(self.config.mults):
            channels = self.depth * mult
            x = PooledConv(channels, self.config.kernel, self.dtype, name=f"conv{stage}")(x)
            x = nn.silu(RMSNorm(self.dtype, name=f"norm{stage}")(x))
        return x.reshape(*batch, -1)
