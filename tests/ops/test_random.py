import jax
import numpy as np
import pytest

from dreamer.ops import random


@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (2, 64, 32, 4)])
def test_the_bits_are_those_of_jax(shape):
    key = jax.random.fold_in(jax.random.key(7), 3)
    np.testing.assert_array_equal(random.bits(key, shape), jax.random.bits(key, shape))


def test_gumbel_noise_is_that_of_jax_also_for_many_keys():
    keys = jax.random.split(jax.random.key(1), 3)
    ours = jax.jit(jax.vmap(lambda key: random.gumbel(key, (1000,))))(keys)
    theirs = jax.vmap(lambda key: jax.random.gumbel(key, (1000,)))(keys)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_no_bits_make_infinite_noise(monkeypatch):
    extremes = np.array([0, 2**32 - 1], np.uint32)
    monkeypatch.setattr(random, "bits", lambda key, shape: jax.numpy.asarray(extremes))
    assert np.isfinite(random.gumbel(jax.random.key(0), (2,))).all()


def test_keys_of_another_kind_draw_in_their_own_way():
    key = jax.random.key(0, impl="rbg")
    np.testing.assert_array_equal(random.bits(key, (5,)), jax.random.bits(key, (5,)))


def test_a_number_that_is_not_known_yet_draws_the_same():
    """As in the export of a policy for any number of environments."""

    def draw(key, x):
        return random.gumbel(jax.random.wrap_key_data(key), x.shape)

    key = jax.random.key_data(jax.random.key(5))
    sizes = jax.export.symbolic_shape("n, 4")
    exported = jax.export.export(jax.jit(draw))(key, jax.ShapeDtypeStruct(sizes, "float32"))
    x = np.zeros((3, 4), np.float32)
    np.testing.assert_allclose(exported.call(key, x), draw(key, x), rtol=1e-6)
