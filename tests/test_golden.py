"""The whole agent against the reference implementation: forward tensors, losses, gradients and
three updates.

If a change of the algorithm is intended, say so in the changelog: these numbers come from the
  published code and are not
regenerated here.
"""

from functools import partial

import jax
import numpy as np
import pytest

from dreamer.agents.dreamer import learning, parts
from dreamer.agents.dreamer import world_model as models
from dreamer.nets.rssm import feature
from dreamer.ops import transforms
from tests import golden_names as names

LOSSES = {
    "rew": "reward",
    "con": "cont",
    "dyn": "dynamics",
    "rep": "representation",
    "policy": "actor",
    "value": "critic",
    "repval": "replay_critic",
}
METRICS = {
    "dyn_ent": "prior_entropy",
    "rep_ent": "posterior_entropy",
    "adv": "advantage",
    "adv_std": "advantage_std",
    "adv_mag": "advantage_abs",
    "ent/action": "entropy/action",
    "con": "imagined_cont",
}


@pytest.fixture(scope="module", params=["vector_continuous", "image_discrete"])
def golden(request):
    agent, data, batch, state = names.load(request.param)
    with jax.default_matmul_precision("highest"):
        objective = partial(learning.loss, agent)
        args = (state.params, state.slow_critic, state.percentiles, batch, learning.Draws())
        (total, aux), gradients = jax.jit(
            lambda *args: jax.value_and_grad(
                lambda p: objective(p, *args[1:], learning.Draws()), has_aux=True
            )(args[0])
        )(*args[:-1])
    return agent, data, batch, state, total, aux, gradients


def close(ours, theirs, tolerance=1e-4):
    np.testing.assert_allclose(
        ours, theirs, rtol=tolerance, atol=tolerance * max(1e-3, np.abs(theirs).max())
    )


def test_every_weight_has_a_place(golden):
    agent, data, _, state, *_ = golden
    fresh = jax.eval_shape(partial(parts.init_params, agent), jax.random.key(0))
    shapes = {
        key: value.shape
        for key, value in names.flatten(jax.tree.map(lambda x: np.zeros(x.shape), fresh)).items()
    }
    theirs = {key: value.shape for key, value in names.flatten(state.params).items()}
    assert shapes == theirs


def test_time_alignment(golden):
    agent, data, batch, *_ = golden
    start, previous, steps = learning.split_batch(agent, batch)
    used = names.part(data, "prevact_used")["action"]
    if used.ndim == 2:
        used = np.eye(6)[used] * ~data["obs_used/is_first"][..., None]
        previous = previous * ~steps["is_first"][..., None]
    else:
        previous = previous * ~steps["is_first"][..., None]
    np.testing.assert_array_equal(previous, used * ~steps["is_first"][..., None])
    np.testing.assert_array_equal(start["stoch"], data["carry_used/dyn/stoch"])
    for key in ("is_first", "is_last", "is_terminal", "reward"):
        np.testing.assert_array_equal(steps[key], data[f"obs_used/{key}"])


def test_forward(golden):
    agent, data, batch, state, _, aux, _ = golden
    model, behavior, params = agent.model, agent.behavior, state.params
    start, previous, steps = learning.split_batch(agent, batch)
    theirs = names.part(data, "forward")

    @jax.jit
    def forward(params):
        tokens = model.encoder.apply(params["encoder"], steps["observation"])
        latents, stats = models.observe(
            model, params, start, tokens, previous, steps["is_first"], None
        )
        feat = feature(latents)
        prior = model.rssm.apply(params["rssm"], latents["deter"], method="prior")
        reward_logits = model.reward.apply(params["reward"], feat)
        ours = {
            "tokens": tokens,
            "deter": latents["deter"],
            "stoch": latents["stoch"],
            "post_logit": stats,
            "prior_logit": prior,
            "rew_logits": reward_logits,
            "rew_pred": transforms.two_hot_mean(reward_logits, model.reward_bins),
            "con_prob": model.predict_cont(params, feat),
            "val_pred": behavior.predict_value(params["critic"], feat),
            "slowval_pred": behavior.predict_value(state.slow_critic, feat),
        }
        ours |= {
            f"recon/{k}": v for k, v in model.decoder.apply(params["decoder"], latents).items()
        }
        outputs = behavior.actor.apply(params["actor"], feat)
        policy = behavior.actor.policy(outputs, {})["action"]
        ours["policy_entropy/action"] = policy.entropy()
        if "policy_mean/action" in theirs:
            ours["policy_mean/action"] = policy.distribution.mean()
            ours["policy_std/action"] = policy.distribution.stddev()
        else:
            ours["policy_logits/action"] = outputs["action"]
        return ours

    with jax.default_matmul_precision("highest"):
        ours = forward(params)
    assert set(ours) == set(theirs)
    for key, value in theirs.items():
        close(ours[key], value)


def test_losses_and_metrics(golden):
    _, data, _, _, total, aux, _ = golden
    _, _, terms, metrics = aux
    theirs = names.part(data, "loss")
    close(total, theirs.pop("total"))
    assert {LOSSES.get(key, f"observation/{key}") for key in theirs} == set(terms)
    for key, value in theirs.items():
        close(terms[LOSSES.get(key, f"observation/{key}")], value)
    for key, ours in METRICS.items():
        close(metrics[ours], data[f"metric/{key}"])


def test_gradients(golden):
    _, data, _, _, _, _, gradients = golden
    ours, theirs = names.flatten(gradients), names.weights(data, "grad")
    assert set(ours) == set(theirs)
    for key, value in theirs.items():
        assert np.linalg.norm(ours[key] - value) <= 1e-3 * np.linalg.norm(value) + 1e-6, key


def test_three_updates(golden):
    agent, data, batch, state, *_ = golden
    update = jax.jit(lambda state: learning.update(agent, state, batch, learning.Draws()))
    with jax.default_matmul_precision("highest"):
        for step in (1, 2, 3):
            state, _, metrics = update(state)
            close(metrics["loss/total"], data[f"step{step}/loss"])
            close(metrics["optimizer/gradient_norm"], data[f"step{step}/grad_norm"], 1e-3)
    close(state.percentiles.low, data["after3/retnorm/lo/value"])
    close(state.percentiles.high, data["after3/retnorm/hi/value"])
    before, after = names.weights(data, "params"), names.weights(data, "after3")
    ours = names.flatten(state.params) | names.flatten({"slow_critic": state.slow_critic})
    gradients = names.weights(data, "grad")
    assert set(ours) == set(after)
    for key, value in after.items():
        # The optimiser divides by the size of the gradient, so entries of rounding noise are left
        # out.
        gradient = np.abs(gradients[key.replace("slow_critic", "critic")])
        clear = gradient > 1e-3 * gradient.max()
        change, expected = (ours[key] - before[key])[clear], (value - before[key])[clear]
        # One rounding of a weight in float32 is as large as some changes.
        np.testing.assert_allclose(
            change, expected, rtol=2e-2, atol=2 * np.finfo(np.float32).eps, err_msg=key
        )


@pytest.mark.parametrize(
    "name", ["vector_continuous", pytest.param("image_discrete", marks=pytest.mark.slow)]
)
def test_bfloat16_stays_near(name):
    """What accelerators compute in: losses to 2%, gradients of every network in direction."""
    agent, data, batch, state = names.load(name, "bfloat16")

    @jax.jit
    def learn(params):
        args = (state.slow_critic, state.percentiles, batch, learning.Draws())
        objective = partial(learning.loss, agent)
        return jax.value_and_grad(lambda p: objective(p, *args), has_aux=True)(params)

    (total, _), gradients = learn(state.params)
    close(total, data["loss/total"], 2e-2)
    ours, theirs = names.flatten(gradients), names.weights(data, "grad")
    for network in gradients:
        keys = [key for key in theirs if key.startswith(f"{network}/")]
        a, b = (np.concatenate([np.ravel(x[key]) for key in keys]) for x in (ours, theirs))
        lengths = np.linalg.norm(a), np.linalg.norm(b)
        assert a @ b > 0.85 * lengths[0] * lengths[1], network
        np.testing.assert_allclose(*lengths, rtol=0.1, err_msg=network)
