"""Layers shared by all networks, in plain form: linear, block-linear, convolution, RMS norm, MLP.

Parameters are float32; activations have the dtype of the module. Kernels start as a truncated
normal of standard deviation 1/sqrt(fan_in), biases at zero (Hafner et al. 2025).
"""

from collections.abc import Callable

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from dreamer.ops import convolution

Initializer = Callable[..., Array]


def kernel_init(scale: float = 1.0) -> Initializer:
    """Truncated normal of standard deviation scale/sqrt(fan_in); all zeros when `scale` is 0.

    For a block kernel [G, in/G, out/G] the fan-in is the whole input, as in the reference code, so
    blocks are sqrt(G) smaller than by their own fan-in.
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
    """Same-padded convolution of stride 1, then 2x2 max pooling.

    The bias is added after pooling, which is equivalent.
    """

    channels: int
    size: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [B, H, W, in] to [B, H/2, W/2, channels], rounded up."""
        chex.assert_rank(x, 4)
        kernel, bias = kernel_and_bias(self, x.shape[-1])
        x = x.astype(self.dtype)
        y = max_pool(convolution.convolve(x, kernel, convolution.same(self.size)))
        return y + jnp.broadcast_to(bias.astype(self.dtype), y.shape)


class UpsampleConv(nn.Module):
    """Repeats every row and column, then applies a same-padded convolution of stride 1."""

    channels: int
    size: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [B, H, W, in] to [B, 2H, 2W, channels]."""
        chex.assert_rank(x, 4)
        kernel, bias = kernel_and_bias(self, x.shape[-1])
        x = x.astype(self.dtype).repeat(2, axis=1).repeat(2, axis=2)
        y = convolution.convolve(x, kernel, convolution.same(self.size))
        return y + jnp.broadcast_to(bias.astype(self.dtype), y.shape)


def kernel_and_bias(module: nn.Module, inputs: int) -> tuple[Array, Array]:
    """The parameters of a convolution, [size, size, inputs, channels] and [channels].

    Args:
      module: a convolution, with the fields `size` and `channels`.
      inputs: channels of its input.
    """
    shape = (module.size, module.size, inputs, module.channels)
    bias = module.param("bias", nn.initializers.zeros, shape[-1:])
    return module.param("kernel", kernel_init(), shape), bias


def rms_norm(x: Array, scale: Array, dtype: DTypeLike) -> Array:
    """x / sqrt(mean(x^2) + 1e-4) times `scale`, over the last axis and computed in float32."""
    chex.assert_shape(x, (..., scale.shape[-1]))
    x = x.astype(jnp.float32)
    # First x by a scalar, then by the scale: in this order XLA fuses the norm into one kernel.
    x *= jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-4)
    return (x * jnp.broadcast_to(scale, x.shape)).astype(dtype)


class RMSNorm(nn.Module):
    """`rms_norm` with a learned scale: [..., n] to [..., n]."""

    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        return rms_norm(x, scale, self.dtype)


def split_blocks(x: Array, blocks: int) -> Array:
    """[..., n] to [..., G, n/G]."""
    chex.assert_is_divisible(x.shape[-1], blocks)
    return x.reshape(*x.shape[:-1], blocks, -1)


def merge_blocks(x: Array) -> Array:
    """[..., G, n/G] to [..., n]."""
    return x.reshape(*x.shape[:-2], -1)


def block_product(x: Array, kernel: Array) -> Array:
    """[..., G, I] by [G, I, O] to [..., G, O].

    x is the left operand: `jnp.einsum` swaps the two, and transposing the result then takes longer
    on CPU than the product.
    """
    chex.assert_shape(x, (..., *kernel.shape[:2]))
    free = x.ndim - 1
    y = jax.lax.dot_general(x, kernel, (((free,), (1,)), ((free - 1,), (0,))))
    return jnp.moveaxis(y, 0, -2)


class TwoInputLinear(nn.Module):
    """y = [a, b] W + c; the product of b can be computed once for many a."""

    first: int  # size of a
    features: int
    dtype: DTypeLike

    @nn.compact
    def second(self, b: Array) -> Array:
        """The product of b: [..., B] to [..., features]. Creates the parameters."""
        shape = (self.first + b.shape[-1], self.features)
        kernel = self.param("kernel", kernel_init(), shape)
        self.param("bias", nn.initializers.zeros, (self.features,))
        return b.astype(self.dtype) @ kernel[self.first :].astype(self.dtype)

    def add_first(self, a: Array, second: Array) -> Array:
        """y from a [..., A] and the product of b [..., features]."""
        chex.assert_shape([a, second], [(..., self.first), (..., self.features)])
        kernel, bias = (self.get_variable("params", name) for name in ("kernel", "bias"))
        y = a.astype(self.dtype) @ kernel[: self.first].astype(self.dtype) + second
        return y + jnp.broadcast_to(bias.astype(self.dtype), y.shape)


class BlockLinear(nn.Module):
    """Linear layer with a block-diagonal kernel: block k of y depends on block k of x.

    A shared input enters every block, as if appended to each; its product is computed separately,
    possibly in several pieces.
    """

    inputs: int
    features: int
    blocks: int
    dtype: DTypeLike
    shared: int = 0  # size of the shared input

    def setup(self) -> None:
        rows = self.inputs // self.blocks + self.shared
        shape = (self.blocks, rows, self.features // self.blocks)
        self.kernel = self.param("kernel", kernel_init(), shape)
        self.bias = self.param("bias", nn.initializers.zeros, (self.features,))

    def __call__(self, x: Array) -> Array:
        """y without the product of the shared input: [..., in] to [..., features]."""
        chex.assert_shape(x, (..., self.inputs))
        x = split_blocks(x.astype(self.dtype), self.blocks)
        kernel = self.kernel[:, : x.shape[-1]].astype(self.dtype)
        y = merge_blocks(block_product(x, kernel))
        return y + jnp.broadcast_to(self.bias.astype(self.dtype), y.shape)

    def share(self, shared: Array, start: int = 0) -> Array:
        """The product of the shared input from its entry `start`: [..., n] to [..., features]."""
        row = self.inputs // self.blocks + start
        kernel = self.kernel[:, row : row + shared.shape[-1]]
        # One large product instead of a copy of the shared input for every block.
        kernel = kernel.transpose(1, 0, 2).reshape(shared.shape[-1], -1)
        return shared.astype(self.dtype) @ kernel.astype(self.dtype)


class Block(nn.Module):
    """Linear, RMS norm, SiLU: the block of every MLP. [..., in] to [..., features]."""

    features: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = linear(self.features, self.dtype, "linear")(x)
        return nn.silu(RMSNorm(self.dtype, name="norm")(x))


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
    """2x2 max pooling, windows cropped at odd sides: [B, H, W, C] to [B, H/2, W/2, C], ceil."""
    chex.assert_rank(x, 4)
    *batch, height, width, channels = x.shape
    if height % 2 or width % 2:
        edges = [(0, 0)] * len(batch) + [(0, height % 2), (0, width % 2), (0, 0)]
        return max_pool(jnp.pad(x, edges, constant_values=-jnp.inf))
    return x.reshape(*batch, height // 2, 2, width // 2, 2, channels).max((-4, -2))


def compute_dtype(choice: str) -> jnp.dtype:
    """The dtype of activations by name; auto is float32 on CPU, where it is faster."""
    if choice == "auto":
        choice = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(choice)
