"""Arguments of the wrong shape or dtype are refused with their shapes, before XLA sees them."""

import jax
import jax.numpy as jnp
import pytest

from dreamer.ops import convolution, distributions, fast_convolution, losses, normalize, random
from dreamer.ops import transforms as t
from dreamer.ops.packing import Packing
from dreamer.ops.returns import lambda_return

BINS = t.symexp_bins(5)
PACKING = Packing.of({"a": jnp.zeros(3)})


def x(*shape):
    return jnp.zeros(shape)


def i(*shape):
    return jnp.zeros(shape, jnp.int32)


WRONG = {
    "returns: discount": (lambda_return, (x(4, 2), x(4, 1), 0.9, x(4, 2)), r"\(4, 2\).*\(4, 1\)"),
    "returns: lambda": (lambda_return, (x(4, 2), x(4, 2), x(3, 2), x(4, 2)), r"\(3, 2\).*\(4, 2\)"),
    "returns: integers": (lambda_return, (i(4), x(4), 0.9, x(4)), "int32"),
    "symlog: integers": (t.symlog, (i(3),), "int32"),
    "symexp: integers": (t.symexp, (i(3),), "int32"),
    "two-hot mean": (t.two_hot_mean, (x(2, 6), BINS), r"\(2, 6\).*\(\.\.\., 5\)"),
    "two-hot: bins": (t.two_hot, (x(2), x(2, 5)), r"\(2, 5\)"),
    "two-hot: classes": (t.two_hot, (i(2), BINS), "int32"),
    "two-hot loss": (t.two_hot_loss, (x(2, 5), x(3), BINS), r"\(2, 5\).*\(3, 5\)"),
    "image": (losses.image_loss, (x(2, 8, 8, 3), x(8, 8, 3)), r"\(2, 8, 8, 3\), \(8, 8, 3\)"),
    "image: floats": (losses.image_loss, (x(8, 8, 3), x(8, 8, 3)), "float32.*uint8"),
    "symlog loss": (losses.symlog_loss, (x(2, 3), x(2, 1), 1), r"\(2, 3\), \(2, 1\)"),
    "class loss": (losses.class_loss, (x(2, 4), i(3), 0), r"\(2, 4\).*\(3, None\)"),
    "class loss: one-hot": (losses.class_loss, (x(2, 4, 4), x(2, 4), 0), "float32"),
    "cross-entropy": (losses.binary_cross_entropy, (x(2, 3), x(3, 3)), r"\(3, 3\).*\(2, 3\)"),
    "percentiles": (normalize.update, (normalize.init(), i(3), 0.1, 5.0, 95.0), "int32"),
    "percentiles: scale": (normalize.scale, (normalize.Percentiles(x(2), x()), 1.0), r"\(2,\)"),
    "one-hot: mask": (distributions.one_hot, (x(2, 3), 0.1, x(1, 3) > 0), r"\(2, 3\), \(1, 3\)"),
    "one-hot: mask of floats": (distributions.one_hot, (x(3), 0.1, x(3)), "float32"),
    "normal": (distributions.normal, (x(2, 3), x(3)), r"\(2, 3\), \(3,\)"),
    "bounded std": (distributions.bounded_std, (i(3), 0.1, 1.0), "int32"),
    "draw": (distributions.draw, (distributions.one_hot(x(2, 3), 0.1), x(3)), r"\(3,\).*\(2, 3\)"),
    "convolution": (
        convolution.convolve,
        (x(1, 4, 4, 3), x(3, 3, 2, 5), (1, 1)),
        r"\(1, 4, 4, 3\).*\(\.\.\., 2\)",
    ),
    "convolution in slices": (
        fast_convolution.convolve_in_slices,
        (x(4, 4, 3), x(3, 3, 3, 5), (1, 1)),
        r"\(4, 4, 3\)",
    ),
    "squares": (fast_convolution.between_squares, (x(3, 5, 2, 2),), r"\(3, 5, 2, 2\)"),
    "unpack": (PACKING.unpack, (x(2, 512),), r"\(2, 512\).*\(1, 512\)"),
    "spread": (PACKING.spread, (x(2),), r"\(2,\).*\(1\)"),
    "several keys": (random.gumbel, (jax.random.split(jax.random.key(0)), (3,)), r"\(2,\)"),
}


@pytest.mark.parametrize(("function", "arguments", "message"), WRONG.values(), ids=WRONG)
def test_wrong_shapes_are_refused(function, arguments, message):
    with pytest.raises(AssertionError, match=f"(?s){message}"):
        function(*arguments)


def test_a_wrong_shape_is_refused_while_tracing():
    with pytest.raises(AssertionError, match=r"\(4, 2\).*\(4, 1\)"):
        jax.eval_shape(lambda_return, x(4, 2), x(4, 1), 0.9, x(4, 2))


def test_bfloat16_is_a_float():
    assert t.symlog(jnp.ones(2, jnp.bfloat16)).dtype == jnp.bfloat16
    half = jnp.zeros((2, 5), jnp.bfloat16)
    assert t.two_hot_loss(half, half[:, 0], BINS).dtype == jnp.float32
