"""The joint update: noise that does not know of devices, the slow critic, acting and precision."""

from functools import cache, partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer.agents.dreamer import learning, parts
from dreamer.agents.dreamer import world_model as models
from dreamer.distributed import mesh
from tests import tiny

B, T = 4, 4


@cache
def learner(dtype="float32"):
    """An agent whose first update moves the weights, and its compiled update."""
    agent = tiny.agent(
        tiny.VECTOR,
        tiny.CONTINUOUS,
        compute_dtype=dtype,
        optimizer={"warmup": 0, "learning_rate": 1e-2},
    )
    return agent, jax.jit(partial(learning.train_step, agent))


def test_noise_of_a_sequence_does_not_depend_on_how_the_batch_is_split():
    agent = tiny.default()
    key = jax.random.key(0)
    whole = learning.draw_noise(agent, key, B, T, 0)
    parts = [learning.draw_noise(agent, key, 2, T, first) for first in (0, 2)]
    np.testing.assert_array_equal(
        whole.posterior, np.concatenate([part.posterior for part in parts])
    )
    np.testing.assert_array_equal(
        whole.prior, np.concatenate([part.prior for part in parts], axis=1)
    )
    np.testing.assert_array_equal(
        whole.policy["action"], np.concatenate([part.policy["action"] for part in parts], axis=1)
    )
    assert len(np.unique(whole.prior)) == whole.prior.size


def test_noise_differs_between_updates_and_only_between_them():
    agent, step = learner()
    state, batch = tiny.state(agent, learned=True), tiny.batch(agent, B, T)
    key = jax.random.key(0)
    first, again, later = (
        step(state.replace(updates=jnp.int32(number)), batch, key)[1]["stoch"]
        for number in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert np.any(first != later)


@pytest.mark.parametrize("count", [4])
def test_devices_together_make_the_update_of_one_device(count):
    """Tolerance: sums in another order; the optimiser divides by the size of each gradient."""
    agent, _ = learner()
    batch = jax.tree.map(lambda x: x[None], tiny.batch(agent, B, T))
    fresh = jax.device_get(tiny.state(agent, learned=True))
    results = {}
    for devices in (jax.local_devices()[:1], jax.local_devices()[:count]):
        update = mesh.compile_updates(partial(learning.train_step, agent), devices)
        state = mesh.replicate(fresh, devices)
        key = mesh.replicate(jax.random.key(0), devices)
        state, latents, metrics = update(state, mesh.split(batch, devices), key)
        copies = [[shard.data for shard in x.addressable_shards] for x in jax.tree.leaves(state)]
        for copy in copies:
            assert len(copy) == len(devices)
            for other in copy[1:]:
                np.testing.assert_array_equal(copy[0], other)
        results[len(devices)] = jax.device_get((state, mesh.join(latents), metrics))
    (one, one_latents, one_metrics), (many, latents, metrics) = results[1], results[count]
    np.testing.assert_array_equal(latents["stoch"], one_latents["stoch"])
    np.testing.assert_allclose(latents["deter"], one_latents["deter"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(many.percentiles, one.percentiles, rtol=1e-4)
    for name in ("loss/total", "optimizer/gradient_norm", "loss/actor", "loss/replay_critic"):
        np.testing.assert_allclose(metrics[name], one_metrics[name], rtol=1e-4, err_msg=name)
    change, expected = (
        np.concatenate(
            [np.ravel(x) for x in jax.tree.leaves(jax.tree.map(np.subtract, s, fresh.params))]
        )
        for s in (many.params, one.params)
    )
    assert np.linalg.norm(change - expected) < 1e-2 * np.linalg.norm(expected)


@pytest.mark.slow
def test_several_updates_in_a_call_equal_as_many_calls():
    agent, _ = learner()
    devices = jax.local_devices()[:1]
    batches = [tiny.batch(agent, B, T, seed) for seed in (0, 1)]
    fresh = jax.device_get(tiny.state(agent))
    key = mesh.replicate(jax.random.key(0), devices)
    update = mesh.compile_updates(partial(learning.train_step, agent), devices)

    def stacked(some):
        return mesh.split(jax.tree.map(lambda *x: np.stack(x), *some), devices)

    together, latents, _ = update(mesh.replicate(fresh, devices), stacked(batches), key)
    state = mesh.replicate(fresh, devices)
    for batch in batches:
        state, last, _ = update(state, stacked([batch]), key)
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), together.params, state.params
    )
    np.testing.assert_array_equal(latents["stoch"][:, 1:], last["stoch"])


def test_a_loop_is_the_same_on_cpu_where_it_is_none():
    def body(carry, x):
        return carry + x["a"], (carry * x["a"], {"b": x["a"]})

    inputs = {"a": jnp.arange(3.0)}
    jax.tree.map(
        np.testing.assert_array_equal,
        mesh.repeat(body, jnp.array(1.0), inputs, 3, jax.devices("cpu")),
        jax.lax.scan(body, jnp.array(1.0), inputs),
    )


def test_slow_critic_follows_the_new_critic():
    agent, step = learner()
    state = tiny.state(agent, learned=True)
    new, _, _ = step(state, tiny.batch(agent, B, T), jax.random.key(0))
    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7)
    expected = jax.tree.map(
        lambda a, b: 0.02 * a + 0.98 * b, new.params["critic"], state.slow_critic
    )
    jax.tree.map(close, new.slow_critic, expected)
    assert int(new.updates) == 1


def test_the_update_is_traced_once():
    """State, latents and metrics of one update are of the kinds that the next one expects."""
    agent, _ = learner()
    state = tiny.state(agent)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(state, batch, key):
        return learning.train_step(agent, state, batch, key)

    for seed in range(3):
        state, _, _ = step(state, tiny.batch(agent, B, T, seed), jax.random.key(0))
    assert int(state.updates) == 3


def test_acting_resets_where_an_episode_starts_and_is_greedy_when_asked():
    agent = tiny.default()
    params = tiny.state(agent, learned=True).params
    observation = {"observation": jnp.ones((2, 3))}
    fresh = parts.initial_carry(agent, 2)
    dirty = jax.tree.map(lambda x: x + 1, fresh)
    act = jax.jit(agent.act, static_argnums=5)

    def step(carry, first, seed, greedy=False):
        key = jax.random.key(seed)
        return act(params, carry, observation, jnp.array(first), key, greedy)

    _, action, latent = step(dirty, [True, False], 0)
    _, expected, expected_latent = step(fresh, [True, True], 0)
    np.testing.assert_array_equal(latent["deter"][0], expected_latent["deter"][0])
    assert np.any(latent["deter"][1] != expected_latent["deter"][1])
    assert action["action"].dtype == jnp.int32
    assert len({int(step(fresh, [True, True], seed)[1]["action"][0]) for seed in range(30)}) > 1
    carry, action, _ = step(fresh, [True, True], 0, greedy=True)
    policy = agent.behavior.act(params, carry.latent, {}, None)["action"]
    np.testing.assert_array_equal(action["action"], policy.argmax(-1))


def test_acting_and_training_see_the_same_latents():
    """What the policy computed step by step is what the update computes from the replayed rows."""
    agent = tiny.default("continuous", latent="gaussian")
    params = tiny.state(agent, learned=True).params
    rng, carry, rows = np.random.default_rng(0), parts.initial_carry(agent, 2), []
    act = jax.jit(agent.act, static_argnums=5)
    for t in range(4):
        observation = {"observation": rng.normal(size=(2, 3)).astype(np.float32)}
        first = np.array([t == 0, t in (0, 2)])
        carry, action, latent = act(params, carry, observation, first, jax.random.key(t), False)
        rows.append(
            {"observation": observation, "action": action, "latent": latent, "is_first": first}
        )
    batch = jax.tree.map(lambda *x: np.stack(x, 1), *rows)
    flags = np.zeros((2, 4), np.float32)
    batch |= {"reward": flags, "is_last": flags, "is_terminal": flags}
    start, previous, steps = learning.split_batch(agent, batch)
    stored = batch["latent"]
    model, rssm, first = agent.model, params["rssm"], steps["is_first"]
    tokens = model.encoder.apply(params["encoder"], steps["observation"])
    inputs = models.parts(model, rssm, tokens, previous, first)
    for t in range(3):
        before = start if t == 0 else jax.tree.map(lambda x, t=t: x[:, t], stored)
        now = [x[:, t] for x in (*inputs, first)]
        deter = models.observe_step(model, rssm, before, *now, None)["deter"]
        np.testing.assert_allclose(deter, stored["deter"][:, t + 1], rtol=1e-4, atol=1e-5)


def test_bfloat16_update_is_finite_and_near_float32():
    losses = {}
    for dtype in ("float32", "bfloat16"):
        agent, step = learner(dtype)
        state, batch = tiny.state(agent), tiny.batch(agent, B, T)
        state, latent, metrics = step(state, batch, jax.random.key(0))
        assert latent["deter"].dtype == dtype
        assert all(np.isfinite(x) for x in metrics.values())
        losses[dtype] = float(metrics["loss/total"])
    np.testing.assert_allclose(losses["bfloat16"], losses["float32"], rtol=0.03)


def test_bins_that_no_target_has_reached_stay_mirror_images_in_bfloat16():
    """The outermost are at 5e8 and count for nothing only because they cancel exactly. Gradients of
    logits rounded to bfloat16 would part them, and predictions be off by thousands."""
    agent, step = learner("bfloat16")
    state, batch = tiny.state(agent), tiny.batch(agent, B, T)
    for number in range(4):
        state, _, metrics = step(state, batch, jax.random.key(number))
    for head in ("reward", "critic"):
        kernel = np.asarray(state.params[head]["params"]["out"]["kernel"])
        assert np.abs(kernel).max() > 1e-3
        np.testing.assert_array_equal(kernel[:, :40], kernel[:, :-41:-1])
    assert abs(float(metrics["imagined_return"])) < 1


def test_no_random_key_is_used_twice():
    agent, _ = learner()
    batch, fresh = tiny.batch(agent, B, T), parts.initial_carry(agent, 2)
    observation, first = {"observation": jnp.ones((2, 3))}, jnp.ones(2, bool)

    def everything(key):
        keys = jax.random.split(key, 3)
        state = parts.init(agent, keys[0])
        agent.act(state.params, fresh, observation, first, keys[1], False)
        return learning.train_step(agent, state, batch, keys[2])[2]

    with jax.debug_key_reuse(True):
        jax.jit(everything).trace(jax.random.key(0)).lower()
