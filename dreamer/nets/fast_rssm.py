"""Faster forms of the RSSM step, with the parameters of the plain one."""

import math
from collections.abc import Mapping, Sequence

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from dreamer.nets.layers import merge_blocks, rms_norm, split_blocks
from dreamer.nets.rssm import RSSM

_MAX_PIECES = 8


class CPURSSM(RSSM):
    """Faster on CPU: the two embeddings share a norm, and the GRU is computed per block."""

    def _embed_state(self, feat: Array) -> Array:
        return merge_blocks(twin_blocks(_embeddings(self), feat, self.dtype))

    def _gru(self, deter: Array, x: Array) -> Array:
        # Keeps XLA from fusing it into its consumer, in whose layout it is slower.
        return jax.lax.optimization_barrier(super()._gru(deter, x))


class AcceleratorRSSM(RSSM):
    """Faster on accelerators: the two embeddings are one product."""

    def _embed_state(self, feat: Array) -> Array:
        return merge_blocks(twin_blocks_as_one(_embeddings(self), feat, self.dtype))


def _embeddings(module: RSSM) -> list[Mapping]:
    return [block.variables["params"] for block in (module.embed_deter, module.embed_stoch)]


def twin_blocks(params: Sequence[Mapping], x: Array, dtype: DTypeLike) -> Array:
    """Two blocks of equal width, of a and of b in x = [a, b]: [..., A + B] to [..., 2, features].

    Args:
      params: of the two blocks.
      x: both inputs.
      dtype: of the result.
    """
    first, second, bias, scale = _weights(params, dtype)
    chex.assert_shape(x, (..., len(first) + len(second)))
    a, b = jnp.split(x.astype(dtype), [len(first)], -1)
    y = jnp.stack([a @ first, b @ second], -2)
    return nn.silu(rms_norm(y + jnp.broadcast_to(bias, y.shape), scale, dtype))


def twin_blocks_as_one(params: Sequence[Mapping], x: Array, dtype: DTypeLike) -> Array:
    """`twin_blocks` by one product, where the sizes of a and b allow.

    Kernels and x are split into pieces of equal length and multiplied piecewise; the
    products of each part are summed.
    """
    first, second, bias, scale = _weights(params, dtype)
    chex.assert_shape(x, (..., len(first) + len(second)))
    size = math.gcd(len(first), len(second))
    pieces, own = x.shape[-1] // size, len(first) // size
    if pieces > _MAX_PIECES:
        return twin_blocks(params, x, dtype)
    kernel = jnp.concatenate([first, second]).reshape(pieces, size, -1)
    y = jnp.einsum("...pi,pio->...po", split_blocks(x.astype(dtype), pieces), kernel)
    y = jnp.stack([y[..., :own, :].sum(-2), y[..., own:, :].sum(-2)], -2)
    return nn.silu(rms_norm(y + jnp.broadcast_to(bias, y.shape), scale, dtype))


def _weights(params: Sequence[Mapping], dtype: DTypeLike) -> tuple[Array, Array, Array, Array]:
    """Both kernels, and the biases and scales of both blocks, [2, features] each."""
    first, second = (p["linear"]["kernel"].astype(dtype) for p in params)
    bias = jnp.stack([p["linear"]["bias"].astype(dtype) for p in params])
    return first, second, bias, jnp.stack([p["norm"]["scale"] for p in params])
