import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer.ops import convolution, fast_convolution


@pytest.mark.parametrize(("images", "side"), [(5, 6), (130, 6), (19, 32)])
def test_slices_change_no_gradient(images, side):
    """With one slice, and with several of which the last is smaller."""
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (images, side, side, 2))
    kernel = jax.random.normal(keys[1], (3, 3, 2, 4))
    dy = jax.random.normal(keys[2], (images, side, side, 4))
    gradients = [
        jax.vjp(lambda x, kernel, f=f: f(x, kernel, (1, 1)), x, kernel)[1](dy)
        for f in (fast_convolution.convolve_in_slices, convolution.convolve)
    ]
    for a, b in zip(*gradients, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)


def test_squares_as_channels_by_hand():
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    squares = fast_convolution.space_to_depth(x)
    np.testing.assert_array_equal(squares[0, 0, 1], [2, 3, 6, 7])
    np.testing.assert_array_equal(fast_convolution.depth_to_space(squares), x)
