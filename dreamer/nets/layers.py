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

from dreamer.ops import convolution

Initializer = Callable[..., Array]
FEW_CHANNELS = 16  # below, a convolution on CPU is bound by memory rather than arithmetic


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


class PooledConv(nn.Module):
    """Convolution of stride 1 that keeps the image size, then the largest of every 2x2 square.

    The bias, the same for all of a square, is added to the largest. With few channels on CPU, the
    pixels of a square are computed as channels: 1.4 times the products (`size` 5), but from less
    than half as many gathered inputs.
    """

    channels: int
    size: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [B, H, W, in] to [B, H/2, W/2, channels]."""
        kernel, bias = _kernel_and_bias(self, x.shape[-1])
        x = x.astype(self.dtype)
        if jax.default_backend() == "cpu" and self.channels < FEW_CHANNELS:
            y = convolution.convolve(
                convolution.space_to_depth(x), *convolution.between_squares(kernel)
            )
            y = y.reshape(*y.shape[:-1], 4, self.channels).max(-2)
        else:
            y = max_pool(convolution.convolve(x, kernel, convolution.same(self.size)))
        return y + jnp.broadcast_to(bias.astype(self.dtype), y.shape)


class UpsampleConv(nn.Module):
    """Repeats every row and column twice, then a convolution of stride 1 that keeps that size.

    Computed in its exact sub-pixel form: one convolution of the small image, 3x3 for `size` 5,
    gives the four pixels as channels, with 2.8 times fewer products.
    """

    channels: int
    size: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [B, H, W, in] to [B, 2H, 2W, channels]."""
        kernel, bias = _kernel_and_bias(self, x.shape[-1])
        y = convolution.convolve(x.astype(self.dtype), *convolution.from_repeated(kernel))
        y = convolution.depth_to_space(y)
        return y + jnp.broadcast_to(bias.astype(self.dtype), y.shape)


def _kernel_and_bias(module: "PooledConv | UpsampleConv", inputs: int) -> tuple[Array, Array]:
    """The parameters of a convolution, [size, size, inputs, channels] and [channels]."""
    shape = (module.size, module.size, inputs, module.channels)
    bias = module.param("bias", nn.initializers.zeros, shape[-1:])
    return module.param("kernel", kernel_init(), shape), bias


def rms_norm(dtype: DTypeLike, name: str | None = None) -> nn.RMSNorm:
    """x / sqrt(mean(x^2) + 1e-4) with a learned scale over the last axis, computed in float32."""
    return nn.RMSNorm(epsilon=1e-4, dtype=dtype, name=name)


def split_blocks(x: Array, blocks: int) -> Array:
    """[..., n] to [..., G, n/G]."""
    return x.reshape(*x.shape[:-1], blocks, -1)


def merge_blocks(x: Array) -> Array:
    """[..., G, n/G] to [..., n]."""
    return x.reshape(*x.shape[:-2], -1)


class TwoInputLinear(nn.Module):
    """y = [a, b] W + c, of which the share of b may be computed beforehand, and for many a."""

    features: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, a: Array, b: Array) -> Array:
        """Maps [..., A] and [..., B] to [..., features]."""
        self.param("kernel", kernel_init(), (a.shape[-1] + b.shape[-1], self.features))
        self.param("bias", nn.initializers.zeros, (self.features,))
        return self.add_first(a, self.second(b))

    def second(self, b: Array) -> Array:
        """The share of b."""
        kernel = self.get_variable("params", "kernel")[-b.shape[-1] :]
        return b.astype(self.dtype) @ kernel.astype(self.dtype)

    def add_first(self, a: Array, second: Array) -> Array:
        """y from a and the share of b."""
        kernel, bias = (self.get_variable("params", name) for name in ("kernel", "bias"))
        y = a.astype(self.dtype) @ kernel[: a.shape[-1]].astype(self.dtype) + second
        return y + jnp.broadcast_to(bias.astype(self.dtype), y.shape)


class BlockLinear(nn.Module):
    """Linear layer with a block-diagonal kernel: block k of the input makes block k of y.

    A shared input goes into every block, as if it were appended to each.
    """

    features: int
    blocks: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array, shared: Array | None = None) -> Array:
        """Maps [..., G, in/G] and perhaps [..., S] to [..., G, features/G]."""
        size = x.shape[-1]
        inputs = size + (0 if shared is None else shared.shape[-1])
        shape = (self.blocks, inputs, self.features // self.blocks)
        kernel = self.param("kernel", kernel_init(), shape).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        y = jnp.einsum("...gi,gio->...go", x.astype(self.dtype), kernel[:, :size])
        if shared is not None:  # one large product instead of a copy of it for every block
            y += jnp.einsum("...i,gio->...go", shared.astype(self.dtype), kernel[:, size:])
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


def max_pool(x: Array) -> Array:
    """Largest of every 2x2 square: [B, H, W, C] to [B, H/2, W/2, C]."""
    *batch, height, width, channels = x.shape
    return x.reshape(*batch, height // 2, 2, width // 2, 2, channels).max((-4, -2))


def compute_dtype(choice: str) -> jnp.dtype:
    """The dtype of activations by name; auto is float32 on CPU, where it is faster."""
    if choice == "auto":
        choice = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(choice)
