"""Action masks: what is invalid is never done, neither in the world nor in imagination."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dm_env import specs

from dreamer.agents.dreamer import behavior as behaviors
from dreamer.agents.dreamer import learning, parts
from dreamer.agents.dreamer import world_model as models
from dreamer.agents.dreamer.dreamer import Dreamer
from dreamer.errors import UserError
from dreamer.nets.rssm import feature
from tests import tiny
from tests.agents.dreamer.test_behavior import reached_by

ACTIONS = {
    "action": specs.DiscreteArray(3, np.int32, "action"),
    "pair": specs.BoundedArray((2,), np.int32, 0, 3, "pair"),
    "push": specs.BoundedArray((1,), np.float32, -1, 1, "push"),
}
MASKS = {
    "action_mask": specs.BoundedArray((3,), bool, False, True, "action_mask"),
    "action_mask_pair": specs.BoundedArray((2, 4), bool, False, True, "action_mask_pair"),
}


@cache
def masked() -> Dreamer:
    return tiny.agent(tiny.VECTOR | MASKS, ACTIONS)


def rows(batch_size: int, length: int, seed: int = 0) -> dict:
    """Replay rows whose masks are random, with at least one valid class each."""
    batch, rng = tiny.batch(masked(), batch_size, length, seed), np.random.default_rng(seed)
    for key, spec in MASKS.items():
        valid = rng.random((batch_size, length + 1, *spec.shape)) < 0.4
        valid[..., 1] |= ~valid.any(-1)
        batch["observation"][key] = valid
    return batch


@pytest.mark.parametrize("greedy", [False, True])
def test_no_invalid_action_is_taken(greedy: bool) -> None:
    agent = masked()
    params = tiny.state(agent, learned=True).params
    carry = parts.initial_carry(agent, 200)
    seen = jax.tree.map(lambda x: x[:, 0], rows(200, 2)["observation"])
    act = jax.jit(partial(agent.act, greedy=greedy))
    taken = set()
    for step in range(5):
        first = np.full(200, step == 0)
        carry, action, _ = act(params, carry, seen, first, jax.random.key(step))
        taken |= set(np.asarray(action["action"]).tolist())
        for key, mask in (("action", "action_mask"), ("pair", "action_mask_pair")):
            chosen = np.take_along_axis(seen[mask], np.asarray(action[key])[..., None], -1)
            assert chosen.all()
    assert taken == {0, 1, 2}


def test_imagined_actions_follow_the_predicted_masks() -> None:
    agent, batch = masked(), rows(4, 6)
    params = tiny.state(agent, learned=True).params
    draws = learning.draw_noise(agent, jax.random.key(0), 4, 6, 0)
    starts = jax.tree.map(lambda x: x[:, 0], batch["latent"])
    starts = parts.rssm.unpack(agent.config.rssm, starts, agent.dtype)
    starts = jax.tree.map(lambda x: jnp.repeat(x, 6, 0), starts)
    imagined = behaviors.rollout(
        agent.behavior, agent.model, params, starts, draws.prior, draws.policy
    )
    assert imagined.masks.keys() == {"action", "pair"}
    for key, valid in imagined.masks.items():
        predicted = agent.model.mask.apply(params["mask"], imagined.feat[:-1])[key] > 0
        assert np.mean(np.asarray(predicted == valid)) > 0.999  # but for rounding
        valid = valid | ~valid.any(-1, keepdims=True)
        assert not valid.all()
        assert (imagined.action[key] <= valid).all()
    loss, metrics = behaviors.actor_loss(agent.behavior, params, imagined, jnp.ones(()))
    assert np.isfinite(loss).all()
    assert metrics["entropy/action"] < np.log(3)


def test_the_loss_of_masks_is_a_cross_entropy_where_an_action_is_taken() -> None:
    agent, batch = masked(), rows(2, 3)
    params = tiny.state(agent, learned=True).params
    feat = jax.random.normal(jax.random.key(0), (2, 4, tiny.feature_size(agent)))
    batch["is_last"] = np.array([[0, 0, 1, 0], [0, 1, 0, 0]], bool)
    found = models.mask_loss(agent.model, params, feat, batch)
    logits = agent.model.mask.apply(params["mask"], feat)
    expected = np.zeros((2, 4))
    for key, x in logits.items():
        valid = batch["observation"]["action_mask" if key == "action" else "action_mask_pair"]
        p = 1 / (1 + np.exp(-np.asarray(x)))
        entries = -np.where(valid, np.log(p), np.log(1 - p))
        expected += entries.reshape(2, 4, -1).sum(-1)
    np.testing.assert_allclose(found, np.where(batch["is_last"], 0, expected), rtol=1e-4)


def test_which_weights_learn_from_what() -> None:
    found = reached_by(masked(), rows(2, 4))
    assert found["mask"] == {"encoder", "rssm", "mask"}
    assert found["actor"] == {"actor"}


@pytest.mark.slow
def test_the_best_valid_action_is_found() -> None:
    """Class 2 is worth 1 and class 1 is worth 0.5, but 2 is invalid where the observation is -1."""
    agent = tiny.agent(
        tiny.VECTOR | {"action_mask": MASKS["action_mask"]},
        tiny.DISCRETE,
        actor={"entropy": 1e-3},
        optimizer={"learning_rate": 3e-3, "warmup": 20},
        returns={"imagination": 3},
    )
    step, rng = jax.jit(partial(learning.train_step, agent)), np.random.default_rng(0)

    def episodes() -> dict:
        batch = tiny.batch(agent, 8, 12)
        phase = (np.arange(13) - 1) % 2
        batch["is_first"][:] = phase == 0
        batch["is_last"][:] = batch["is_terminal"][:] = phase == 1
        sign = np.where(phase == 0, rng.choice([-1.0, 1.0], (8, 13)), 0.0)
        batch["observation"]["observation"][:] = sign[..., None]
        valid = np.ones((8, 13, 3), bool)
        valid[..., 2] = sign >= 0
        batch["observation"]["action_mask"] = valid
        action = np.where(sign < 0, rng.integers(0, 2, (8, 13)), rng.integers(0, 3, (8, 13)))
        batch["action"]["action"] = action.astype(np.int32)
        reward = np.array([0.0, 0.5, 1.0])[action]
        batch["reward"][:] = np.where(phase == 0, 0.0, np.roll(reward, 1, 1))
        return batch

    state = tiny.state(agent)
    for _ in range(300):
        state, _, metrics = step(state, episodes(), jax.random.key(1))
    assert metrics["loss/mask"] < 0.1
    signs = np.repeat([[-1.0], [1.0]], 50, 0)
    valid = np.ones((100, 3), bool)
    valid[:50, 2] = False
    seen = {
        "observation": np.repeat(signs, 3, 1).astype(np.float32),
        "action_mask": valid,
    }
    carry, first = parts.initial_carry(agent, 100), np.ones(100, bool)
    carry, action, _ = agent.act(state.params, carry, seen, first, jax.random.key(2), greedy=True)
    assert np.mean(action["action"][:50] == 1) > 0.95
    assert np.mean(action["action"][50:] == 2) > 0.95
    predicted = agent.model.predict_masks(state.params, feature(carry.latent))["action"]
    assert np.mean(np.asarray(predicted == valid)) > 0.95


@pytest.mark.parametrize(
    ("observations", "actions", "message"),
    [
        (
            {"action_mask": specs.BoundedArray((4,), bool, False, True)},
            tiny.DISCRETE,
            r"'action_mask' of shape \(4,\) and dtype bool is the mask of action 'action', for "
            r"which is expected: booleans of shape \(3,\)",
        ),
        (
            {"action_mask": specs.Array((3,), np.float32)},
            tiny.DISCRETE,
            r"'action_mask' of shape \(3,\) and dtype float32 is the mask",
        ),
        (
            {"action_mask": MASKS["action_mask"]},
            tiny.CONTINUOUS,
            "is expected: none, it is continuous",
        ),
        (
            {"action_mask_jump": MASKS["action_mask"]},
            ACTIONS,
            "'action_mask_jump' is a mask of no action; the actions are action, pair, push, whose "
            "masks are named action_mask, action_mask_pair, action_mask_push",
        ),
    ],
)
def test_a_mask_that_fits_no_action_is_refused(
    observations: dict, actions: dict, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        tiny.agent(tiny.VECTOR | observations, actions)
