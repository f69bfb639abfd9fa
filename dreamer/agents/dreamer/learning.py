"""The total loss and one gradient update of all networks."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from dreamer.agents.dreamer import behavior as behaviors
from dreamer.agents.dreamer import world_model as models
from dreamer.agents.dreamer.parts import Parts, State, cast_kernels, make_optimizer, stored_latent
from dreamer.agents.dreamer.world_model import Metrics, Params, means
from dreamer.nets import rssm, spaces
from dreamer.nets.rssm import Latent, feature
from dreamer.ops.normalize import Percentiles
from dreamer.ops.packing import Packing

Tree = TypeVar("Tree")


@dataclass(frozen=True)
class Draws:
    """The noise of one update; None gives modes."""

    posterior: Array | None = None  # [B, T, S, K]
    prior: Array | None = None  # [H, N, S, K]
    policy: models.Noise = None  # [H, N, ...] by key


def draw_noise(agent: Parts, key: Array, batch: int, length: int, first: Array | int) -> Draws:
    """The noise of one update, drawn per sequence so that it does not depend on how sequences are
    spread over devices.

    Args:
      agent: networks.
      key: random key of the update.
      batch: sequences B on this device.
      length: steps T of each.
      first: number of this device's first sequence in the global batch.
    """
    chex.assert_shape(key, ())
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


def split_batch(agent: Parts, batch: Mapping) -> tuple[Latent, Array, dict[str, Any]]:
    """Splits the context step off a replayed batch [B, T + 1]; the only time alignment in training.

    Row t holds observation, reward and flags of time t, the action then taken, and the latent of
    the policy.

    Returns:
      The latent before the first trained step, the actions that led to each trained step [B, T, A],
      and the T trained steps.
    """
    chex.assert_rank(batch["is_first"], 2)
    flags = ("reward", "is_first", "is_last", "is_terminal")
    chex.assert_equal_shape([batch[name] for name in flags])
    chex.assert_tree_shape_prefix([batch["observation"], batch["action"]], batch["is_first"].shape)
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
    agent: Parts,
    params: Params,
    slow_critic: Mapping,
    percentiles: Percentiles,
    batch: Mapping,
    draws: Draws,
    axis_name: str | None = None,
) -> tuple[Array, tuple[Latent, Percentiles, dict[str, Array], Metrics]]:
    """The total loss of one update.

    Args:
      agent: networks.
      params: of all networks.
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


def train_step(
    agent: Parts, state: State, batch: Mapping, key: Array, axis_name: str | None = None
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
      invalid where the update was skipped, and scalar metrics.
    """
    chex.assert_rank(batch["is_first"], 2)
    chex.assert_shape(key, ())
    size, length = batch["is_first"].shape
    first = jax.lax.axis_index(axis_name) * size if axis_name else 0
    draws = draw_noise(agent, jax.random.fold_in(key, state.updates), size, length - 1, first)
    return update(agent, state, batch, draws, axis_name)


def update(
    agent: Parts, state: State, batch: Mapping, draws: Draws, axis_name: str | None = None
) -> tuple[State, Latent, Metrics]:
    """`train_step` with its noise given."""

    def objective(params: Params) -> tuple[Array, tuple]:
        # Saves computing gradients that `descend` would not use.
        fixed = set(agent.config.frozen)
        params = {
            name: jax.lax.stop_gradient(part) if name in fixed else part
            for name, part in params.items()
        }
        return loss(agent, params, state.slow_critic, state.percentiles, batch, draws, axis_name)

    # Tensors of equal shape are sliced from the packed array, and cast, in one kernel.
    weights = packed(state.params)
    params = Packing.of(state.params).unpack(weights)
    gradients, (latents, percentiles, _, metrics) = jax.grad(objective, has_aux=True)(params)
    if axis_name:
        metrics = jax.lax.pmean(metrics, axis_name)
    finite = jnp.isfinite(metrics["loss/total"])
    before = state.percentiles
    state, fine, norms = descend(agent, state, weights, gradients, finite, axis_name)
    state = replace(state, percentiles=select(fine, percentiles, before))
    return state, stored_latent(agent, latents), metrics | norms


def select(condition: Array, this: Tree, that: Tree) -> Tree:
    """One tree or the other."""
    return jax.tree.map(partial(jnp.where, condition), this, that)


def trained_rows(agent: Parts, packing: Packing) -> np.ndarray:
    """Which rows of packed parameters belong to networks that are not frozen: bool [R, 1]."""
    tensors = packing.treedef.unflatten(range(len(packing.shapes)))
    frozen = jax.tree.leaves({name: tensors[name] for name in agent.config.frozen})
    return packing.rows_of(~np.isin(np.arange(len(packing.shapes)), frozen))


def packed(tree: Params) -> Array:
    """The tensors as one packed array, materialised once."""
    return jax.lax.optimization_barrier(Packing.of(tree).pack(tree))


def descend(
    agent: Parts,
    state: State,
    weights: Array,
    gradients: Params,
    finite: Array,
    axis_name: str | None = None,
) -> tuple[State, Array, Metrics]:
    """Applies gradients averaged over devices, and moves the slow critic towards the critic; skips
    both where loss or gradient is not finite.

    Args:
      agent: settings of the optimiser.
      state: before the update.
      weights: its parameters, packed.
      gradients: of the parameters, on this device.
      finite: whether the loss is finite, the same on all devices.
      axis_name: device axis to average over, if any.

    Returns:
      The new state, whether the update was applied, and norms of gradient, update and weights.
    """
    chex.assert_rank([weights, finite], [2, 0])
    packing, gradient = Packing.of(gradients), packed(gradients)
    if axis_name:
        gradient = jax.lax.pmean(gradient, axis_name)
    gradient_norm = jnp.linalg.norm(gradient)
    fine = finite & jnp.isfinite(gradient_norm)
    optimizer = make_optimizer(agent, packing)
    updates, moments = optimizer.update(gradient, state.optimizer, weights)
    moved = fine & trained_rows(agent, packing) if agent.config.frozen else fine
    updates = jnp.where(moved, updates, -0.0)  # adding -0.0 leaves every bit unchanged
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
