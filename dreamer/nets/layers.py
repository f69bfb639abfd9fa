"""Layers shared by all networks: linear, block-linear, convolution, RMS norm and the MLP made of
them.

Parameters are float32; activations have the dtype of the module. Kernels start as a truncated
normal of standard deviation 1/sqrt(fan_in), biases at zero (Hafner et al. 2025).
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

Initializer = Callable[..., Array]


def kernel_init(scale: float = 1.0) -> Initializer:
    """Truncated normal of standard deviation scale/sqrt(fan_in); all zeros when `scale` is 0.

    For a block kernel [G, in/G, out/G] the fan-in is the whole input, as in the published code: the
    blocks start sqrt(G) smaller than their own fan-in would make them.
    """
    if not scale:
        return nn.initializers.zeros
    return nn.initializers.variance_scaling(scale**2, "fan_in", "truncated_normal")


def linear(
    features: int, dtype: DTypeLike, name: str | None = None, scale: float = 1.0
) -> nn.Dense:
    """y = x W + b over the last axis: [..., in] to [..., features]."""
    return nn.Dense(features, dtype=dtype, kernel_init=kernel_init(scale), name=name)


def conv(channels: int, size: int, dtype: DTypeLike, name: str) -> nn.Conv:
    """Convolution of stride 1 that keeps the image size: [B, H, W, in] to [B, H, W, channels]."""
    return nn.Conv(
        channels, (size, size), padding="SAME", dtype=dtype, kernel_init=kernel_init(), name=name
    )


def rms_norm(dtype: DTypeLike, name: str | None = None) -> nn.RMSNorm:
    """x / sqrt(mean(x^2) + 1e-4) with a learned scale over the last axis, computed in float32."""
    return nn.RMSNorm(epsilon=1e-4, dtype=dtype, name=name)


def split_blocks(x: Array, blocks: int) -> Array:
    """[..., n] to [..., G, n/G]."""
    return x.reshape(*x.shape[:-1], blocks, -1)


def merge_blocks(x: Array) -> Array:
    """[..., G, n/G] to [..., n]."""
    return x.reshape(*x.shape[:-2], -1)


class BlockLinear(nn.Module):
    """Linear layer with a block-diagonal kernel: block k of the input makes block k of y."""

    features: int
    blocks: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [..., G, in/G] to [..., G, features/G]."""
        shape = (self.blocks, x.shape[-1], self.features // self.blocks)
        kernel = self.param("kernel", kernel_init(), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        y = jnp.einsum("...gi,gio->...go", x.astype(self.dtype), kernel.astype(self.dtype))
        return y + jnp.broadcast_to(split_blocks(bias.astype(self.dtype), self.blocks), y.shape)


class Block(nn.Module):
    """Linear, RMS norm, SiLU: the unit that every MLP is made of. [..., in] to [..., features]."""

    features: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = linear(self.features, self.dtype, "linear")(x)
        return nn.silu(rms_norm(self.dtype, "norm")(x))


class MLP(nn.Module):
    """A stack of blocks of equal width. [..., in] to [..., units]."""

    layers: int
    units: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for index in range(self.layers):
            x = Block(self.units, self.dtype, name=f"block{index}")(x)
        return x


def upsample(x: Array) -> Array:
    """Repeats every row and column twice: [B, H, W, C] to [B, 2H, 2W, C]."""
    return jnp.repeat(jnp.repeat(x, 2, axis=-3), 2, axis=-2)


def max_pool(x: Array) -> Array:
    """Largest of every 2x2 square: [B, H, W, C] to [B, H/2, W/2, C]."""
    *batch, height, width, channels = x.shape
    return x.reshape(*batch, height // 2, 2, width // 2, 2, channels).max((-4, -2))


def compute_dtype(choice: str) -> jnp.dtype:
    """The dtype of activations by name; auto is float32 on CPU, where it is faster."""
    if choice == "auto":
        choice = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(choice)
