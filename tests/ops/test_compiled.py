"""Operations give the same numbers one by one, compiled, and on every device."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from dreamer.ops import distributions, losses, normalize, transforms
from dreamer.ops.returns import lambda_return
from tests.golden_names import FOLDER

GOLDEN = dict(np.load(FOLDER / "functions.npz"))
everywhere = chex.variants(with_jit=True, without_jit=True, with_pmap=True)


class CompiledTest(chex.TestCase):
    @everywhere
    def test_lambda_return(self):
        reward, value = jnp.array([9.0, 1.0, 2.0]), jnp.array([9.0, 10.0, 20.0])
        returns = self.variant(lambda_return)(reward, jnp.full(3, 0.5), jnp.float32(1.0), value)
        np.testing.assert_allclose(returns, [1 + 0.5 * (2 + 0.5 * 20), 2 + 0.5 * 20], rtol=1e-6)

    @everywhere
    def test_symlog_and_symexp(self):
        x = np.array([-100.0, -1.0, 0.0, 1.0, 100.0], np.float32)
        y = self.variant(transforms.symlog)(x)
        np.testing.assert_allclose(y, np.sign(x) * np.log(1 + np.abs(x)), rtol=1e-5)
        np.testing.assert_allclose(self.variant(transforms.symexp)(y), x, rtol=1e-4)

    @everywhere
    def test_two_hot(self):
        logits, target, loss, mean = (
            GOLDEN[f"twohot255/{key}"] for key in ("logits", "target", "loss", "pred")
        )
        bins = transforms.symexp_bins(255)
        ours = self.variant(transforms.two_hot_loss)(logits, target, bins)
        np.testing.assert_allclose(ours, loss, rtol=1e-4)
        ours = self.variant(transforms.two_hot_mean)(logits, bins)
        np.testing.assert_allclose(ours, mean, rtol=1e-4, atol=1e-3)

    @everywhere
    def test_losses(self):
        image = self.variant(losses.image_loss)(
            jnp.full((2, 4, 4, 3), 0.5), jnp.full((2, 4, 4, 3), 255, jnp.uint8)
        )
        np.testing.assert_allclose(image, [12.0, 12.0], rtol=1e-6)
        entropy = self.variant(losses.binary_cross_entropy)(jnp.zeros(3), jnp.ones(3))
        np.testing.assert_allclose(entropy, np.full(3, np.log(2)), rtol=1e-6)

    @everywhere
    def test_free_kl(self):
        def kl(logits):
            p, q = (distributions.one_hot(x, 0.0) for x in (logits, jnp.zeros(2)))
            return losses.free_kl(p, q, 0.0)

        p = 1 / (1 + np.exp(-1.0))
        by_hand = p * np.log(2 * p) + (1 - p) * np.log(2 * (1 - p))
        np.testing.assert_allclose(self.variant(kl)(jnp.array([1.0, 0.0])), by_hand, rtol=1e-5)

    @everywhere
    def test_percentiles(self):
        def update(state, x):
            return normalize.update(state, x, 0.5, 0.0, 100.0)

        state = self.variant(update)(normalize.init(), jnp.array([-2.0, 1.0, 4.0]))
        np.testing.assert_allclose((state.low, state.high), (-1.0, 2.0))

    @chex.variants(with_pmap=True)
    def test_percentiles_of_all_devices(self):
        def update(x):
            x += jax.lax.axis_index("data")
            return normalize.update(normalize.init(), x, 1.0, 0.0, 100.0, "data")

        state = self.variant(update, axis_name="data")(jnp.zeros(3))
        np.testing.assert_allclose((state.low, state.high), (0.0, jax.local_device_count() - 1))
