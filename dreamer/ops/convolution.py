"""Convolutions of stride 1 in plain form; `fast_convolution` has others.

Images have the layout [B, H, W, channels], kernels [rows, columns, in, out].
"""

import chex
import jax
from jax import Array

Padding = tuple[int, int]  # rows above and below, and as many columns to the left and the right


def convolve(x: Array, kernel: Array, padding: Padding) -> Array:
    """Convolution of stride 1 in the dtype of x.

    Args:
      x: [B, H, W, in].
      kernel: [R, C, in, out].
      padding: zeros around x.

    Returns:
      [B, H', W', out].
    """
    chex.assert_rank([x, kernel], 4)
    chex.assert_shape(x, (..., kernel.shape[2]))
    return jax.lax.conv_general_dilated(
        x,
        kernel.astype(x.dtype),
        (1, 1),
        [padding] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def same(size: int) -> Padding:
    """The same-padding of a kernel of this side."""
    return (size - 1) // 2, size // 2
