"""Random numbers of `jax.random`, bit for bit, computed faster on CPU."""

import math

import chex
import jax
import jax.numpy as jnp
from jax import Array

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_TINY = float(jnp.finfo(jnp.float32).tiny)


def gumbel(key: Array, shape: tuple[int, ...]) -> Array:
    """`jax.random.gumbel`: float32 of that shape."""
    chex.assert_shape(key, ())
    # 23 random bits as a float in [1, 2), shifted to [0, 1) and away from 0, where log is infinite.
    mantissa = (bits(key, (math.prod(shape),)) >> 9) | jnp.uint32(0x3F800000)
    uniform = jax.lax.bitcast_convert_type(mantissa, jnp.float32) - 1
    noise = -jnp.log(-jnp.log(jnp.maximum(uniform, _TINY)))
    # XLA does not vectorise this over several axes on CPU.
    return jax.lax.optimization_barrier(noise).reshape(shape)


def bits(key: Array, shape: tuple[int, ...]) -> Array:
    """`jax.random.bits`: uint32 of that shape.

    On CPU, JAX computes the rounds of Threefry in a loop, each of which reads and writes all
    numbers. Unrolled, they are one fused operation, ten times faster (measured at 1m).
    """
    chex.assert_shape(key, ())
    count = math.prod(shape)
    known = (
        isinstance(count, int) and count < 2**32
    )  # otherwise a dimension is symbolic, in an export
    if not known or str(jax.random.key_impl(key)) != "threefry2x32":
        return jax.random.bits(key, shape)
    index = jax.lax.iota(jnp.uint32, count)
    low, high = _threefry(jax.random.key_data(key), jnp.zeros_like(index), index)
    return (low ^ high).reshape(shape)


def _threefry(key: Array, x: Array, y: Array) -> tuple[Array, Array]:
    """Threefry-2x32 with 20 rounds (Salmon et al. 2011): key [2] and two counters [n], uint32."""
    schedule = (key[0], key[1], key[0] ^ key[1] ^ jnp.uint32(0x1BD11BDA))
    x, y = x + schedule[0], y + schedule[1]
    for turn in range(5):
        for distance in _ROTATIONS[turn % 2]:
            x += y
            y = x ^ (y << distance | y >> (32 - distance))
        x += schedule[(turn + 1) % 3]
        y += schedule[(turn + 2) % 3] + jnp.uint32(turn + 1)
    return x, y


def purpose_key(seed: int, purpose: str) -> Array:
    """The random key of a run for one purpose: init, train, act or replay."""
    purposes = ("init", "train", "act", "replay")
    return jax.random.fold_in(jax.random.key(seed), purposes.index(purpose))
