"""Layers shared by all networks: linear, block-linear, convolution, RMS norm and the MLP made of
them.

Parameters are float32; activations have the dtype of the module. Kernels start as a truncated
normal of standard deviation 1/sqrt(fan_in), biases at zero (Hafner et al. 2025).
"""

import math
from collections.abc import Callable, Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from dreamer.ops import convolution

Initializer = Callable[..., Array]
FEW_CHANNELS = 16  # below, a convolution on CPU is bound by memory rather than arithmetic
_MAX_PIECES = 8


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
        """Maps [B, H, W, in] to [B, H/2, W/2, channels], rounded up."""
        kernel, bias = _kernel_and_bias(self, x.shape[-1])
        x = x.astype(self.dtype)
        even = x.shape[1] % 2 == x.shape[2] % 2 == 0
        if jax.default_backend() == "cpu" and self.channels < FEW_CHANNELS and even:
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


def rms_norm(x: Array, scale: Array, dtype: DTypeLike) -> Array:
    """x / sqrt(mean(x^2) + 1e-4) times `scale`, over the last axis and computed in float32."""
    x = x.astype(jnp.float32)
    # First x by one number, then by the scale: in this order XLA makes one kernel of the norm.
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
    return x.reshape(*x.shape[:-1], blocks, -1)


def merge_blocks(x: Array) -> Array:
    """[..., G, n/G] to [..., n]."""
    return x.reshape(*x.shape[:-2], -1)


def block_product(x: Array, kernel: Array) -> Array:
    """[..., G, I] by [G, I, O] to [..., G, O].

    As one product of x from the left: `jnp.einsum` swaps the two, and CPUs then spend more time on
    transposing the result than on the product.
    """
    free = x.ndim - 1
    y = jax.lax.dot_general(x, kernel, (((free,), (1,)), ((free - 1,), (0,))))
    return jnp.moveaxis(y, 0, -2)


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

    A shared input goes into every block, as if it were appended to each; its share of y may be
    computed apart, and in several pieces.
    """

    features: int
    blocks: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array, shared: Array | None = None) -> Array:
        """Maps [..., in] and perhaps [..., S] to [..., features]."""
        inputs = x.shape[-1] // self.blocks + (0 if shared is None else shared.shape[-1])
        shape = (self.blocks, inputs, self.features // self.blocks)
        self.param("kernel", kernel_init(), shape)
        self.param("bias", nn.initializers.zeros, (self.features,))
        if shared is None:
            return self.own(x)
        return self.own(x) + self.share(shared, x.shape[-1] // self.blocks)

    def own(self, x: Array) -> Array:
        """y without the share of a shared input."""
        kernel, bias = (self.get_variable("params", name) for name in ("kernel", "bias"))
        x = split_blocks(x.astype(self.dtype), self.blocks)
        kernel = kernel[:, : x.shape[-1]].astype(self.dtype)
        y = merge_blocks(block_product(x, kernel))
        return y + jnp.broadcast_to(bias.astype(self.dtype), y.shape)

    def share(self, shared: Array, row: int) -> Array:
        """The share of an input that enters every block at this row of its kernel."""
        kernel = self.get_variable("params", "kernel")[:, row : row + shared.shape[-1]]
        # One large product instead of a copy of the shared input for every block.
        kernel = kernel.transpose(1, 0, 2).reshape(shared.shape[-1], -1)
        return shared.astype(self.dtype) @ kernel.astype(self.dtype)


class Block(nn.Module):
    """Linear, RMS norm, SiLU: the unit that every MLP is made of. [..., in] to [..., features]."""

    features: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = linear(self.features, self.dtype, "linear")(x)
        return nn.silu(RMSNorm(self.dtype, name="norm")(x))


def twin_blocks(params: Sequence[Mapping], x: Array, dtype: DTypeLike) -> Array:
    """Two blocks of equal width, of a and of b in x = [a, b]: [..., A + B] to [..., 2, features].

    Where the sizes of the parts allow, both products are one: kernels and x are cut into pieces of
    equal length, each piece is multiplied by its own, and the products of each part are added up.
    On CPU, where the number of operations counts less than their work, they stay two.

    Args:
      params: of the two blocks.
      x: both inputs.
      dtype: of the result.
    """
    first, second = (p["linear"]["kernel"].astype(dtype) for p in params)
    bias = jnp.stack([p["linear"]["bias"].astype(dtype) for p in params])
    scale = jnp.stack([p["norm"]["scale"] for p in params])
    x, size = x.astype(dtype), math.gcd(len(first), len(second))
    pieces, own = x.shape[-1] // size, len(first) // size
    if pieces > _MAX_PIECES or jax.default_backend() == "cpu":
        a, b = jnp.split(x, [len(first)], -1)
        y = jnp.stack([a @ first, b @ second], -2)
    else:
        kernel = jnp.concatenate([first, second]).reshape(pieces, size, -1)
        y = jnp.einsum("...pi,pio->...po", split_blocks(x, pieces), kernel)
        y = jnp.stack([y[..., :own, :].sum(-2), y[..., own:, :].sum(-2)], -2)
    return nn.silu(rms_norm(y + jnp.broadcast_to(bias, y.shape), scale, dtype))


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
    """Largest of every 2x2 square, of what there is of it at odd sides: [B, H, W, C] to
    [B, H/2, W/2, C], rounded up."""
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
