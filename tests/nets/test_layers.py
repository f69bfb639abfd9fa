from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer.nets import fast_conv, fast_rssm, layers


def test_block_linear_is_a_block_diagonal_linear():
    layer = layers.BlockLinear(6, 12, 3, jnp.float32)
    x = jax.random.normal(jax.random.key(0), (5, 6))
    params = layer.init(jax.random.key(1), x)
    params["params"]["bias"] = jnp.arange(12.0)
    kernel, dense = params["params"]["kernel"], np.zeros((6, 12))
    for block in range(3):
        dense[2 * block : 2 * block + 2, 4 * block : 4 * block + 4] = kernel[block]
    ours = layer.apply(params, x)
    np.testing.assert_allclose(ours, np.asarray(x) @ dense + np.arange(12.0), rtol=1e-5, atol=1e-6)


def test_shares_of_a_block_linear_add_up():
    """An input of every block, in two pieces, against a copy appended to each block."""
    layer = layers.BlockLinear(6, 12, 3, jnp.float32, shared=4)
    x, shared = (jax.random.normal(jax.random.key(i), (5, n)) for i, n in ((0, 6), (1, 4)))
    params = layer.init(jax.random.key(2), x)
    params["params"]["bias"] = jnp.arange(12.0)
    copies = jnp.broadcast_to(shared[:, None], (5, 3, 4))
    appended = jnp.concatenate([layers.split_blocks(x, 3), copies], -1)
    plain = layers.BlockLinear(18, 12, 3, jnp.float32)
    plain = plain.apply(params, layers.merge_blocks(appended))
    pieces = [(shared[:, :1], 0), (shared[:, 1:], 1)]
    ours = layer.apply(params, x)
    ours += sum(layer.apply(params, *piece, method="share") for piece in pieces)
    np.testing.assert_allclose(ours, plain, rtol=1e-5, atol=1e-6)


def test_block_products_are_those_of_einsum():
    x, kernel = (
        jax.random.normal(jax.random.key(i), s) for i, s in ((0, (5, 2, 3, 4)), (1, (3, 4, 6)))
    )
    for part in (x, x[0], x[0, 0]):
        np.testing.assert_allclose(
            layers.block_product(part, kernel),
            jnp.einsum("...gi,gio->...go", part, kernel),
            rtol=1e-5,
            atol=1e-6,
        )


@pytest.mark.parametrize("twin", [fast_rssm.twin_blocks, fast_rssm.twin_blocks_as_one])
@pytest.mark.parametrize("sizes", [(8, 4), (9, 4), (3, 3)])
def test_twin_blocks_are_two_blocks(sizes, twin):
    """Values and gradients, where the parts have a large common divisor and where they have not."""
    block = layers.Block(5, jnp.float32)
    parts = [jax.random.normal(jax.random.key(n), (2, 3, size)) for n, size in enumerate(sizes)]
    params = [block.init(jax.random.key(9), part)["params"] for part in parts]
    params = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(7), x.shape), params)

    def plain(params, parts):
        return jnp.stack(
            [block.apply({"params": p}, x) for p, x in zip(params, parts, strict=True)], -2
        )

    def ours(params, parts):
        return twin(params, jnp.concatenate(parts, -1), jnp.float32)

    def gradients(function):
        return jax.grad(lambda *x: jnp.sum(jnp.sin(function(*x))), (0, 1))(params, parts)

    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    close(ours(params, parts), plain(params, parts))
    jax.tree.map(close, gradients(ours), gradients(plain))


def test_initial_kernels_have_the_published_scale():
    dense = layers.kernel_init()(jax.random.key(0), (400, 300), jnp.float32)
    np.testing.assert_allclose(dense.std(), 1 / np.sqrt(400), rtol=0.02)
    assert np.abs(dense).max() <= 2.28 / np.sqrt(400)
    block = layers.kernel_init()(jax.random.key(1), (8, 200, 100), jnp.float32)
    np.testing.assert_allclose(block.std(), 1 / np.sqrt(1600), rtol=0.02)
    conv = layers.kernel_init()(jax.random.key(2), (5, 5, 32, 48), jnp.float32)
    np.testing.assert_allclose(conv.std(), 1 / np.sqrt(800), rtol=0.02)
    np.testing.assert_allclose(
        layers.kernel_init(0.01)(jax.random.key(3), (400, 300), jnp.float32).std(),
        0.01 / 20,
        rtol=0.02,
    )
    assert not np.any(layers.kernel_init(0.0)(jax.random.key(4), (4, 3), jnp.float32))


def test_norm_by_hand():
    norm = layers.RMSNorm(jnp.float32)
    x = jnp.array([[3.0, 4.0]])
    ours = norm.apply(norm.init(jax.random.key(0), x), x)
    np.testing.assert_allclose(ours, x / np.sqrt(12.5 + 1e-4), rtol=1e-6)


def test_pool():
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    np.testing.assert_array_equal(layers.max_pool(x)[0, ..., 0], [[5, 7], [13, 15]])


def plain_conv(channels, size):
    return nn.Conv(channels, (size, size), padding="SAME")


def compare(ours, plain, x, params):
    """Values and gradients of a layer and its plain form, functions of the same parameters."""
    np.testing.assert_allclose(ours(params, x), plain(params, x), atol=1e-5)
    y = jax.random.normal(jax.random.key(1), ours(params, x).shape)

    def error(apply, params, x):
        return jnp.sum(y * jnp.sin(apply(params, x)))

    gradients = [jax.grad(error, (1, 2))(apply, params, x) for apply in (ours, plain)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), *gradients)


@pytest.mark.parametrize(
    "form", [layers.UpsampleConv, fast_conv.SubPixelConv, fast_conv.CPUSubPixelConv]
)
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7])
def test_every_form_of_upsampling_is_a_convolution_of_the_repeated_image(size, form):
    """At every border, for even kernels too."""
    ours = form(3, size, jnp.float32)
    x = jax.random.normal(jax.random.key(0), (2, 4, 5, 2))
    params = ours.init(jax.random.key(2), x)
    params["params"]["bias"] = jnp.arange(3.0)

    def repeated(params, x):
        return plain_conv(3, size).apply(params, x.repeat(2, axis=1).repeat(2, axis=2))

    compare(ours.apply, repeated, x, params)


@pytest.mark.parametrize(
    ("form", "few"),
    [(layers.PooledConv, 0), (fast_conv.CPUPooledConv, 0), (fast_conv.CPUPooledConv, 16)],
)
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7])
def test_every_form_of_a_pooled_convolution_is_a_convolution_and_a_pool(
    size, form, few, monkeypatch
):
    monkeypatch.setattr(fast_conv, "FEW_CHANNELS", few)
    ours = form(3, size, jnp.float32)
    x = jax.random.normal(jax.random.key(0), (2, 6, 8, 2))
    params = ours.init(jax.random.key(2), x)
    params["params"]["bias"] = jnp.arange(3.0)
    compare(ours.apply, lambda p, x: layers.max_pool(plain_conv(3, size).apply(p, x)), x, params)


def test_compute_dtype():
    assert layers.compute_dtype("auto") == jnp.float32  # on CPU, where bfloat16 is slower
    assert layers.compute_dtype("bfloat16") == jnp.bfloat16


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_activations_have_the_dtype_and_weights_are_float32(dtype):
    mlp = layers.MLP(2, 8, dtype)
    params = mlp.init(jax.random.key(0), jnp.ones((3, 4), dtype))
    assert mlp.apply(params, jnp.ones((3, 4), dtype)).dtype == dtype
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}
