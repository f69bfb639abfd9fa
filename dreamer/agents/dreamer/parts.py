"""The networks and optimiser of Dreamer, its state, and one step of its policy."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, TypeVar

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax import Array
from jax.typing import DTypeLike

from dreamer.agents.dreamer import behavior as behaviors
from dreamer.agents.dreamer import world_model as models
from dreamer.agents.dreamer.behavior import Behavior
from dreamer.agents.dreamer.world_model import Params, WorldModel
from dreamer.config.agent import AgentConfig
from dreamer.config.section import INT32
from dreamer.errors import UserError
from dreamer.nets import forms, rssm, spaces
from dreamer.nets.decoder import Decoder
from dreamer.nets.encoder import Encoder
from dreamer.nets.heads import Actor, Head, MaskHead
from dreamer.nets.layers import compute_dtype
from dreamer.nets.rssm import Latent, feature
from dreamer.ops import normalize, optim, transforms
from dreamer.ops.normalize import Percentiles
from dreamer.ops.packing import Packing

Tree = TypeVar("Tree")


@dataclass(frozen=True)
class Parts:
    """Networks and settings, immutable; `State` and `Carry` hold what changes."""

    config: AgentConfig
    model: WorldModel
    behavior: Behavior
    observations: spaces.Specs  # encoded or decoded ones, and masks
    actions: spaces.Specs
    dtype: DTypeLike
    updates: int  # of the whole run

    def __repr__(self) -> str:
        return f"Dreamer(sees {', '.join(self.observations)}; acts {', '.join(self.actions)})"

    @cached_property
    def init(self) -> Any:
        """`init` of this agent, jitted."""
        return jax.jit(partial(init, self))


@struct.dataclass
class State:
    """What learning changes; the same on every device."""

    params: Params
    slow_critic: Mapping
    optimizer: optax.OptState
    percentiles: Percentiles
    updates: Array  # int32, gradient updates so far, skipped ones included

    def __repr__(self) -> str:
        return f"State({sum(map(np.size, jax.tree.leaves(self.params))):,} parameters)"


@struct.dataclass
class Carry:
    """The recurrent state of the policy."""

    latent: Latent  # leaves [N, ...]
    action: Array  # [N, A], the last action as the model sees it

    def __repr__(self) -> str:
        return f"Carry({', '.join(map(str, np.shape(self.action)[:1]))} environments)"


def build(
    config: AgentConfig, observations: spaces.Specs, actions: spaces.Specs, updates: int = 0
) -> Parts:
    """Builds the networks for an environment's spaces.

    Args:
      config: the agent's section.
      observations, actions: dm_env specs by key.
      updates: gradient updates of the whole run.

    Raises:
      UserError: observations cannot be modelled, or a frozen network does not exist.
    """
    spaces.check_observations(observations)
    dtype = compute_dtype(config.compute_dtype)
    masks = spaces.masked(observations, actions)
    if "mask" in config.frozen and not masks:
        raise UserError(
            "agent.frozen names mask, a network of environments that mask actions, which this one "
            "does not; leave it out"
        )
    names = {spaces.mask_key(key): mask for key, mask in masks.items()}
    seen = spaces.chosen(observations, config.encoder.keys, "agent.encoder.keys") | names
    predicted = spaces.chosen(observations, config.decoder.keys, "agent.decoder.keys")
    acted = tuple(sorted(actions.items()))
    units, depth, form = config.units, config.depth, forms.choose(config.kernels)
    model = WorldModel(
        encoder=Encoder(config.encoder, tuple(seen.items()), units, depth, dtype, form.pooled_conv),
        rssm=form.rssm(config.rssm, dtype),
        decoder=Decoder(
            config.decoder, tuple(predicted.items()), units, depth, dtype, form.upsample_conv
        ),
        reward=Head(config.reward.layers, units, config.reward.bins, 0.0, dtype),
        cont=Head(config.cont.layers, units, 1, 1.0, dtype),
        mask=MaskHead(config.mask.layers, tuple(masks.items()), units, dtype),
        reward_bins=transforms.symexp_bins(config.reward.bins),
        unroll=forms.choose_unroll(config.backward),
    )
    behavior = Behavior(
        actor=Actor(config.actor, acted, units, dtype),
        critic=Head(config.critic.layers, units, config.critic.bins, 0.0, dtype),
        critic_bins=transforms.symexp_bins(config.critic.bins),
        actor_config=config.actor,
        critic_config=config.critic,
        returns=config.returns,
    )
    used = {key: spec for key, spec in observations.items() if key in seen | predicted}
    return Parts(config, model, behavior, used, dict(acted), dtype, updates)


def make_optimizer(agent: Parts, packing: Packing) -> optax.GradientTransformation:
    """The optimiser of parameters in this layout."""
    config = agent.config.optimizer
    end = min(round(config.anneal * agent.updates), INT32) if config.anneal else None
    rate = optim.scale_by_rate(config.learning_rate, config.warmup, end)
    return optim.laprop(rate, config.agc, config.beta1, config.beta2, config.eps, packing)


def init(agent: Parts, key: Array) -> State:
    """Fresh parameters and statistics. Call under jit (or `jax.eval_shape` for shapes alone)."""
    return state_of(agent, init_params(agent, key))


def state_of(agent: Parts, params: Params) -> State:
    """The state from which learning starts with these parameters."""
    packing = Packing.of(params)
    return State(
        params=params,
        slow_critic=jax.tree.map(jnp.copy, params["critic"]),  # both are donated to the update
        optimizer=make_optimizer(agent, packing).init(packing.pack(params)),
        percentiles=normalize.init(),
        updates=jnp.zeros((), jnp.int32),
    )


def init_params(agent: Parts, key: Array) -> Params:
    """Parameters by name of network."""
    model, behavior = agent.model, agent.behavior
    keys = dict(
        zip(
            ("encoder", "rssm", "decoder", "reward", "cont", "actor", "critic"),
            jax.random.split(key, 7),
            strict=True,
        )
    )
    observation = {
        name: jnp.zeros((1, *spec.shape), spec.dtype) for name, spec in model.encoder.observations
    }
    carry = initial_carry(agent, 1)
    params = {"encoder": model.encoder.init(keys["encoder"], observation)}
    token = model.encoder.apply(params["encoder"], observation)
    latent = carry.latent
    params["rssm"] = rssm.init(agent.config.rssm, keys["rssm"], carry.action, token)
    params["decoder"] = model.decoder.init(keys["decoder"], latent)
    heads: dict[str, Head | Actor] = {
        "reward": model.reward,
        "cont": model.cont,
        "actor": behavior.actor,
        "critic": behavior.critic,
    }
    for name, head in heads.items():
        params[name] = head.init(keys[name], feature(latent))
    if model.mask.masks:
        params["mask"] = model.mask.init(jax.random.fold_in(key, 7), feature(latent))
    return params


def cast_kernels(params: Tree, dtype: DTypeLike) -> Tree:
    """Weights and biases cast to the compute dtype, once instead of in every step of a loop.

    Scales of norms and outputs of heads stay float32.
    """

    def cast(path: tuple, x: Array) -> Array:
        whole = path[-1].key == "scale" or path[-2].key == "out"
        return x if whole else x.astype(dtype)

    return jax.tree_util.tree_map_with_path(cast, params)


def initial_carry(agent: Parts, num_envs: int) -> Carry:
    """The carry before the first step; `is_first` resets it in any case."""
    zeros = {
        name: jnp.zeros((num_envs, *spec.shape), spec.dtype) for name, spec in agent.actions.items()
    }
    action = jnp.zeros_like(spaces.embed_action(zeros, agent.actions, agent.dtype))
    return Carry(agent.model.rssm.initial(num_envs), action)


def noise(agent: Parts, key: Array, num_envs: int, greedy: bool) -> dict[str, Array]:
    """The noise of one step of the policy: `latent` [N, S, K], and by key that of actions unless
    greedy; latents are sampled either way."""
    latent_key, action_key = jax.random.split(key)
    latent = agent.model.rssm.noise(latent_key, (num_envs,))
    actions = {} if greedy else agent.behavior.actor.noise(action_key, (num_envs,))
    return {"latent": latent, **actions}


def act_with(
    agent: Parts,
    params: Params,
    carry: Carry,
    observation: Mapping[str, Array],
    is_first: Array,
    noise: Mapping[str, Array],
) -> tuple[Carry, dict[str, Array], Latent]:
    """One step of the policy with its noise given, see `Agent.act`.

    Uses encoder, RSSM and actor. Environments at the first step of an episode start from the zero
    state.
    """
    chex.assert_rank(is_first, 1)
    chex.assert_tree_shape_prefix([carry, dict(observation), dict(noise)], is_first.shape)
    latent_noise = noise["latent"]
    action_noise = {key: x for key, x in noise.items() if key != "latent"} or None
    model, behavior = agent.model, agent.behavior
    token = model.encoder.apply(params["encoder"], observation)
    inputs = models.parts(model, params["rssm"], token, carry.action, is_first)
    latent = models.observe_step(
        model, params["rssm"], carry.latent, *inputs, is_first, latent_noise
    )
    masks = {key: observation[spaces.mask_key(key)] for key, _ in model.mask.masks}
    action = behavior.act(params, latent, masks, action_noise)
    carry = Carry(latent, behaviors.concat_actions(behavior, action))
    return carry, environment_action(agent, action), stored_latent(agent, latent)


def stored_latent(agent: Parts, latent: Latent) -> Latent:
    """The latent as stored in replay: class indices uint8 [..., S] in place of one-hot groups."""
    return rssm.pack(agent.config.rssm, latent)


def environment_action(agent: Parts, action: models.Actions) -> dict[str, Array]:
    """Actions of the environment from those of the model: one-hot parts become class indices."""
    return {
        key: value.argmax(-1).astype(jnp.int32)
        if spaces.kind(agent.actions[key]) == "discrete"
        else value
        for key, value in action.items()
    }
