from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dreamer.ops import optim
from dreamer.ops.packing import Packing
from tests.golden_names import FOLDER

GOLDEN = dict(np.load(FOLDER / "functions.npz"))
PUBLISHED = {"agc": 0.3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-20}
TENTH = optim.scale_by_rate(0.1)


def at(step, part):
    return {
        name: jnp.array(GOLDEN[f"optimizer/step{step}/{part}/{name}"])
        for name in ("kernel", "bias", "scale")
    }


def test_golden_eight_steps():
    rate = optim.scale_by_rate(float(GOLDEN["optimizer/lr"]), int(GOLDEN["optimizer/warmup"]))
    optimizer = optim.laprop(rate, **PUBLISHED)
    params = at(0, "before")
    state = optimizer.init(params)
    for step in range(8):
        updates, state = optimizer.update(at(step, "grad"), state, params)
        params = optax.apply_updates(params, updates)
        for name, expected in at(step, "after").items():
            np.testing.assert_allclose(
                params[name], expected, rtol=1e-6, atol=1e-8, err_msg=f"{step} {name}"
            )


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
def test_clipped_norm_is_at_most_the_limit(scale):
    weight, gradient = jnp.ones((3, 4)), scale * jnp.arange(12.0).reshape(3, 4)
    clip = optim.clip_by_weight_norm(0.3)
    clipped, _ = clip.update({"w": gradient}, clip.init({"w": weight}), {"w": weight})
    limit = 0.3 * np.linalg.norm(weight)
    assert np.linalg.norm(clipped["w"]) <= limit * (1 + 1e-6)
    if np.linalg.norm(gradient) <= limit:
        np.testing.assert_array_equal(clipped["w"], gradient)


def test_tiny_weights_may_still_move():
    clip = optim.clip_by_weight_norm(0.3, floor=1e-3)
    weight, gradient = jnp.zeros(4), jnp.ones(4)
    clipped, _ = clip.update(gradient, clip.init(weight), weight)
    np.testing.assert_allclose(np.linalg.norm(clipped), 0.3e-3, rtol=1e-5)


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_packed_weights_move_as_those_of_a_tree(scale):
    shapes = {"a": (3, 5), "b": (1,), "c": (40, 40), "d": (512,)}
    keys = jax.random.split(jax.random.key(0), 8).reshape(4, 2)
    params = {n: jax.random.normal(k[0], shapes[n]) for n, k in zip(shapes, keys, strict=True)}
    gradients = {
        n: scale * jax.random.normal(k[1], shapes[n]) for n, k in zip(shapes, keys, strict=True)
    }
    packing = Packing.of(params)
    plain, packed = (
        optim.laprop(TENTH, **PUBLISHED),
        optim.laprop(TENTH, **PUBLISHED, packing=packing),
    )
    state, packed_state = plain.init(params), packed.init(packing.pack(params))
    for _ in range(3):
        expected, state = plain.update(gradients, state, params)
        updates, packed_state = packed.update(
            packing.pack(gradients), packed_state, packing.pack(params)
        )
        chex.assert_trees_all_close(packing.unpack(updates), expected, rtol=1e-5)


def test_without_warm_up_the_first_step_has_the_full_rate():
    for warmup, expected in ((0, 0.1), (10, 0.0)):
        optimizer = optim.laprop(optim.scale_by_rate(0.1, warmup), **PUBLISHED)
        updates, _ = optimizer.update(
            jnp.array(1.0), optimizer.init(jnp.array(100.0)), jnp.array(100.0)
        )
        np.testing.assert_allclose(updates, -expected, rtol=1e-5)


def rates(
    rate: optax.GradientTransformation, count: int, state: Any = None
) -> tuple[list[float], Any]:
    """The rates of so many updates, and the state after them."""
    state, found = state or rate.init(1.0), []
    for _ in range(count):
        scaled, state = rate.update(1.0, state)
        found.append(-float(scaled))
    return found, state


@pytest.mark.parametrize("warmup", [0, 4])
def test_the_rate_rises_falls_to_a_tenth_and_stays(warmup):
    found, _ = rates(optim.scale_by_rate(2.0, warmup, end=warmup + 10), warmup + 13)
    rising = [2.0 * update / 4 for update in range(warmup)]
    falling = [2.0 - 0.18 * update for update in range(10)]
    np.testing.assert_allclose(found, rising + falling + [0.2] * 3, rtol=1e-5)


def test_without_an_end_the_rate_stays():
    rate = optim.scale_by_rate(2.0, 4)
    for count in (4, 5, 1_000_000):
        scaled, _ = rate.update(1.0, optim.RateState(jnp.int32(count), jnp.ones(())))
        assert float(scaled) == -2.0


@pytest.mark.parametrize("done", [5, 10])
def test_the_rate_is_continuous_where_the_end_moves(done):
    before, state = rates(optim.scale_by_rate(2.0, end=10), done)
    after, _ = rates(optim.scale_by_rate(2.0, end=20), 22 - done, state)
    reached = 2.0 - 0.18 * done
    falling = np.linspace(reached, 0.2, 21 - done).tolist()
    np.testing.assert_allclose(after, [*falling, 0.2], rtol=1e-5)
    assert before[-1] >= after[0]
