"""The two scans against naive loops, causality by gradients, and resets."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer.agents.dreamer import learning
from dreamer.agents.dreamer import world_model as models
from dreamer.agents.dreamer.report import open_loop
from dreamer.nets.rssm import feature
from dreamer.ops.batched_recurrence import recurrence
from dreamer.ops.recurrence import scan
from tests import tiny

B, T = 2, 5


def observed(agent, params, tokens, previous, is_first, noise):
    start = agent.model.rssm.initial(B)
    return models.observe(agent.model, params, start, tokens, previous, is_first, noise)


@pytest.fixture(
    scope="module", params=["categorical", pytest.param("gaussian", marks=pytest.mark.slow)]
)
def case(request):
    agent = tiny.default("continuous", latent=request.param)
    params = tiny.state(agent, learned=True).params
    keys = iter(jax.random.split(jax.random.key(0), 4))
    tokens = jax.random.normal(next(keys), (B, T, 16))
    previous = jax.random.normal(next(keys), (B, T, 2))
    is_first = jnp.zeros((B, T), bool).at[1, 3].set(True)
    noise = agent.model.rssm.noise(next(keys), (B, T))
    return agent, params, tokens, previous, is_first, noise


def step(model, rssm, latent, action, token):
    """Deterministic state and posterior statistics, with nothing computed beforehand."""
    part = model.rssm.apply(rssm, action, method="action_part")
    deter = model.rssm.apply(rssm, feature(latent), part, method="core")
    part = model.rssm.apply(rssm, token, method="token_part")
    return deter, model.rssm.apply(rssm, deter, part, method="posterior")


def test_observe_equals_a_naive_loop(case):
    agent, params, tokens, previous, is_first, noise = case
    latents, stats = observed(*case)
    model, carry = agent.model, agent.model.rssm.initial(B)
    for t in range(T):
        keep = ~is_first[:, t]
        carry = {
            key: value * keep.reshape(-1, *[1] * (value.ndim - 1)) for key, value in carry.items()
        }
        action = previous[:, t] * keep[:, None]
        deter, expected = step(model, params["rssm"], carry, action, tokens[:, t])
        carry = model.latent(deter, expected, noise[:, t])
        np.testing.assert_allclose(stats[:, t], expected, rtol=1e-4, atol=1e-5)
        for key, value in carry.items():
            np.testing.assert_allclose(latents[key][:, t], value, rtol=1e-4, atol=1e-5)


def test_imagine_equals_a_naive_loop(case):
    agent, params, *_ = case
    model, horizon, start = agent.model, 4, agent.model.rssm.initial(3)
    keys = jax.random.split(jax.random.key(1))
    noise = model.rssm.noise(keys[0], (horizon, 3))
    actions = jax.random.normal(keys[1], (horizon, 3, 2))

    def policy(latent, given):
        return given, {"given": given}

    latents, collected = models.imagine(model, params, start, policy, horizon, noise, actions)
    np.testing.assert_array_equal(collected["given"], actions)
    np.testing.assert_array_equal(latents["deter"][0], start["deter"])
    carry = start
    for t in range(horizon):
        carry = models.imagine_step(model, params, carry, actions[t], noise[t])
        for key, value in carry.items():
            np.testing.assert_allclose(latents[key][t + 1], value, rtol=1e-4, atol=1e-5)


def test_causality_and_resets_by_gradients(case):
    agent, params, tokens, previous, is_first, noise = case

    def deter_sum(tokens, previous, env, time):
        latents, _ = observed(agent, params, tokens, previous, is_first, noise)
        return latents["deter"][env, time].sum()

    grad = jax.jit(jax.grad(deter_sum, (0, 1)), static_argnums=(2, 3))
    for time in range(T):
        from_tokens, from_previous = grad(tokens, previous, 0, time)
        assert not np.any(from_tokens[0, time:])  # deter is made before its own token is seen
        assert not np.any(from_previous[0, time + 1 :])
        assert np.any(from_previous[0, time])
        assert not np.any(from_tokens[1])  # the other sequence
        assert time == 0 or np.any(from_tokens[0, 0])
    from_tokens, from_previous = grad(tokens, previous, 1, 4)
    assert not np.any(from_tokens[1, :3])  # nothing passes the first step of an episode
    assert not np.any(from_previous[1, :4])
    assert np.any(from_tokens[1, 3])


def test_mode_is_used_without_noise(case):
    agent, params, tokens, previous, is_first, _ = case
    first, second = (observed(agent, params, tokens, previous, is_first, None) for _ in range(2))
    np.testing.assert_array_equal(first[0]["stoch"], second[0]["stoch"])


def test_open_loop_follows_the_posterior_and_then_only_the_actions(case):
    agent, params, *_ = case
    batch = tiny.batch(agent, B, T)
    batch["is_first"][:] = False
    predict = jax.jit(
        lambda batch: open_loop(agent, params, batch, 2, jax.random.key(3))["observation"]
    )
    base = predict(batch)
    assert base.shape == (B, T, 3)
    later = jax.tree.map(np.copy, batch)
    later["observation"]["observation"][:, 3:] += 1  # rows 3 and on are steps 2 and on
    np.testing.assert_array_equal(predict(later), base)
    earlier = jax.tree.map(np.copy, batch)
    earlier["observation"]["observation"][:, 2] += 1000  # enough to change some class
    assert np.any(predict(earlier)[:, 1:] != base[:, 1:])
    acted = jax.tree.map(np.copy, batch)
    acted["action"]["action"][:, 4] += 1  # leads to step 4
    changed = np.any(predict(acted) != base, axis=(0, 2))
    np.testing.assert_array_equal(changed, [False, False, False, False, True])


def test_world_model_learns_from_the_latents_it_is_given_first():
    """The stored latent of the context step starts the sequence; a first step forgets it."""
    agent = tiny.default()
    batch = tiny.batch(agent, B, T)
    start, previous, steps = learning.split_batch(agent, batch)
    np.testing.assert_array_equal(start["deter"], batch["latent"]["deter"][:, 0])
    np.testing.assert_array_equal(start["stoch"].argmax(-1), batch["latent"]["stoch"][:, 0])
    np.testing.assert_array_equal(previous.argmax(-1), batch["action"]["action"][:, :-1])
    np.testing.assert_array_equal(steps["reward"], batch["reward"][:, 1:])


def test_both_gradients_of_the_posterior_loop_are_the_same(case):
    agent, params, tokens, previous, is_first, noise = case

    def total(unroll, rssm, tokens):
        model = dataclasses.replace(agent.model, unroll=unroll)
        start = jax.tree.map(lambda x: x + 0.5, model.rssm.initial(B))
        inputs = tokens, previous, is_first, noise
        outputs = models.observe(model, {"rssm": rssm}, start, *inputs)
        return sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves(outputs))

    gradients = [
        jax.jit(jax.grad(partial(total, unroll), (0, 1)))(params["rssm"], tokens)
        for unroll in (recurrence, scan)
    ]
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), *gradients)
