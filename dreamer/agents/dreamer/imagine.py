"""Imagined rollouts for inspection."""

import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
from jax import Array

from dreamer.agents.dreamer import behavior as behaviors
from dreamer.agents.dreamer import world_model as models
from dreamer.agents.dreamer.parts import Carry, Parts, environment_action
from dreamer.agents.dreamer.world_model import Actions, Params
from dreamer.nets import spaces
from dreamer.nets.rssm import Latent, feature
from dreamer.ops import transforms


def imagine(
    agent: Parts, params: Params, carry: Carry, horizon: int, key: Array, greedy: bool, decode: bool
) -> dict[str, Any]:
    """Imagines the steps that follow a step of the policy, starting with its last action.

    Args:
      agent: networks.
      params: all of their parameters.
      carry: of the policy, leaves [N, ...].
      horizon: steps H.
      key: random key.
      greedy: modes of the policy instead of samples; latents are sampled either way.
      decode: whether to decode observations.

    Returns:
      actions as environments take them, rewards and continuation [H, N], values [H + 1, N], and
      observations [H + 1, N, ...], {} unless decoded.
    """
    chex.assert_rank(carry.action, 2)
    chex.assert_shape(key, ())
    model, behavior = agent.model, agent.behavior
    latent_key, action_key = jax.random.split(key)
    batch = (horizon, carry.action.shape[0])
    noise = model.rssm.noise(latent_key, batch)
    action_noise = None if greedy else behavior.actor.noise(action_key, batch)

    def step(state: tuple[Latent, Actions], noise: tuple[Array, models.Noise]) -> tuple:
        latent, action = state
        vector = behaviors.concat_actions(behavior, action)
        following = models.imagine_step(model, params, latent, vector, noise[0])
        masks = model.predict_masks(params, feature(following))
        chosen = behavior.act(params, following, masks, noise[1])
        return (following, chosen), (following, action)

    start = dict(carry.latent), model_actions(agent, carry.action)
    collected: Any
    _, collected = jax.lax.scan(step, start, (noise, action_noise))
    latents, actions = collected
    states = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), start[0], dict(latents))
    feat = feature(states)
    return {
        "actions": environment_action(agent, actions),
        "rewards": model.predict_reward(params, feat[1:]),
        "continuation": model.predict_cont(params, feat[1:]),
        "values": behavior.predict_value(params["critic"], feat),
        "observations": observations_of(agent, params, states) if decode else {},
    }


def model_actions(agent: Parts, vector: Array) -> dict[str, Array]:
    """The inverse of `spaces.embed_action`: [N, A] to float32 [N, *shape(, classes)] by key."""
    chex.assert_rank(vector, 2)
    found, start = {}, 0
    for key, spec in sorted(agent.actions.items()):
        classes = (spaces.classes(spec),) if spaces.kind(spec) == "discrete" else ()
        shape = (*spec.shape, *classes)
        end = start + math.prod(shape)
        found[key] = vector[:, start:end].reshape(-1, *shape).astype(jnp.float32)
        start = end
    return found


def observations_of(agent: Parts, params: Params, latents: Latent) -> dict[str, Array]:
    """Decoded observations of latents [..., D], in the units of the environment."""

    def one(spec: spaces.Spec, x: Array) -> Array:
        if spaces.kind(spec) == "image":
            return jnp.rint(255 * x).astype(jnp.uint8)
        if spaces.kind(spec) == "discrete":
            return x.argmax(-1).astype(spec.dtype)
        return transforms.symexp(x).astype(spec.dtype)

    decoded = agent.model.decoder.apply(params["decoder"], latents)
    return {key: one(spec, decoded[key]) for key, spec in agent.model.decoder.observations}
