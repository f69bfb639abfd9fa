"""Encoder, RSSM, decoder and heads on every kind of observation and action."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dm_env import specs

from dreamer.config.agent import AgentConfig, EncoderConfig
from dreamer.errors import UserError
from dreamer.nets import rssm, spaces
from dreamer.nets.encoder import Encoder
from tests import tiny

MIXED = {
    "camera": specs.BoundedArray((48, 64, 3), np.uint8, 0, 255),
    "depth": specs.BoundedArray((48, 64, 1), np.uint8, 0, 255),
    "height": specs.Array((), np.float32),
    "joints": specs.Array((2, 3), np.float32),
    "inventory": specs.BoundedArray((4,), np.int32, 0, 4),
    "flag": specs.DiscreteArray(2, np.int32),
}


def test_mixed_observations_through_encoder_and_decoder():
    agent = tiny.agent(MIXED, tiny.DISCRETE)
    params = tiny.state(agent).params
    observation = tiny.batch(agent, 2, 3)["observation"]
    token = agent.model.encoder.apply(params["encoder"], observation)
    assert token.shape == (2, 4, 16 + 3 * 4 * 16)
    latent = jax.tree.map(lambda x: jnp.zeros((2, 4, *x.shape[1:])), agent.model.rssm.initial(1))
    predictions = agent.model.decoder.apply(params["decoder"], latent)
    shapes = {key: value.shape[2:] for key, value in predictions.items()}
    expected = {key: spec.shape for key, spec in MIXED.items()} | {
        "inventory": (4, 5),
        "flag": (2,),
    }
    assert shapes == expected
    assert 0 <= predictions["camera"].min() <= predictions["camera"].max() <= 1


def test_encoder_does_not_depend_on_the_order_of_keys():
    first = tiny.agent({"a": MIXED["height"], "b": MIXED["flag"]}, tiny.DISCRETE)
    second = tiny.agent({"b": MIXED["flag"], "a": MIXED["height"]}, tiny.DISCRETE)
    params = tiny.state(first).params["encoder"]
    observation = {"a": jnp.ones((1,)), "b": jnp.ones((1,), jnp.int32)}
    np.testing.assert_array_equal(
        first.model.encoder.apply(params, observation),
        second.model.encoder.apply(params, observation),
    )


def test_vectors_are_squashed_by_symlog_before_the_network():
    encoder = Encoder(
        EncoderConfig(layers=1), (("x", specs.Array((1,), np.float32)),), 4, 4, jnp.float32
    )
    params = encoder.init(jax.random.key(0), {"x": jnp.ones((1, 1))})
    params = jax.tree.map(jnp.ones_like, params)
    hidden = np.log1p(1e6) * np.ones(4) + 1
    normed = hidden / np.sqrt((hidden**2).mean() + 1e-4)
    np.testing.assert_allclose(
        encoder.apply(params, {"x": jnp.full((1, 1), 1e6)})[0],
        normed / (1 + np.exp(-normed)),
        rtol=1e-5,
    )


MULTS = (2, 3, 4, 4)


@pytest.mark.parametrize(
    ("size", "mults", "smallest"),
    [
        ((64, 64), MULTS, (4, 4)),
        ((96, 96), MULTS, (6, 6)),
        ((48, 256), MULTS, (3, 16)),
        ((32, 64), (3, 4, 4), (4, 8)),
        ((7, 7), (4,), (4, 4)),
        ((1, 2), (4,), (1, 1)),
        ((84, 84), MULTS, (6, 6)),
        ((210, 160), MULTS, (14, 10)),
        ((512, 512), (2, 2, *MULTS[1:]), (16, 16)),
        ((8, 300), (4,), (4, 150)),
    ],
)
def test_stages_follow_the_size(size, mults, smallest):
    used, sizes = spaces.stages(size, MULTS)
    assert used == mults
    assert sizes[0] == size
    assert sizes[-1] == smallest
    assert len(sizes) == len(used) + 1


@pytest.mark.parametrize("sizes", [[(7, 7)], [(16, 16), (9, 30)]])
def test_images_of_any_size_come_back_in_their_size(sizes):
    shapes = {f"image{i}": (*size, 1 + i) for i, size in enumerate(sizes)}
    observations = {key: specs.BoundedArray(s, np.uint8, 0, 255) for key, s in shapes.items()}
    observations["more"] = specs.BoundedArray((*sizes[0], 2), np.uint8, 0, 255)
    agent = tiny.agent(observations, tiny.DISCRETE)
    params = tiny.state(agent).params
    images = {
        key: jnp.full((2, 3, *spec.shape), 9, jnp.uint8) for key, spec in observations.items()
    }
    token = agent.model.encoder.apply(params["encoder"], images)
    assert token.shape[:2] == (2, 3)
    names = [name for name in params["encoder"]["params"] if name.endswith("conv0")]
    assert len(names) == len(sizes)
    latent = jax.tree.map(lambda x: x[:, None], agent.model.rssm.initial(2))
    decoded = agent.model.decoder.apply(params["decoder"], latent)
    assert {key: x.shape[2:] for key, x in decoded.items()} == {
        key: spec.shape for key, spec in observations.items()
    }


def test_every_pixel_of_an_odd_image_counts():
    agent = tiny.agent({"image": specs.BoundedArray((9, 7, 1), np.uint8, 0, 255)}, tiny.DISCRETE)
    params = tiny.state(agent).params["encoder"]
    blank = np.full((63, 9, 7, 1), 100, np.uint8)
    dotted = blank.copy()
    dotted.reshape(63, 63)[np.arange(63), np.arange(63)] = 255
    tokens = [agent.model.encoder.apply(params, {"image": x}) for x in (blank, dotted)]
    assert (np.abs(tokens[1] - tokens[0]).max(-1) > 1e-6).all()


def test_unsupported_observations_are_named():
    with pytest.raises(UserError, match=r"'voxels' of shape \(2, 2, 2, 2\)"):
        spaces.check_observations({"voxels": specs.Array((2, 2, 2, 2), np.float32)})
    with pytest.raises(UserError, match="no observations"):
        spaces.check_observations({})
    with pytest.raises(UserError, match="no observations"):
        spaces.check_observations({"action_mask": specs.BoundedArray((3,), bool, 0, 1)})


TWO = {
    "near": specs.Array((3,), np.float32),
    "far": specs.Array((2,), np.float32),
    "clock": specs.Array((), np.float32),
}


def test_keys_are_chosen_for_either_side():
    agent = tiny.agent(
        TWO, tiny.DISCRETE, encoder={"keys": "near|clock"}, decoder={"keys": "n.*|far"}
    )
    assert [key for key, _ in agent.model.encoder.observations] == ["near", "clock"]
    assert [key for key, _ in agent.model.decoder.observations] == ["near", "far"]
    assert list(agent.observations) == list(TWO)
    alone = tiny.agent(TWO, tiny.DISCRETE, encoder={"keys": "near"}, decoder={"keys": "near"})
    assert list(alone.observations) == ["near"]


@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_keys_that_are_not_there_are_refused(side):
    message = rf"agent.{side}.keys=nea matches no observation; there are near, far, clock"
    with pytest.raises(UserError, match=message):
        tiny.agent(TWO, tiny.DISCRETE, **{side: {"keys": "nea"}})
    with pytest.raises(UserError, match=rf"agent.{side}.keys=\(: invalid regular expression"):
        tiny.agent(TWO, tiny.DISCRETE, **{side: {"keys": "("}})


def test_pack_and_unpack_are_inverse():
    config = tiny.agent(tiny.VECTOR, tiny.DISCRETE).config.rssm
    stoch = jax.nn.one_hot(jnp.array([[0, 3], [1, 2]]), config.classes)
    latent = {"deter": jnp.ones((2, config.deter)), "stoch": stoch}
    stored = rssm.pack(config, latent)
    assert stored["stoch"].dtype == jnp.uint8
    assert stored["stoch"].shape == (2, 2)
    back = rssm.unpack(config, stored, jnp.float32)
    jax.tree.map(np.testing.assert_array_equal, dict(back), latent)


def test_actions_beyond_one_are_scaled_down():
    agent = tiny.agent(tiny.VECTOR, tiny.CONTINUOUS)
    params = tiny.state(agent).params["rssm"]
    feat = rssm.feature(agent.model.rssm.initial(1))

    def core(action):
        part = agent.model.rssm.apply(params, action, method="action_part")
        return agent.model.rssm.apply(params, feat, part, method="core")

    np.testing.assert_allclose(
        core(jnp.array([[5.0, -3.0]])), core(jnp.array([[1.0, -1.0]])), rtol=1e-6
    )
    assert np.any(core(jnp.array([[0.5, -1.0]])) != core(jnp.array([[1.0, -1.0]])))


def test_heads_start_as_published():
    agent = tiny.agent(tiny.VECTOR, tiny.CONTINUOUS)
    params = tiny.state(agent).params
    feat = jax.random.normal(jax.random.key(0), (5, tiny.feature_size(agent)))
    assert not np.any(agent.model.predict_reward(params, feat))
    assert not np.any(agent.behavior.predict_value(params["critic"], feat))
    policy = agent.behavior.actor.policy(agent.behavior.actor.apply(params["actor"], feat), {})[
        "action"
    ]
    np.testing.assert_allclose(policy.distribution.stddev(), 0.8927, atol=0.01)
    np.testing.assert_allclose(policy.distribution.mean(), 0.0, atol=0.05)


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_weights():
    agent = tiny.agent(tiny.VECTOR, tiny.DISCRETE, compute_dtype="bfloat16")
    state = tiny.state(agent)
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    assert {x.dtype for x in agent.model.rssm.initial(2).values()} == {jnp.dtype("bfloat16")}
    token = agent.model.encoder.apply(state.params["encoder"], {"observation": jnp.ones((1, 3))})
    assert token.dtype == jnp.bfloat16


def test_config_refuses_sizes_that_do_not_divide():
    with pytest.raises(ValueError, match="divisible by blocks"):
        AgentConfig.model_validate({"rssm": {"deter": 30, "blocks": 8}})
