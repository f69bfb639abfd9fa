"""The agent: how its parts are built, how it acts, and its one joint update."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax import Array
from jax.typing import DTypeLike

from dreamer.agent import behavior as behaviors
from dreamer.agent import world_model as models
from dreamer.agent.behavior import Behavior
from dreamer.agent.world_model import Metrics, Params, WorldModel, means
from dreamer.config.agent import AgentConfig, OptimizerConfig
from dreamer.errors import UserError
from dreamer.nets import rssm, spaces
from dreamer.nets.decoder import Decoder
from dreamer.nets.encoder import Encoder
from dreamer.nets.heads import Actor, Head, MaskHead
from dreamer.nets.layers import compute_dtype
from dreamer.nets.rssm import RSSM, Latent, feature
from dreamer.ops import normalize, optim, recurrence, transforms
from dreamer.ops.normalize import Percentiles
from dreamer.ops.packing import Packing

Tree = TypeVar("Tree")


@dataclass(frozen=True)
class Agent:
    """Networks, optimiser and settings; everything that changes is in `State` and `Carry`."""

    config: AgentConfig
    model: WorldModel
    behavior: Behavior
    observations: spaces.Specs  # those that are seen or predicted, and masks
    actions: spaces.Specs
    dtype: DTypeLike


@struct.dataclass
class State:
    """All that learning changes, the same on every device."""

    params: Params
    slow_critic: Mapping
    optimizer: optax.OptState
    percentiles: Percentiles
    updates: Array  # int32, gradient updates done, those that were skipped included


@struct.dataclass
class Carry:
    """The memory of the policy between steps of its environments."""

    latent: Latent  # leaves [N, ...]
    action: Array  # [N, A], the last action as the model sees it


def make_agent(config: AgentConfig, observations: spaces.Specs, actions: spaces.Specs) -> Agent:
    """Builds the networks for an environment's spaces.

    Args:
      config: the agent's section.
      observations, actions: dm_env specs by key.

    Raises:
      UserError: for observations that cannot be modelled, or a frozen network that is not there.
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
    units, depth = config.units, config.depth
    model = WorldModel(
        encoder=Encoder(config.encoder, tuple(seen.items()), units, depth, dtype),
        rssm=RSSM(config.rssm, dtype),
        decoder=Decoder(config.decoder, tuple(predicted.items()), units, depth, dtype),
        reward=Head(config.reward.layers, units, config.reward.bins, 0.0, dtype),
        cont=Head(config.cont.layers, units, 1, 1.0, dtype),
        mask=MaskHead(config.mask.layers, tuple(masks.items()), units, dtype),
        reward_bins=transforms.symexp_bins(config.reward.bins),
        unroll=recurrence.choose(config.backward),
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
    return Agent(config, model, behavior, used, dict(acted), dtype)


def make_optimizer(config: OptimizerConfig, packing: Packing) -> optax.GradientTransformation:
    """The optimiser of parameters packed like that."""
    rate = optim.schedule(config.learning_rate, config.warmup, config.anneal)
    return optim.laprop(rate, config.agc, config.beta1, config.beta2, config.eps, packing)


def init(agent: Agent, key: Array) -> State:
    """Fresh parameters and statistics. Call under jit (or `jax.eval_shape` for shapes alone)."""
    return state_of(agent, init_params(agent, key))


def state_of(agent: Agent, params: Params) -> State:
    """The state from which learning starts with these parameters."""
    packing = Packing.of(params)
    return State(
        params=params,
        slow_critic=jax.tree.map(jnp.copy, params["critic"]),  # both are given away at an update
        optimizer=make_optimizer(agent.config.optimizer, packing).init(packing.pack(params)),
        percentiles=normalize.init(),
        updates=jnp.zeros((), jnp.int32),
    )


def init_params(agent: Agent, key: Array) -> Params:
    """Parameters of every network, by the network's name."""
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
    params["rssm"] = model.rssm.init(
        keys["rssm"], latent["deter"], latent["stoch"], carry.action, token
    )
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


def initial_carry(agent: Agent, num_envs: int) -> Carry:
    """The carry before the first step of any environment; `is_first` resets it anyway."""
    zeros = {
        name: jnp.zeros((num_envs, *spec.shape), spec.dtype) for name, spec in agent.actions.items()
    }
    action = jnp.zeros_like(spaces.embed_action(zeros, agent.actions, agent.dtype))
    return Carry(agent.model.rssm.initial(num_envs), action)


def act(
    agent: Agent,
    params: Params,
    carry: Carry,
    observation: Mapping[str, Array],
    is_first: Array,
    key: Array,
    greedy: bool,
    share: tuple[int, int] = (0, 1),
) -> tuple[Carry, dict[str, Array], Latent]:
    """One step of the policy.

    Args:
      agent: networks.
      params: their parameters; decoder and the reward, continuation and critic heads are not read.
      carry: memory of the last step.
      observation: [N, *shape] by key, the masks of actions among them.
      is_first: [N]; such an environment starts from the zero state.
      key: random key of this step.
      greedy: mode of the policy instead of a sample; latents are sampled either way.
      share: these N are that part of so many times N, for which the draws are.

    Returns:
      The carry, actions for the environment [N, *shape] by key, and the latent as replay stores it.
    """
    number, count = share
    size = is_first.shape[0]
    noise = acting_noise(agent, key, count * size, greedy)
    if count > 1:
        noise = jax.tree.map(lambda x: x[number * size : (number + 1) * size], noise)
    return act_with(agent, params, carry, observation, is_first, *noise)


def acting_noise(
    agent: Agent, key: Array, num_envs: int, greedy: bool
) -> tuple[Array, models.Noise]:
    """The noise of one step of the policy: of latents [N, S, K] and of actions by key, or None."""
    latent_key, action_key = jax.random.split(key)
    latent = agent.model.rssm.noise(latent_key, (num_envs,))
    return latent, None if greedy else agent.behavior.actor.noise(action_key, (num_envs,))


def act_with(
    agent: Agent,
    params: Params,
    carry: Carry,
    observation: Mapping[str, Array],
    is_first: Array,
    latent_noise: Array,
    action_noise: models.Noise,
) -> tuple[Carry, dict[str, Array], Latent]:
    """`act` with its noise given."""
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


def stored_latent(agent: Agent, latent: Latent) -> Latent:
    """The latent as replay stores it: class numbers uint8 [..., S] in place of one-hot groups."""
    return rssm.pack(agent.config.rssm, latent)


def environment_action(agent: Agent, action: models.Actions) -> dict[str, Array]:
    """From the model's actions to the environment's: one-hot parts become class numbers."""
    return {
        key: value.argmax(-1).astype(jnp.int32)
        if spaces.kind(agent.actions[key]) == "discrete"
        else value
        for key, value in action.items()
    }


@dataclass(frozen=True)
class Draws:
    """All the noise of one update: None everywhere stands for modes."""

    posterior: Array | None = None  # [B, T, S, K]
    prior: Array | None = None  # [H, N, S, K]
    policy: models.Noise = None  # [H, N, ...] by key


def draw_noise(agent: Agent, key: Array, batch: int, length: int, first: Array | int) -> Draws:
    """The noise of one update, drawn per sequence so that it does not depend on how sequences are
    spread over devices.

    Args:
      agent: networks.
      key: random key of the update.
      batch: sequences B on this device.
      length: steps T of each.
      first: number of this device's first sequence in the global batch.
    """
    horizon = agent.config.returns.imagination

    def sequence(index: Array) -> tuple[Array, Array, dict[str, Array]]:
        posterior, prior, policy = jax.random.split(jax.random.fold_in(key, index), 3)
        return (
            agent.model.rssm.noise(posterior, (length,)),
            agent.model.rssm.noise(prior, (horizon, length)),
            agent.behavior.actor.noise(policy, (horizon, length)),
        )

    posterior, *imagined = jax.vmap(sequence)(first + jnp.arange(batch))
    prior, policy = jax.tree.map(
        lambda x: jnp.moveaxis(x, 0, 1).reshape(horizon, batch * length, *x.shape[3:]), imagined
    )
    return Draws(posterior, prior, policy)


def split_batch(agent: Agent, batch: Mapping) -> tuple[Latent, Array, dict[str, Any]]:
    """Cuts the context step off a replayed batch [B, T + 1]: the one owner of time alignment in
    training.

    Row t holds observation, reward and flags of time t, the action then taken, and the latent of
    the policy.

    Returns:
      The latent before the first trained step, the actions that led to each trained step [B, T, A],
      and the T trained steps.
    """
    latent = jax.tree.map(lambda x: x[:, 0], batch["latent"])
    start = rssm.unpack(agent.config.rssm, latent, agent.dtype)
    previous = jax.tree.map(lambda x: x[:, :-1], batch["action"])
    steps = {key: value for key, value in batch.items() if key not in ("latent", "action")}
    return (
        start,
        spaces.embed_action(previous, agent.actions, agent.dtype),
        jax.tree.map(lambda x: x[:, 1:], steps),
    )


def loss(
    agent: Agent,
    params: Params,
    slow_critic: Mapping,
    percentiles: Percentiles,
    batch: Mapping,
    draws: Draws,
    axis_name: str | None = None,
) -> tuple[Array, tuple[Latent, Percentiles, dict[str, Array], Metrics]]:
    """The total loss of one update and all that comes with it.

    Args:
      agent: networks.
      params: what is learned.
      slow_critic: parameters of the slow critic.
      percentiles: of the returns so far.
      batch: from replay, leaves [B, T + 1, ...], of `latent` only the first [B, 1, ...].
      draws: the noise.
      axis_name: device axis, if any.

    Returns:
      Scalar loss, and (latents [B, T, ...], new percentiles, unscaled loss terms [B, T] of which
      replay_critic has [B, T - 1], metrics).
    """
    config, model, behavior = agent.config, agent.model, agent.behavior
    params, slow_critic = cast_kernels((params, slow_critic), agent.dtype)
    start, previous, steps = split_batch(agent, batch)
    tokens = model.encoder.apply(params["encoder"], steps["observation"])
    latents, stats = models.observe(
        model, params, start, tokens, previous, steps["is_first"], draws.posterior
    )
    discount = 1 - 1 / config.returns.horizon
    terms, metrics = models.model_losses(
        model, params, config.losses, steps, latents, stats, discount
    )

    starts = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), latents)
    imagined = behaviors.rollout(behavior, model, params, starts, draws.prior, draws.policy)
    percentiles, scale = behaviors.normalize_returns(
        config.returns, percentiles, imagined.returns, axis_name
    )
    actor, actor_metrics = behaviors.actor_loss(behavior, params, imagined, scale)
    critic = behaviors.imagined_critic_loss(behavior, params, slow_critic, imagined)
    shape = steps["is_first"].shape
    terms["actor"], terms["critic"] = actor.mean(0).reshape(shape), critic.mean(0).reshape(shape)
    terms["replay_critic"] = behaviors.replay_critic_loss(
        behavior,
        params,
        slow_critic,
        steps,
        feature(latents),
        jax.lax.stop_gradient(imagined.returns[0].reshape(shape)),
    )
    scales, averages = config.losses.model_dump(), means(terms)
    total = sum(
        scales["reconstruction" if name.startswith("observation/") else name] * average
        for name, average in averages.items()
    )
    metrics |= actor_metrics | {f"loss/{name}": x for name, x in averages.items()}
    metrics["loss/total"] = total
    return total, (latents, percentiles, terms, metrics)


def cast_kernels(params: Tree, dtype: DTypeLike) -> Tree:
    """Weights and biases in the dtype they are used in, once instead of in every step of a loop.

    The scales of norms and the outputs of heads stay float32, as they are computed.
    """

    def cast(path: tuple, x: Array) -> Array:
        whole = path[-1].key == "scale" or path[-2].key == "out"
        return x if whole else x.astype(dtype)

    return jax.tree_util.tree_map_with_path(cast, params)


def train_step(
    agent: Agent, state: State, batch: Mapping, key: Array, axis_name: str | None = None
) -> tuple[State, Latent, Metrics]:
    """One gradient update.

    Args:
      agent: networks.
      state: before the update.
      batch: this device's sequences from replay, leaves [B, T + 1, ...], of `latent` only the
        first [B, 1, ...].
      key: the run's key; the number of the update is folded in.
      axis_name: device axis to average over, if any.

    Returns:
      The new state (the same on all devices), the new latents as replay stores them [B, T, ...],
      and scalar metrics.
    """
    size, length = batch["is_first"].shape
    first = jax.lax.axis_index(axis_name) * size if axis_name else 0
    draws = draw_noise(agent, jax.random.fold_in(key, state.updates), size, length - 1, first)
    return update(agent, state, batch, draws, axis_name)


def update(
    agent: Agent, state: State, batch: Mapping, draws: Draws, axis_name: str | None = None
) -> tuple[State, Latent, Metrics]:
    """`train_step` with its noise given."""

    def objective(params: Params) -> tuple[Array, tuple]:
        # For speed: gradients that `descend` would leave unused.
        fixed = set(agent.config.frozen)
        params = {
            name: jax.lax.stop_gradient(part) if name in fixed else part
            for name, part in params.items()
        }
        return loss(agent, params, state.slow_critic, state.percentiles, batch, draws, axis_name)

    # Tensors of one shape are cut out of the one array, and cast, in one kernel.
    weights = packed(state.params)
    params = Packing.of(state.params).unpack(weights)
    gradients, (latents, percentiles, _, metrics) = jax.grad(objective, has_aux=True)(params)
    if axis_name:
        metrics = jax.lax.pmean(metrics, axis_name)
    finite = jnp.isfinite(metrics["loss/total"])
    before = state.percentiles
    state, fine, norms = descend(agent, state, weights, gradients, finite, axis_name)
    state = replace(state, percentiles=select(fine, percentiles, before))
    # Zeros are what replay has of a row that was not trained yet.
    stored = jax.tree.map(lambda x: jnp.where(fine, x, 0), stored_latent(agent, latents))
    return state, stored, metrics | norms


def select(condition: Array, this: Tree, that: Tree) -> Tree:
    """One tree or the other."""
    return jax.tree.map(partial(jnp.where, condition), this, that)


def trained_rows(agent: Agent, packing: Packing) -> np.ndarray:
    """Which rows of packed parameters belong to networks that are not frozen: bool [R, 1]."""
    tensors = packing.treedef.unflatten(range(len(packing.shapes)))
    frozen = jax.tree.leaves({name: tensors[name] for name in agent.config.frozen})
    return packing.rows_of(~np.isin(np.arange(len(packing.shapes)), frozen))


def packed(tree: Params) -> Array:
    """The tensors as one array of its own, not put together again by each who reads it."""
    return jax.lax.optimization_barrier(Packing.of(tree).pack(tree))


def descend(
    agent: Agent,
    state: State,
    weights: Array,
    gradients: Params,
    finite: Array,
    axis_name: str | None = None,
) -> tuple[State, Array, Metrics]:
    """Moves the parameters against their gradients, averaged over devices, and the slow critic
    after the critic; or nothing, where loss or gradient is not finite.

    Args:
      agent: settings of the optimiser.
      state: before the update.
      weights: its parameters, packed.
      gradients: of the parameters, on this device.
      finite: whether the loss is, the same on all devices.
      axis_name: device axis to average over, if any.

    Returns:
      The new state, whether anything was moved, and the norms of gradients, change and weights.
    """
    packing, gradient = Packing.of(gradients), packed(gradients)
    if axis_name:
        gradient = jax.lax.pmean(gradient, axis_name)
    gradient_norm = jnp.linalg.norm(gradient)
    fine = finite & jnp.isfinite(gradient_norm)
    optimizer = make_optimizer(agent.config.optimizer, packing)
    updates, moments = optimizer.update(gradient, state.optimizer, weights)
    moved = fine & trained_rows(agent, packing) if agent.config.frozen else fine
    updates = jnp.where(moved, updates, -0.0)  # which changes no bit when it is added
    weights += updates
    params = packing.unpack(weights)
    slow_critic = optax.incremental_update(
        params["critic"], state.slow_critic, agent.config.critic.slow_rate
    )
    norms = {
        "optimizer/skipped": (~fine).astype(jnp.float32),
        "optimizer/gradient_norm": gradient_norm,
        "optimizer/update_norm": jnp.linalg.norm(updates),
        "optimizer/weight_norm": jnp.linalg.norm(weights),
    }
    state = State(
        params,
        select(fine, slow_critic, state.slow_critic),
        select(fine, moments, state.optimizer),
        state.percentiles,
        state.updates + 1,
    )
    return state, fine, norms
