import jax
import numpy as np

from dreamer.ops import normalize
from tests.golden_names import FOLDER

GOLDEN = dict(np.load(FOLDER / "functions.npz"))
SETTINGS = {"rate": 0.01, "low": 5.0, "high": 95.0}


def test_golden():
    state = normalize.init()
    for x, (offset, scale) in zip(GOLDEN["retnorm/x"], GOLDEN["retnorm/offset_scale"], strict=True):
        state = normalize.update(state, x, **SETTINGS)
        np.testing.assert_allclose(state.low, offset, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(normalize.scale(state, 1.0), scale, rtol=1e-4)


def test_percentiles_are_those_of_all_devices():
    x = np.random.default_rng(0).normal(size=(4, 10)).astype(np.float32) * 100
    whole = normalize.update(normalize.init(), x, **SETTINGS)
    parts = jax.vmap(
        lambda part: normalize.update(normalize.init(), part, **SETTINGS, axis_name="data"),
        axis_name="data",
    )(x)
    np.testing.assert_allclose(parts.low, np.full(4, whole.low), rtol=1e-6)
    np.testing.assert_allclose(parts.high, np.full(4, whole.high), rtol=1e-6)


def test_no_gradient_reaches_the_input():
    def high(x):
        return normalize.update(normalize.init(), x, **SETTINGS).high

    assert not np.any(jax.grad(high)(np.arange(5.0)))
