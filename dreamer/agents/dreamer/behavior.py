"""Behaviour learned in imagination: rollouts, returns, actor and critic losses."""

from collections.abc import Mapping
from dataclasses import dataclass

import chex
import jax
import jax.numpy as jnp
from jax import Array

from dreamer.agents.dreamer.world_model import (
    Actions,
    Masks,
    Metrics,
    Noise,
    Params,
    WorldModel,
    imagine,
    means,
    swap,
)
from dreamer.config.agent import ActorConfig, CriticConfig, ReturnConfig
from dreamer.nets import spaces
from dreamer.nets.heads import Actor, Head
from dreamer.nets.rssm import Latent, feature
from dreamer.ops import distributions, normalize, transforms
from dreamer.ops.normalize import Percentiles
from dreamer.ops.returns import lambda_return

sg = jax.lax.stop_gradient


@dataclass(frozen=True)
class Behavior:
    """Actor and critic modules and settings; parameters are passed separately."""

    actor: Actor
    critic: Head
    critic_bins: Array
    actor_config: ActorConfig
    critic_config: CriticConfig
    returns: ReturnConfig

    def predict_value(self, params: Mapping, feat: Array) -> Array:
        """Expected return of each state under critic parameters: feat [..., F] to [...]."""
        return transforms.two_hot_mean(self.critic.apply(params, feat), self.critic_bins)

    def gradient(self, key: str) -> str:
        """The kind of actor gradient for one action key: analytic, reinforce or mixed."""
        choice = self.actor_config.gradient
        if choice != "auto":
            return choice
        return (
            "analytic"
            if spaces.kind(dict(self.actor.actions)[key]) == "continuous"
            else "reinforce"
        )

    def act(self, params: Params, latent: Latent, masks: Masks, noise: Noise) -> Actions:
        """Actions in a state, [N, *shape(, classes)] per key; their modes without noise."""
        policy = self.actor.policy(self.actor.apply(params["actor"], feature(latent)), masks)
        return {
            key: distributions.draw(dist, noise[key] if noise else None)
            for key, dist in policy.items()
        }


@dataclass(frozen=True)
class Imagined:
    """An imagined rollout, time-major, with the start at index 0."""

    feat: Array  # [H + 1, N, F]
    action: Actions  # [H, N, ...]
    masks: Masks  # [H, N, ...], predicted by the model
    returns: Array  # [H, N]
    value: Array  # [H + 1, N]
    weight: Array  # [H, N], probability that the imagined episode has not ended
    reward: Array  # [H + 1, N]
    cont: Array  # [H + 1, N]


def rollout(
    behavior: Behavior,
    model: WorldModel,
    params: Params,
    start: Latent,
    noise: Array | None,
    policy_noise: Noise,
) -> Imagined:
    """Imagines the future of every start and its returns.

    Model and critic weights are held fixed. The only gradient is that of returns with respect to
    actions, through value, reward, continuation and dynamics, for action keys whose gradient is
    not plain reinforce. States are inputs of the policy without gradient, as in Hafner et al. 2020.

    Args:
      behavior, model: networks.
      params: parameters of all of them.
      start: leaves [N, ...].
      noise, policy_noise: see `world_model.imagine`.
    """
    fixed = sg({key: value for key, value in params.items() if key != "actor"})
    chex.assert_rank(start["deter"], 2)

    def policy(latent: Latent, step_noise: Noise) -> tuple[Array, tuple[Actions, Masks]]:
        masks = model.predict_masks(fixed, sg(feature(latent)))
        action = behavior.act(params, sg(latent), masks, step_noise)
        action = {
            key: sg(a) if behavior.gradient(key) == "reinforce" else a for key, a in action.items()
        }
        return concat_actions(behavior, action), (action, masks)

    config = behavior.returns
    latents, (action, masks) = imagine(
        model, fixed, sg(start), policy, config.imagination, noise, policy_noise
    )
    feat = feature(latents)
    reward, cont = model.predict_reward(fixed, feat), model.predict_cont(fixed, feat)
    value = behavior.predict_value(fixed["critic"], feat)
    returns = lambda_return(reward, cont, config.lam, value)
    weight = sg(jnp.cumprod(cont, 0))[:-1]
    return Imagined(feat, action, masks, returns, value, weight, reward, cont)


def concat_actions(behavior: Behavior, action: Actions) -> Array:
    """Actions of the model as one vector [N, A], keys in sorted order."""
    dtype = behavior.actor.dtype
    parts = [action[key].reshape(action[key].shape[0], -1) for key in sorted(action)]
    return jnp.concatenate(parts, -1).astype(dtype)


def actor_loss(
    behavior: Behavior, params: Params, imagined: Imagined, scale: Array
) -> tuple[Array, Metrics]:
    """The actor loss; its gradient reaches the actor's parameters only.

    reinforce: -w (log pi(a) A + eta H); analytic: -w (R / S + eta H), with A = (R - v) / S, w the
    weight, S the scale of returns, H the entropy and eta its coefficient; mixed weighs both by
    `actor.mix`.

    Args:
      behavior: networks.
      params: parameters, of which those of the actor are trained.
      imagined: the rollout.
      scale: scalar S.

    Returns:
      Loss [H, N] and metrics.
    """
    chex.assert_rank(scale, 0)
    chex.assert_equal_shape([imagined.returns, imagined.weight])
    config = behavior.actor_config
    outputs = behavior.actor.apply(params["actor"], sg(imagined.feat[:-1]))
    policy = behavior.actor.policy(outputs, imagined.masks)
    scale = sg(scale)
    advantage = sg((imagined.returns - imagined.value[:-1]) / scale)
    share = {"reinforce": 1.0, "analytic": 0.0, "mixed": config.mix}
    shares = {key: share[behavior.gradient(key)] for key in policy}

    objective = jnp.zeros_like(imagined.returns)
    for key, dist in policy.items():
        if shares[key]:
            objective += shares[key] * dist.log_prob(sg(imagined.action[key])) * advantage
    # Returns have gradients only with respect to analytic actions, so one term serves all keys.
    analytic = max(1.0 - s for s in shares.values())
    if analytic:
        objective += analytic * imagined.returns / scale
    entropies = {key: dist.entropy() for key, dist in policy.items()}
    loss = -imagined.weight * (objective + config.entropy * sum(entropies.values()))
    metrics = means(
        {f"entropy/{key}": entropy for key, entropy in entropies.items()}
        | {
            "advantage": advantage,
            "advantage_abs": jnp.abs(advantage),
            "imagined_return": imagined.returns,
            "return_normed": imagined.returns / scale,
            "value": imagined.value,
            "imagined_reward": imagined.reward,
            "imagined_cont": imagined.cont,
            "weight": imagined.weight,
        }
    )
    metrics |= {"advantage_std": advantage.std(), "return_scale": scale}
    return loss, sg(metrics)


def critic_loss(
    behavior: Behavior, params: Params, slow: Mapping, feat: Array, target: Array
) -> Array:
    """Two-hot loss towards the target plus regularisation towards the slow critic.

    Args:
      behavior: networks.
      params: parameters, of which those of the critic are trained.
      slow: parameters of the slow critic.
      feat: [..., F], with or without gradient.
      target: returns [...], without gradient.

    Returns:
      [...].
    """
    chex.assert_shape(feat, (*target.shape, None))
    logits = behavior.critic.apply(params["critic"], feat)
    toward = sg(behavior.predict_value(slow, feat))
    loss = transforms.two_hot_loss(logits, target, behavior.critic_bins)
    return loss + behavior.critic_config.slow_scale * transforms.two_hot_loss(
        logits, toward, behavior.critic_bins
    )


def imagined_critic_loss(
    behavior: Behavior, params: Params, slow: Mapping, imagined: Imagined
) -> Array:
    """The critic loss on imagined states, without gradient to them: [H, N]."""
    return imagined.weight * critic_loss(
        behavior, params, slow, sg(imagined.feat[:-1]), sg(imagined.returns)
    )


def replay_critic_loss(
    behavior: Behavior, params: Params, slow: Mapping, batch: Mapping, feat: Array, bootstrap: Array
) -> Array:
    """The critic loss on replayed sequences, bootstrapped by the imagined return of each state.

    Args:
      behavior: networks.
      params: parameters.
      slow: parameters of the slow critic.
      batch: reward, is_last, is_terminal [B, T].
      feat: features of the replayed states, [B, T, F]; gradients flow through them into the model.
      bootstrap: [B, T].

    Returns:
      [B, T - 1]; 0 on the last step of an episode, which has no successor in it.
    """
    flags = batch["is_last"], batch["is_terminal"]
    chex.assert_equal_shape([batch["reward"], *flags, bootstrap])
    chex.assert_shape(feat, (*bootstrap.shape, None))
    config = behavior.returns
    discount = (1.0 - batch["is_terminal"]) * (1 - 1 / config.horizon)
    lam = (1.0 - batch["is_last"]) * config.lam
    target = swap(lambda_return(*swap((batch["reward"], discount, lam, bootstrap))))
    loss = critic_loss(behavior, params, slow, feat[:, :-1], sg(target))
    return (1.0 - batch["is_last"][:, :-1]) * loss


def normalize_returns(
    config: ReturnConfig, percentiles: Percentiles, returns: Array, axis_name: str | None
) -> tuple[Percentiles, Array]:
    """Updates the percentiles with the returns of all devices; gives them and the scale S."""
    percentiles = normalize.update(
        percentiles, returns, config.rate, config.low, config.high, axis_name
    )
    return percentiles, normalize.scale(percentiles, config.floor)
