import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer.ops import distributions as dists
from tests.golden_names import FOLDER

GOLDEN = dict(np.load(FOLDER / "functions.npz"))


def categorical(name):
    return dists.independent(dists.one_hot(GOLDEN[f"categorical/logits_{name}"], 0.01), 1)


def test_categorical_golden():
    p, q = categorical("p"), categorical("q")
    np.testing.assert_allclose(p.kl_divergence(q), GOLDEN["categorical/kl"], rtol=1e-4)
    np.testing.assert_allclose(p.entropy(), GOLDEN["categorical/entropy_p"], rtol=1e-4)
    np.testing.assert_allclose(
        p.log_prob(GOLDEN["categorical/event"]), GOLDEN["categorical/logp_p"], rtol=1e-4
    )
    np.testing.assert_allclose(
        p.distribution.logits, GOLDEN["categorical/mixed_logits_p"], rtol=1e-4, atol=1e-5
    )


def test_bounded_normal_golden():
    std = dists.bounded_std(GOLDEN["bounded_normal/raw_std"], 0.1, 1.0)
    dist = dists.independent(dists.normal(jnp.tanh(GOLDEN["bounded_normal/raw_mean"]), std), 1)
    np.testing.assert_allclose(dist.distribution.mean(), GOLDEN["bounded_normal/mean"], rtol=1e-5)
    np.testing.assert_allclose(std, GOLDEN["bounded_normal/std"], rtol=1e-5)
    np.testing.assert_allclose(
        dist.log_prob(GOLDEN["bounded_normal/action"]), GOLDEN["bounded_normal/logp"], rtol=1e-4
    )
    np.testing.assert_allclose(dist.entropy(), GOLDEN["bounded_normal/entropy"], rtol=1e-4)


def test_one_hot_samples_follow_the_probabilities():
    logits = jnp.broadcast_to(jnp.log(jnp.array([0.1, 0.2, 0.7])), (20_000, 3))
    dist = dists.one_hot(logits, 0.1)
    noise = jax.random.gumbel(jax.random.key(0), (20_000, 3))
    samples = dists.draw(dist, noise)
    assert set(np.unique(np.round(samples, 6))) == {0.0, 1.0}
    expected = 0.9 * np.array([0.1, 0.2, 0.7]) + 0.1 / 3
    np.testing.assert_allclose(samples.mean(0), expected, atol=0.015)


def test_normal_samples_have_mean_and_std():
    noise = jax.random.normal(jax.random.key(0), (20_000,))
    samples = dists.draw(dists.normal(jnp.full(20_000, 2.0), jnp.full(20_000, 0.5)), noise)
    np.testing.assert_allclose([samples.mean(), samples.std()], [2.0, 0.5], atol=0.02)


def test_without_noise_comes_the_mode():
    assert dists.draw(dists.one_hot(jnp.array([0.0, 2.0, 1.0]), 0.01), None).argmax() == 1
    np.testing.assert_array_equal(
        dists.draw(dists.normal(jnp.ones(2), jnp.ones(2)), None), np.ones(2)
    )


def test_straight_through_gradient_is_that_of_the_probabilities():
    weight = jnp.array([1.0, -2.0, 3.0])
    logits = jnp.array([0.3, -0.1, 0.5])
    noise = jax.random.gumbel(jax.random.key(0), (3,))
    drawn = jax.grad(lambda x: (dists.draw(dists.one_hot(x, 0.01), noise) * weight).sum())(logits)
    expected = jax.grad(lambda x: ((0.99 * jax.nn.softmax(x) + 0.01 / 3) * weight).sum())(logits)
    np.testing.assert_allclose(drawn, expected, rtol=1e-5)


def test_a_sample_is_exactly_one_hot():
    dist = dists.one_hot(jax.random.normal(jax.random.key(0), (100, 5)), 0.01)
    drawn = dists.draw(dist, jax.random.gumbel(jax.random.key(1), (100, 5)))
    np.testing.assert_array_equal(drawn, np.eye(5)[drawn.argmax(-1)])


def test_normal_is_reparameterised():
    gradient = jax.grad(lambda p: dists.draw(dists.normal(p[0], p[1]), jnp.array(1.5)))(
        jnp.array([0.2, 0.4])
    )
    np.testing.assert_allclose(gradient, [1.0, 1.5])


@pytest.mark.parametrize("unimix", [0.0, 0.5])
def test_unimix_bounds_the_smallest_probability(unimix):
    dist = dists.one_hot(jnp.array([0.0, 50.0]), unimix)
    np.testing.assert_allclose(dist.probs[0], unimix / 2, atol=1e-6)


def test_parameters_are_float32_whatever_comes_in():
    assert dists.one_hot(jnp.zeros(3, jnp.bfloat16), 0.01).logits.dtype == jnp.float32
    assert (
        dists.normal(jnp.zeros(3, jnp.bfloat16), jnp.ones(3, jnp.bfloat16)).mean().dtype
        == jnp.float32
    )


VALID = jnp.array([[True, False, True], [False, False, True], [False, False, False]])


@pytest.mark.parametrize("unimix", [0.0, 0.1])
def test_invalid_classes_have_no_probability(unimix):
    logits = jnp.array([[1.0, 9.0, 0.0]] * 3)
    dist = dists.one_hot(logits, unimix, VALID)
    odds = np.exp([1.0, 0.0]) / np.exp([1.0, 0.0]).sum()
    first = (1 - unimix) * odds + unimix / 2
    np.testing.assert_allclose(dist.probs[0], [first[0], 0, first[1]], rtol=1e-5)
    np.testing.assert_array_equal(dist.probs[1], [0, 0, 1])
    np.testing.assert_allclose(dist.entropy()[0], -(first * np.log(first)).sum(), rtol=1e-5)
    np.testing.assert_allclose(dist.entropy()[1], 0, atol=1e-6)
    np.testing.assert_allclose(
        dist.log_prob(jnp.tile(jnp.eye(3)[:1], (3, 1)))[0], np.log(first[0]), rtol=1e-5
    )
    # Where nothing is valid, everything is.
    free = dists.one_hot(logits[2], unimix)
    np.testing.assert_allclose(dist.probs[2], free.probs, rtol=1e-5)


def test_invalid_classes_are_never_drawn():
    noise = jax.random.gumbel(jax.random.key(0), (5000, 3))
    logits, valid = (jnp.tile(x, (5000, 1)) for x in (jnp.array([[0.0, 50.0, 0.0]]), VALID[:1]))
    dist = dists.one_hot(logits, 0.01, valid)
    samples = dists.draw(dist, noise)
    assert samples[:, 1].max() == 0
    assert samples[:, 0].mean() == pytest.approx(0.5, abs=0.05)
    assert (dists.draw(dist, None).argmax(-1) != 1).all()


@pytest.mark.parametrize("unimix", [0.0, 0.01])
@pytest.mark.parametrize("of", ["entropy", "log_prob", "draw"])
def test_gradients_reach_the_valid_classes_alone(of, unimix):
    def value(logits):
        dist = dists.one_hot(logits, unimix, VALID[0])
        if of == "draw":
            return dists.draw(dist, jnp.zeros(3))[0]
        return dist.entropy() if of == "entropy" else dist.log_prob(jnp.eye(3)[0])

    gradient = jax.grad(value)(jnp.array([1.0, 40.0, -1.0]))
    assert np.isfinite(gradient).all()
    assert gradient[1] == 0
    assert gradient[0] != 0
