import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer.ops import distributions as dists
from dreamer.ops import losses


def test_free_kl_has_no_gradient_below_the_free_nats():
    def kl(logits, free_nats):
        p, q = dists.one_hot(logits, 0.0), dists.one_hot(jnp.zeros(2), 0.0)
        return losses.free_kl(p, q, free_nats)

    logits = jnp.array([1.0, 0.0])
    p = 1 / (1 + np.exp(-1.0))
    by_hand = p * np.log(2 * p) + (1 - p) * np.log(2 * (1 - p))
    np.testing.assert_allclose(kl(logits, 0.0), by_hand, rtol=1e-5)
    np.testing.assert_allclose(kl(logits, 1.0), 1.0)
    assert not np.any(jax.grad(kl)(logits, 1.0))
    assert np.any(jax.grad(kl)(logits, 0.0))


def test_binary_cross_entropy_is_least_at_its_target():
    target = 0.997
    logits = jnp.linspace(-10, 10, 2001)
    best = logits[jnp.argmin(losses.binary_cross_entropy(logits, target))]
    np.testing.assert_allclose(jax.nn.sigmoid(best), target, atol=1e-4)
    np.testing.assert_allclose(
        losses.binary_cross_entropy(jnp.array(0.0), 1.0), np.log(2), rtol=1e-6
    )


def test_image_loss_sums_over_the_image():
    target = jnp.full((2, 4, 4, 3), 255, jnp.uint8)
    np.testing.assert_allclose(losses.image_loss(jnp.full((2, 4, 4, 3), 0.5), target), [12.0, 12.0])


@pytest.mark.parametrize(("shape", "ndims"), [((), 0), ((3,), 1), ((2, 3), 2)])
def test_vector_losses_sum_over_the_event(shape, ndims):
    size = int(np.prod(shape))
    target = jnp.full((5, *shape), np.e - 1)
    np.testing.assert_allclose(
        losses.symlog_loss(jnp.zeros((5, *shape)), target, ndims), np.full(5, size), rtol=1e-5
    )
    logits, classes = jnp.zeros((5, *shape, 4)), jnp.ones((5, *shape), jnp.int32)
    np.testing.assert_allclose(
        losses.class_loss(logits, classes, ndims), np.full(5, size * np.log(4)), rtol=1e-5
    )
