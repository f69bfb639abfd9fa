"""Probe environments with known values: what the agent must predict and do after a few updates.

An episode is a first step and a last one, or three steps for `delayed`. Actions are random, so the
value is a mixture: of the imagined policy, and (by the replay critic loss) of random actions.
"""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer.agents.dreamer import learning
from dreamer.agents.dreamer import world_model as models
from dreamer.nets.rssm import feature
from tests import tiny

B, T, UPDATES = 8, 12, 250
GAMMA = 1 - 1 / 333


@cache
def compiled(actions, gradient):
    agent = tiny.agent(
        tiny.VECTOR,
        {"discrete": tiny.DISCRETE, "continuous": tiny.CONTINUOUS}[actions],
        actor={"gradient": gradient, "entropy": 1e-3},
        optimizer={"learning_rate": 3e-3, "warmup": 20},
        returns={"imagination": 3},
    )
    return agent, jax.jit(partial(learning.train_step, agent))


def episodes(probe, actions, rng):
    """Whole episodes under random actions, leaves [B, T + 1, ...]; row 0 is a last step."""
    length = 3 if probe == "delayed" else 2
    agent, _ = compiled(actions, "analytic" if actions == "continuous" else "reinforce")
    rows = jax.tree.map(np.copy, tiny.batch(agent, B, T))
    phase = (np.arange(T + 1) - 1) % length
    rows["is_first"][:] = phase == 0
    rows["is_last"][:] = rows["is_terminal"][:] = phase == length - 1
    signs = rng.choice([-1.0, 1.0], (B, T + 1)).astype(np.float32)
    signs = np.where(phase == 0, signs, np.roll(signs, 1, 1))
    if probe in ("constant", "delayed"):
        signs[:] = 1
    rows["observation"]["observation"][:] = signs[..., None]
    if actions == "discrete":
        action = rows["action"]["action"] = rng.integers(0, 3, (B, T + 1)).astype(np.int32)
        good = (action == 1) * 1.0
    else:
        action = rows["action"]["action"] = rng.uniform(-1, 1, (B, T + 1, 2)).astype(np.float32)
        good = action[..., 0]
    earlier = {
        "constant": np.ones((B, T + 1)),
        "observation": signs,
        "delayed": np.broadcast_to((phase == 1) * 1.0, (B, T + 1)),
        "action": good,
        "both": good * signs,
    }[probe]
    rows["reward"][:] = np.where(phase == 0, 0.0, np.roll(earlier, 1, 1))
    return rows


@cache
def trained(probe, actions, gradient="reinforce"):
    """The agent after learning, with what it thinks of fresh episodes."""
    agent, step = compiled(actions, gradient)
    rng, state = np.random.default_rng(0), tiny.state(agent)
    for _ in range(UPDATES):
        state, _, metrics = step(state, episodes(probe, actions, rng), jax.random.key(1))
    rows = episodes(probe, actions, rng)
    start, previous, steps = learning.split_batch(agent, rows)
    model, params = agent.model, state.params
    tokens = model.encoder.apply(params["encoder"], steps["observation"])
    latents, _ = models.observe(model, params, start, tokens, previous, steps["is_first"], None)
    feat = feature(latents)
    return {
        "metrics": metrics,
        "first": steps["is_first"],
        "last": steps["is_last"],
        "reward": steps["reward"],
        "observation": steps["observation"]["observation"][..., 0],
        "predicted_reward": model.predict_reward(params, feat),
        "predicted_cont": model.predict_cont(params, feat),
        "value": agent.behavior.predict_value(params["critic"], feat),
        "action": agent.behavior.act(params, latents, {}, None)["action"],
    }


@pytest.mark.slow
def test_constant_reward_is_the_value_of_the_first_step():
    seen = trained("constant", "discrete")
    np.testing.assert_allclose(seen["predicted_reward"], seen["reward"], atol=0.1)
    np.testing.assert_allclose(seen["value"][seen["first"]], 1.0, atol=0.15)
    np.testing.assert_allclose(seen["predicted_cont"][seen["last"]], 0.0, atol=0.1)
    np.testing.assert_allclose(seen["predicted_cont"][seen["first"]], GAMMA, atol=0.05)


def test_value_depends_on_the_observation():
    seen = trained("observation", "discrete")
    first = seen["first"]
    np.testing.assert_allclose(seen["value"][first], seen["observation"][first], atol=0.25)


@pytest.mark.slow
def test_delayed_reward_is_discounted_back():
    seen = trained("delayed", "discrete")
    first = np.asarray(seen["first"])
    middle = ~first & ~np.asarray(seen["last"])
    np.testing.assert_allclose(seen["value"][middle], 1.0, atol=0.2)
    np.testing.assert_allclose(seen["value"][first], GAMMA, atol=0.25)


@pytest.mark.slow
@pytest.mark.parametrize(
    "gradient", ["reinforce", pytest.param("analytic", marks=pytest.mark.slow)]
)
def test_the_better_discrete_action_is_found(gradient):
    seen = trained("action", "discrete", gradient)
    assert np.mean(np.argmax(seen["action"][seen["first"]], -1) == 1) > 0.95
    assert np.mean(seen["value"][seen["first"]]) > 0.45  # random actions give 1/3


def test_the_better_continuous_action_is_found():
    seen = trained("action", "continuous", "analytic")
    assert np.mean(seen["action"][seen["first"]][..., 0]) > 0.6


def test_the_action_depends_on_the_observation():
    seen = trained("both", "discrete", "reinforce")
    first = np.asarray(seen["first"])
    chosen, sign = seen["action"][first][:, 1], seen["observation"][first]
    assert np.mean(chosen[sign > 0]) - np.mean(chosen[sign < 0]) > 0.6
    assert jnp.isfinite(seen["metrics"]["loss/total"])
