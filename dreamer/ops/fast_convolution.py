"""Faster forms of convolutions of stride 1, equal to the plain ones in `convolution`.

Images have the layout [B, H, W, channels], kernels [rows, columns, in, out].
"""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dreamer.ops.convolution import Padding, convolve, same

MOST_SLICES = 64  # each is compiled separately


def convolve_in_slices(x: Array, kernel: Array, padding: Padding) -> Array:
    """`convolution.convolve` whose kernel gradient is accumulated over a few images at a time.

    The kernel gradient is itself a convolution, which on CPU reads its arguments once per tap: in
    slices that fit the cache it takes a half to a third of the time (measured).
    """
    chex.assert_rank([x, kernel], 4)
    chex.assert_shape(x, (..., kernel.shape[2]))
    return _sliced(padding, x, kernel.astype(x.dtype))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sliced(padding: Padding, x: Array, kernel: Array) -> Array:
    return convolve(x, kernel, padding)


def _forward(padding: Padding, x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return convolve(x, kernel, padding), (x, kernel)


def _backward(padding: Padding, saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = saved
    (dx,) = jax.linear_transpose(lambda x: convolve(x, kernel, padding), x)(dy)
    images = 16 if x.shape[1] * x.shape[2] >= 32 * 32 else 64
    images = max(images, -(-len(x) // MOST_SLICES))
    to_kernel = []
    for start in range(0, len(x), images):
        part = slice(start, start + images)
        pull = jax.linear_transpose(lambda kernel, x=x[part]: convolve(x, kernel, padding), kernel)
        to_kernel += pull(dy[part])
    return dx, jnp.stack(to_kernel).sum(0)


_sliced.defvjp(_forward, _backward)


def space_to_depth(x: Array) -> Array:
    """The pixels of every 2x2 block as channels: [B, H, W, C] to [B, H/2, W/2, 4 C]."""
    chex.assert_rank(x, 4)
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // 2, 2, width // 2, 2, channels).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, height // 2, width // 2, 4 * channels)


def depth_to_space(x: Array) -> Array:
    """The inverse of `space_to_depth`: [B, H, W, 4 C] to [B, 2H, 2W, C]."""
    chex.assert_rank(x, 4)
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height, width, 2, 2, channels // 4).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, 2 * height, 2 * width, channels // 4)


def between_squares(kernel: Array) -> tuple[Array, Padding]:
    """The same convolution of images in the layout of `space_to_depth`.

    Args:
      kernel: [size, size, I, O], which keeps the image size.

    Returns:
      Kernel [A, A, 4 I, 4 O] and its padding; A is 3 for `size` 5.
    """
    chex.assert_shape(kernel, (kernel.shape[0], kernel.shape[0], None, None))
    taps, padding = _square_taps(kernel.shape[0])
    kernel = jnp.einsum("pasu,qbtv,uvio->abstipqo", taps, taps, kernel)
    rows, columns, *_, inputs, _, _, outputs = kernel.shape
    return kernel.reshape(rows, columns, 4 * inputs, 4 * outputs), padding


def from_repeated(kernel: Array) -> tuple[Array, Padding]:
    """The same convolution for images whose rows and columns are all repeated once.

    The 2x2 output pixels of one input pixel depend on the same few input pixels, each through the
    sum of the taps that fall on it.

    Args:
      kernel: [size, size, I, O], which keeps the image size.

    Returns:
      Kernel [A, A, I, 4 O] of the image before it is repeated, its results in the layout of
      `space_to_depth`, and its padding.
    """
    chex.assert_shape(kernel, (kernel.shape[0], kernel.shape[0], None, None))
    taps, padding = _square_taps(kernel.shape[0])
    taps = taps.sum(2)
    kernel = jnp.einsum("pau,qbv,uvio->abipqo", taps, taps, kernel)
    return kernel.reshape(*kernel.shape[:3], -1), padding


def _square_taps(size: int) -> tuple[np.ndarray, Padding]:
    """Which taps of a kernel fall on which pixel of a row split into pairs.

    Returns:
      [2, A, 2, size] of 0 and 1: the even and the odd output pixel of a pair, A pairs of input
      pixels around it, the even and the odd pixel of these, and the taps; and how many pairs these
      A reach to the left and the right.
    """
    left, right = same(size)
    first, last = -left // 2, (1 + right) // 2
    pixel = np.arange(2)[:, None] + np.arange(size) - left  # relative to the even one of its pair
    inputs = 2 * np.arange(first, last + 1)[:, None] + np.arange(2)
    taps = pixel[:, None, None] == inputs[:, :, None]
    return taps.astype(np.float32), (-first, last)
