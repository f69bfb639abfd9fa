"""The recurrence with its own gradient against the plain scan that jax differentiates."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer.ops.batched_recurrence import recurrence
from dreamer.ops.recurrence import scan

STEPS, BATCH, SIZE = 6, 3, 4


def step(params, state, now):
    """Leaves of several shapes, a reset, a constant, and a straight-through gradient."""
    keep = 1.0 - now["reset"][:, None]
    hidden = jnp.tanh((state["h"] * keep) @ params["w"] + now["x"] + state["s"] @ params["v"])
    chosen = jax.nn.one_hot((hidden @ params["v"].T).argmax(-1), 2)
    probs = jax.nn.softmax(hidden @ params["v"].T)
    return {"h": hidden * jnp.arange(SIZE), "s": chosen + probs - jax.lax.stop_gradient(probs)}


@pytest.fixture
def case():
    keys = jax.random.split(jax.random.key(0), 6)
    params = {
        "w": jax.random.normal(keys[0], (SIZE, SIZE)),
        "v": jax.random.normal(keys[1], (2, SIZE)),
    }
    start = {
        "h": jax.random.normal(keys[2], (BATCH, SIZE)),
        "s": jax.nn.one_hot(jnp.arange(BATCH) % 2, 2),
    }
    inputs = {
        "x": jax.random.normal(keys[3], (STEPS, BATCH, SIZE)),
        "reset": jax.random.bernoulli(keys[4], 0.3, (STEPS, BATCH)),
    }
    weights = jax.random.normal(keys[5], (STEPS, BATCH, SIZE + 2))
    return params, start, inputs, weights


def loss(unroll, params, start, x, reset, weights):
    states = unroll(step, params, start, {"x": x, "reset": reset})
    return jnp.sum(weights * jnp.sin(jnp.concatenate([states["h"], states["s"]], -1)))


@pytest.fixture(autouse=True)
def _broadcast():
    with jax.numpy_rank_promotion("allow"):
        yield


def test_states_and_gradients_are_those_of_the_scan(case):
    params, start, inputs, weights = case
    jax.tree.map(
        np.testing.assert_array_equal,
        recurrence(step, params, start, inputs),
        scan(step, params, start, inputs),
    )
    arguments = params, start, inputs["x"], inputs["reset"], weights
    ours, plain = (
        jax.jit(jax.grad(partial(loss, unroll), (0, 1, 2)))(*arguments)
        for unroll in (recurrence, scan)
    )
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), ours, plain)


def loops(case):
    """The forward and the backward loop of the gradient."""
    params, start, inputs, weights = case
    arguments = params, start, inputs["x"], inputs["reset"], weights
    jaxpr = jax.make_jaxpr(jax.grad(partial(loss, recurrence)))(*arguments).jaxpr
    return {e.params["reverse"]: e for e in jaxpr.eqns if e.primitive.name == "scan"}


def test_the_backward_loop_computes_no_weight_gradient(case):
    """And stores nothing but the gradient of the states."""
    loop = loops(case)[True]
    assert {x.aval.shape for x in loop.outvars} == {
        (STEPS + 1, BATCH, SIZE),
        (STEPS + 1, BATCH, 2),
    }
    weights = [x for x in loop.invars if x.aval.shape in ((SIZE, SIZE), (2, SIZE), (SIZE, 2))]
    assert weights, "the weights are shared by all steps"
    assert not [x for x in loop.invars if x.aval.shape == (STEPS, SIZE, SIZE)]


def test_the_forward_loop_computes_nothing_of_weights_alone(case):
    """The step transposes one of them, which is done before the loop."""
    params, _, inputs, _ = case
    now = jax.tree.map(lambda x: x[0], inputs)
    plain = str(jax.make_jaxpr(step)(params, case[1], now))
    loop = str(loops(case)[False].params["jaxpr"])
    assert "transpose[" in plain
    assert "transpose[" not in loop
