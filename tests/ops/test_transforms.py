import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from dreamer.ops import transforms
from tests.golden_names import FOLDER

GOLDEN = dict(np.load(FOLDER / "functions.npz"))


@pytest.mark.parametrize("name", ["symlog", "symexp"])
def test_golden(name):
    ours = getattr(transforms, name)(GOLDEN[f"{name}/x"])
    np.testing.assert_allclose(ours, GOLDEN[f"{name}/y"], rtol=1e-5)


def test_symlog_and_symexp_are_inverse():
    x = jnp.array([-1e4, -3.0, -0.1, 0.0, 0.1, 3.0, 1e4])
    np.testing.assert_allclose(transforms.symexp(transforms.symlog(x)), x, rtol=1e-4)


@pytest.mark.parametrize("name", ["twohot255", "twohot41"])
def test_two_hot_golden(name):
    golden = {
        key.split("/")[1]: value for key, value in GOLDEN.items() if key.startswith(name + "/")
    }
    bins = transforms.symexp_bins(len(golden["bins"]))
    np.testing.assert_allclose(bins, golden["bins"], rtol=1e-5)
    np.testing.assert_allclose(
        transforms.two_hot_loss(golden["logits"], golden["target"], bins), golden["loss"], rtol=1e-4
    )
    np.testing.assert_allclose(
        transforms.two_hot_mean(golden["logits"], bins), golden["pred"], rtol=1e-4, atol=1e-3
    )


@pytest.mark.parametrize("count", [4, 41, 254, 255])
def test_bins_are_symmetric_and_sorted(count):
    bins = np.asarray(transforms.symexp_bins(count))
    np.testing.assert_array_equal(bins, -bins[::-1])
    assert (np.diff(bins) >= 0).all()
    assert bins.size == count


@pytest.mark.parametrize("count", [4, 255])
def test_uniform_logits_predict_exactly_zero(count):
    assert float(transforms.two_hot_mean(jnp.zeros((count,)), transforms.symexp_bins(count))) == 0.0


@settings(max_examples=50, deadline=None)
@given(st.floats(-1e8, 1e8, width=32))
def test_two_hot_reproduces_its_target(target):
    bins = transforms.symexp_bins(255)
    low, high, low_weight, high_weight = transforms.two_hot(jnp.float32(target), bins)
    np.testing.assert_allclose(low_weight + high_weight, 1.0, rtol=1e-6)
    np.testing.assert_allclose(
        low_weight * bins[low] + high_weight * bins[high], target, rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("count", [4, 5, 254, 255])
def test_a_target_on_a_bin_has_all_its_weight_there(count):
    bins = transforms.symexp_bins(count)
    low, high, low_weight, high_weight = transforms.two_hot(bins, bins)
    reproduced = low_weight * bins[low] + high_weight * bins[high]
    np.testing.assert_allclose(reproduced, bins, rtol=1e-6)
    np.testing.assert_allclose(np.maximum(low_weight, high_weight), 1.0)


def test_targets_outside_the_bins_are_held_at_the_ends():
    bins = transforms.symexp_bins(5)
    logits = jnp.arange(5.0)
    log_probs = jax.nn.log_softmax(logits)
    loss = transforms.two_hot_loss(jnp.stack([logits, logits]), jnp.array([-1e12, 1e12]), bins)
    np.testing.assert_allclose(loss, [-log_probs[0], -log_probs[4]], rtol=1e-6)


def test_no_gradient_reaches_the_target():
    bins = transforms.symexp_bins(5)
    assert jax.grad(lambda y: transforms.two_hot_loss(jnp.arange(5.0), y, bins))(1.5) == 0
