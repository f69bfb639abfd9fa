"""The world model: its two scans, observe and imagine, and its losses on replay."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import chex
import jax
import jax.numpy as jnp
from jax import Array

from dreamer.config.agent import LossConfig
from dreamer.nets import spaces
from dreamer.nets.decoder import Decoder
from dreamer.nets.encoder import Encoder
from dreamer.nets.heads import Head, MaskHead
from dreamer.nets.rssm import RSSM, Latent, feature
from dreamer.ops import distributions, losses, transforms

Params = Mapping[str, Mapping]
Metrics = dict[str, Array]
Actions = Mapping[str, Array]  # of the model: discrete ones one-hot
Noise = Mapping[str, Array] | None
Masks = Mapping[str, Array]  # bool [..., *shape, classes] by key of masked actions
Tree = TypeVar("Tree")


@dataclass(frozen=True)
class WorldModel:
    """The networks of the model and their settings; parameters are passed separately."""

    encoder: Encoder
    rssm: RSSM
    decoder: Decoder
    reward: Head
    cont: Head
    mask: MaskHead
    reward_bins: Array
    unroll: Callable  # a recurrence over time, of `ops.recurrence`

    def latent(self, deter: Array, stats: Array, noise: Array | None) -> Latent:
        """The latent state of a deterministic state and the statistics of its stochastic part."""
        stoch = distributions.draw(self.rssm.distribution(stats), noise)
        return {"deter": deter, "stoch": stoch.astype(deter.dtype)}

    def predict_reward(self, params: Params, feat: Array) -> Array:
        """Expected reward on arriving at each state: feat [..., F] to [...]."""
        return transforms.two_hot_mean(self.reward.apply(params["reward"], feat), self.reward_bins)

    def predict_cont(self, params: Params, feat: Array) -> Array:
        """Probability that the episode continues, the discount included: feat [..., F] to [...]."""
        return jax.nn.sigmoid(self.cont.apply(params["cont"], feat)[..., 0])

    def predict_masks(self, params: Params, feat: Array) -> Masks:
        """Action classes predicted as valid: feat [..., F]."""
        if not self.mask.masks:
            return {}
        return {key: x > 0 for key, x in self.mask.apply(params["mask"], feat).items()}


def observe(
    model: WorldModel,
    params: Params,
    start: Latent,
    tokens: Array,
    previous: Array,
    is_first: Array,
    noise: Array | None,
) -> tuple[Latent, Array]:
    """Runs the posterior over a sequence.

    Args:
      model: networks.
      params: their parameters.
      start: latent before the first step, leaves [B, ...].
      tokens: of the observations, [B, T, E].
      previous: the action taken one step earlier, [B, T, A].
      is_first: [B, T]; the state and the action are zero before such a step.
      noise: of the latents, [B, T, S, K] (gaussian: [B, T, S]), or None for their modes.

    Returns:
      Latents with leaves [B, T, ...] and the posterior's statistics [B, T, S, K or 2].
    """
    chex.assert_rank([tokens, previous, is_first], [3, 3, 2])
    chex.assert_equal_shape_prefix([tokens, previous, is_first], 2)
    chex.assert_shape(start["deter"], (is_first.shape[0], None))
    rssm = params["rssm"]
    token_parts, action_parts = parts(model, rssm, tokens, previous, is_first)

    # The loop carries latents as one array: fewer operations per step.
    def step(rssm: Mapping, feat: Array, now: tuple) -> Array:
        return feature(observe_step(model, rssm, model.rssm.split(feat), *now))

    inputs = swap((token_parts, action_parts, is_first, noise))
    latents = model.rssm.split(swap(model.unroll(step, rssm, feature(start), inputs)))
    # Recomputed for all steps at once, so that the loop stores only latents.
    return latents, model.rssm.apply(rssm, latents["deter"], token_parts, method="posterior")


def parts(
    model: WorldModel, rssm: Mapping, tokens: Array, previous: Array, is_first: Array
) -> tuple[Array, Array]:
    """The parts of all steps that depend on tokens and actions alone: [..., H] each."""
    chex.assert_equal_shape_prefix([tokens, previous, is_first], is_first.ndim)
    previous = mask(previous, ~is_first)
    return (
        model.rssm.apply(rssm, tokens, method="token_part"),
        model.rssm.apply(rssm, previous, method="action_part"),
    )


def observe_step(
    model: WorldModel,
    rssm: Mapping,
    latent: Latent,
    token_part: Array,
    action_part: Array,
    is_first: Array,
    noise: Array | None,
) -> Latent:
    """One step of `observe`, without its time axis; `rssm` are the parameters of that network."""
    chex.assert_rank([token_part, action_part, is_first], [2, 2, 1])
    chex.assert_equal_shape_prefix([latent["deter"], token_part, action_part, is_first], 1)
    feat = mask(feature(latent), ~is_first)
    deter, stats = model.rssm.apply(rssm, feat, action_part, token_part)
    return model.latent(deter, stats, noise)


def imagine_step(
    model: WorldModel, params: Params, carry: Latent, action: Array, noise: Array | None
) -> Latent:
    """One step of the prior: leaves [N, ...], action [N, A], noise or None for the mode."""
    chex.assert_rank([carry["deter"], action], 2)
    chex.assert_equal_shape_prefix([carry["deter"], action], 1)
    action_part = model.rssm.apply(params["rssm"], action, method="action_part")
    deter = model.rssm.apply(params["rssm"], feature(carry), action_part, method="core")
    stats = model.rssm.apply(params["rssm"], deter, method="prior")
    return model.latent(deter, stats, noise)


def imagine(
    model: WorldModel,
    params: Params,
    start: Latent,
    policy: Callable[[Latent, Noise], tuple[Array, Tree]],
    horizon: int,
    noise: Array | None,
    policy_noise: Noise,
) -> tuple[Latent, Tree]:
    """Rolls the prior forward from `start` under a policy.

    Args:
      model: networks.
      params: their parameters.
      start: leaves [N, ...].
      policy: maps a latent and its noise to the action vector [N, A] and outputs to collect.
      horizon: steps H.
      noise: of the latents, [H, N, S, K] (gaussian: [H, N, S]), or None for their modes.
      policy_noise: leaves [H, N, ...], or None.

    Returns:
      Latents with leaves [H + 1, N, ...], the start first, and what was collected, [H, N, ...].
    """
    chex.assert_rank(start["deter"], 2)
    chex.assert_tree_shape_prefix([noise, policy_noise], (horizon, start["deter"].shape[0]))

    # As one array, as in `observe`.
    def step(feat: Array, inputs: tuple[Array | None, Noise]) -> tuple[Array, tuple]:
        latent_noise, action_noise = inputs
        latent = model.rssm.split(feat)
        action, collected = policy(latent, action_noise)
        feat = feature(imagine_step(model, params, latent, action, latent_noise))
        return feat, (feat, collected)

    first = feature(start)
    _, (feats, collected) = jax.lax.scan(step, first, (noise, policy_noise), length=horizon)
    return model.rssm.split(jnp.concatenate([first[None], feats])), collected


def model_losses(
    model: WorldModel,
    params: Params,
    config: LossConfig,
    batch: Mapping,
    latents: Latent,
    stats: Array,
    discount: float,
) -> tuple[dict[str, Array], Metrics]:
    """Losses of the model: reconstruction, reward, continuation and both sides of the KL balance.

    Args:
      model: networks.
      params: their parameters.
      config: free nats.
      batch: observation, reward, is_terminal and is_last [B, T].
      latents: posterior latents of the batch, leaves [B, T, ...].
      stats: their statistics [B, T, S, K or 2].
      discount: part of the continuation target, as published: 1 - 1/horizon.

    Returns:
      Unscaled losses [B, T] by name (observations under their own key), and metrics.
    """
    chex.assert_equal_shape([batch["reward"], batch["is_terminal"], batch["is_last"]])
    chex.assert_equal_shape_prefix([batch["reward"], latents["deter"], stats], 2)
    feat = feature(latents)
    terms = reconstruction_losses(
        model, model.decoder.apply(params["decoder"], latents), batch["observation"]
    )
    reward_logits = model.reward.apply(params["reward"], feat)
    terms["reward"] = transforms.two_hot_loss(reward_logits, batch["reward"], model.reward_bins)
    cont_target = (1.0 - batch["is_terminal"]) * discount
    terms["cont"] = losses.binary_cross_entropy(
        model.cont.apply(params["cont"], feat)[..., 0], cont_target
    )
    if model.mask.masks:
        terms["mask"] = mask_loss(model, params, feat, batch)

    prior_stats = model.rssm.apply(params["rssm"], latents["deter"], method="prior")
    post, prior = model.rssm.distribution(stats), model.rssm.distribution(prior_stats)
    held_post, held_prior = (
        model.rssm.distribution(jax.lax.stop_gradient(s)) for s in (stats, prior_stats)
    )
    terms["dynamics"] = losses.free_kl(held_post, prior, config.free_nats)
    terms["representation"] = losses.free_kl(post, held_prior, config.free_nats)
    metrics = {
        "prior_entropy": prior.entropy(),
        "posterior_entropy": post.entropy(),
        "kl": held_post.kl_divergence(held_prior),
    }
    return terms, means(metrics)


def reconstruction_losses(
    model: WorldModel, predictions: Mapping[str, Array], observation: Mapping[str, Array]
) -> dict[str, Array]:
    """The loss of every observation key, named `observation/KEY`, summed over its event: [B, T]."""
    terms = {}
    for key, spec in model.decoder.observations:
        target = observation[key]
        if spaces.kind(spec) == "image":
            terms[f"observation/{key}"] = losses.image_loss(predictions[key], target)
        elif spaces.kind(spec) == "discrete":
            terms[f"observation/{key}"] = losses.class_loss(
                predictions[key], target, len(spec.shape)
            )
        else:
            terms[f"observation/{key}"] = losses.symlog_loss(
                predictions[key], target, len(spec.shape)
            )
    return terms


def mask_loss(model: WorldModel, params: Params, feat: Array, batch: Mapping) -> Array:
    """Cross-entropy of the predicted masks, summed over all classes of all actions: [B, T]; 0 on
    the last step of an episode, where no action is taken."""
    chex.assert_shape(feat, (*batch["is_last"].shape, None))
    loss = jnp.zeros(batch["is_last"].shape)
    for key, logits in model.mask.apply(params["mask"], feat).items():
        valid = batch["observation"][spaces.mask_key(key)].astype(jnp.float32)
        entries = losses.binary_cross_entropy(logits, valid)
        loss += entries.reshape(*loss.shape, -1).sum(-1)
    return jnp.where(batch["is_last"], 0.0, loss)


def means(arrays: Mapping[str, Array]) -> Metrics:
    """The mean of each array; arrays of equal shape are averaged in one operation."""
    found: Metrics = {}
    for shape in dict.fromkeys(x.shape for x in arrays.values()):
        names = [name for name, x in arrays.items() if x.shape == shape]
        together = jnp.stack([arrays[name] for name in names]).reshape(len(names), -1)
        found |= dict(zip(names, together.mean(-1), strict=True))
    return found


def swap(tree: Tree) -> Tree:
    """Exchanges the first two axes of every array: batch-major to time-major and back."""
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), tree)


def mask(x: Array, keep: Array) -> Array:
    """Zeroes the rows of x [*batch, ...] where keep [*batch] is False."""
    chex.assert_type(keep, bool)
    chex.assert_equal_shape_prefix([x, keep], keep.ndim)
    return jnp.where(keep.reshape(*keep.shape, *[1] * (x.ndim - keep.ndim)), x, 0)
