"""Every form of the networks is equal to the plain one, and one of them is chosen by config."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dm_env import specs

from dreamer.agents.dreamer import learning
from dreamer.nets import forms, rssm
from dreamer.nets.layers import PooledConv, UpsampleConv
from dreamer.ops.batched_recurrence import recurrence
from dreamer.ops.recurrence import scan
from tests import tiny

FAST = ["cpu", "accelerator"]
IMAGE = {"image": specs.BoundedArray((16, 16, 3), np.uint8, 0, 255, "image")}


@cache
def agent(form, latent="categorical"):
    small = {"mults": (2,)}
    return tiny.agent(
        IMAGE | tiny.VECTOR,
        tiny.CONTINUOUS,
        kernels=form,
        encoder=small,
        decoder=small,
        rssm={"latent": latent, "dynamics_layers": 2, "posterior_layers": 2},
    )


def test_plain_is_plain():
    model = agent("plain").model
    assert type(model.rssm) is rssm.RSSM
    assert (model.encoder.conv, model.decoder.conv) == (PooledConv, UpsampleConv)


@pytest.mark.parametrize("form", FAST)
def test_parameters_are_the_same(form):
    jax.tree.map(
        np.testing.assert_array_equal,
        tiny.state(agent(form)).params,
        tiny.state(agent("plain")).params,
    )


@pytest.mark.parametrize("form", FAST)
@pytest.mark.parametrize(
    "latent", ["categorical", pytest.param("gaussian", marks=pytest.mark.slow)]
)
def test_a_step_and_its_gradients_are_the_same(form, latent):
    plain, fast = (agent(name, latent).model.rssm for name in ("plain", form))
    params = tiny.state(agent("plain", latent), learned=True).params["rssm"]
    keys = jax.random.split(jax.random.key(0), 3)
    feat = jax.random.normal(keys[0], (3, tiny.feature_size(agent("plain", latent))))
    token_size = params["params"]["posterior_in"]["kernel"].shape[0] - 16
    action, token = (
        jax.random.normal(key, (3, size))
        for key, size in zip(keys[1:], (2, token_size), strict=True)
    )

    def step(model, params, feat, action, token):
        apply = partial(model.apply, params)
        inputs = apply(action, method="action_part"), apply(token, method="token_part")
        deter, posterior = apply(feat, *inputs)
        return deter, posterior, apply(deter, method="prior")

    def total(model, *args):
        return sum(jnp.sum(jnp.sin(x)) for x in step(model, *args))

    args = params, feat, action, token
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, step(fast, *args), step(plain, *args))
    gradients = [jax.jit(jax.grad(partial(total, m), (0, 1, 2, 3)))(*args) for m in (fast, plain)]
    jax.tree.map(close, *gradients)


@pytest.mark.parametrize("form", FAST)
def test_losses_of_an_update_are_the_same(form):
    state, batch = tiny.state(agent("plain"), learned=True), tiny.batch(agent("plain"), 2, 3)

    def terms(name, state, batch):
        arguments = state.params, state.slow_critic, state.percentiles, batch, learning.Draws()
        return learning.loss(agent(name), *arguments)[1][2]

    ours, plain = (jax.jit(partial(terms, name))(state, batch) for name in (form, "plain"))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4), ours, plain)


@pytest.mark.parametrize(
    ("platform", "form", "unroll"), [("cpu", "cpu", scan), ("gpu", "accelerator", recurrence)]
)
def test_auto_is_the_form_of_the_platform(platform, form, unroll, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    model = tiny.agent(IMAGE, tiny.DISCRETE).model
    chosen = model.encoder.conv, model.decoder.conv, type(model.rssm)
    assert chosen == forms.FORMS[form]
    assert model.unroll is unroll
