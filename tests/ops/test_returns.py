import jax.numpy as jnp
import numpy as np

from dreamer.ops.returns import lambda_return
from tests.golden_names import FOLDER

GOLDEN = dict(np.load(FOLDER / "functions.npz"))


def naive(reward, discount, lam, bootstrap):
    returns = [bootstrap[-1]]
    for t in reversed(range(len(reward) - 1)):
        mixed = (1 - lam[t + 1]) * bootstrap[t + 1] + lam[t + 1] * returns[0]
        returns.insert(0, reward[t + 1] + discount[t + 1] * mixed)
    return np.stack(returns[:-1])


def test_equals_a_naive_loop():
    rng = np.random.default_rng(0)
    reward, bootstrap = rng.normal(size=(2, 9, 4)).astype(np.float32)
    discount, lam = rng.uniform(size=(2, 9, 4)).astype(np.float32)
    np.testing.assert_allclose(
        lambda_return(reward, discount, lam, bootstrap),
        naive(reward, discount, lam, bootstrap),
        rtol=1e-5,
        atol=1e-6,
    )


def test_replay_golden():
    get = {
        key: GOLDEN[f"lambda_return/{key}"]
        for key in ("last", "term", "rew", "boot", "disc", "lam", "ret")
    }
    discount, lam = (1 - get["term"]) * get["disc"], (1 - get["last"]) * get["lam"]
    ours = lambda_return(get["rew"].T, discount.T, lam.T, get["boot"].T).T
    np.testing.assert_allclose(ours, get["ret"], rtol=1e-4, atol=1e-5)


def test_imagination_golden():
    get = {key: GOLDEN[f"lambda_return_soft/{key}"] for key in ("con", "rew", "val", "ret")}
    ours = lambda_return(get["rew"].T, get["con"].T, 0.95, get["val"].T).T
    np.testing.assert_allclose(ours, get["ret"], rtol=1e-4, atol=1e-5)


def test_special_cases():
    reward, value = jnp.array([9.0, 1.0, 2.0]), jnp.array([9.0, 10.0, 20.0])
    one_step = lambda_return(reward, jnp.full(3, 0.5), 0.0, value)
    np.testing.assert_allclose(one_step, [1 + 0.5 * 10, 2 + 0.5 * 20])
    whole = lambda_return(reward, jnp.full(3, 0.5), 1.0, value)
    np.testing.assert_allclose(whole, [1 + 0.5 * (2 + 0.5 * 20), 2 + 0.5 * 20])
    ended = lambda_return(reward, jnp.array([1.0, 0.0, 1.0]), 0.95, value)
    np.testing.assert_allclose(ended[0], 1.0)
