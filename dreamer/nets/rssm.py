"""The recurrent state-space model: one step of the block GRU, the posterior and the prior."""

import math
from collections.abc import Mapping

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from dreamer.config.agent import RSSMConfig
from dreamer.nets.layers import (
    MLP,
    Block,
    BlockLinear,
    RMSNorm,
    TwoInputLinear,
    linear,
    merge_blocks,
    split_blocks,
)
from dreamer.ops import distributions, random
from dreamer.ops.distributions import Distribution

Latent = Mapping[str, Array]  # deter [..., D] and stoch [..., S, K] (gaussian: [..., S])


class RSSM(nn.Module):
    """Deterministic state by a block GRU and a stochastic latent, categorical or gaussian.

    A step is split into parts, so that those of actions and tokens are computed for all steps
    at once before the loop over time.

    Statistics of a latent are the raw outputs of a network: logits [..., S, K] when categorical,
    mean and raw standard deviation [..., S, 2] when gaussian.
    """

    config: RSSMConfig
    dtype: DTypeLike

    def setup(self) -> None:
        config, dtype = self.config, self.dtype
        self.embed_deter = Block(config.hidden, dtype)
        self.embed_stoch = Block(config.hidden, dtype)
        self.embed_action = Block(config.hidden, dtype)
        shared = [3 * config.hidden] + [0] * (config.dynamics_layers - 1)
        self.dynamics_hidden = [
            BlockLinear(config.deter, config.deter, config.blocks, dtype, size) for size in shared
        ]
        self.dynamics_norm = [RMSNorm(dtype) for _ in shared]
        self.gates = BlockLinear(config.deter, 3 * config.deter, config.blocks, dtype)
        self.posterior_in = TwoInputLinear(config.deter, config.hidden, dtype)
        self.posterior_norm = RMSNorm(dtype)
        self.posterior_mlp = MLP(config.posterior_layers - 1, config.hidden, dtype)
        self.posterior_out = linear(self._outputs, dtype)
        self.prior_mlp = MLP(config.prior_layers, config.hidden, dtype)
        self.prior_out = linear(self._outputs, dtype)

    @property
    def _outputs(self) -> int:
        return self.config.stoch * (
            self.config.classes if self.config.latent == "categorical" else 2
        )

    @property
    def _stoch_shape(self) -> tuple[int, ...]:
        config = self.config
        return (config.stoch, config.classes) if config.latent == "categorical" else (config.stoch,)

    @property
    def _features(self) -> int:
        return self.config.deter + math.prod(self._stoch_shape)

    def __call__(self, feat: Array, action_part: Array, token_part: Array) -> tuple[Array, Array]:
        """One step: the next deterministic state, and the statistics of its posterior.

        Args:
          feat: [..., F].
          action_part: [..., D], of the action taken in that state; see `action_part`.
          token_part: [..., H], of what is observed next; see `token_part`.

        Returns:
          [..., D] and [..., S, K or 2].
        """
        deter = self.core(feat, action_part)
        return deter, self.posterior(deter, token_part)

    def action_part(self, action: Array) -> Array:
        """The part of `core` that depends on the action alone: [..., A] to [..., D]."""
        # Entries beyond [-1, 1] are scaled into it.
        action /= jax.lax.stop_gradient(jnp.maximum(1.0, jnp.abs(action)))
        embedded = self.embed_action(action)
        return self.dynamics_hidden[0].share(embedded, start=2 * self.config.hidden)

    def token_part(self, token: Array) -> Array:
        """The part of `posterior` that depends on the token alone: [..., E] to [..., H]."""
        return self.posterior_in.second(token)

    def core(self, feat: Array, action_part: Array) -> Array:
        """The next deterministic state, before its observation.

        Args:
          feat: [..., F].
          action_part: [..., D], of the action taken in that state.

        Returns:
          [..., D].
        """
        chex.assert_shape([feat, action_part], [(..., self._features), (..., self.config.deter)])
        chex.assert_equal_shape_prefix([feat, action_part], -1)
        deter, layer = feat[..., : self.config.deter], self.dynamics_hidden[0]
        state = self._embed_state(feat)
        x = layer(deter) + layer.share(state) + action_part
        return merge_blocks(self._gru(deter, x))

    def _embed_state(self, feat: Array) -> Array:
        """Both halves of the state, each through its own block: [..., F] to [..., 2 H]."""
        deter, stoch = jnp.split(feat, [self.config.deter], -1)
        return jnp.concatenate([self.embed_deter(deter), self.embed_stoch(stoch)], -1)

    def _gru(self, deter: Array, x: Array) -> Array:
        """Block GRU: the next deterministic state [..., G, D/G] from the current one and the
        product x [..., D] of the first layer."""
        x = nn.silu(self.dynamics_norm[0](x))
        for layer, norm in zip(self.dynamics_hidden[1:], self.dynamics_norm[1:], strict=True):
            x = nn.silu(norm(layer(x)))
        blocks = self.config.blocks
        reset, candidate, update = jnp.split(split_blocks(self.gates(x), blocks), 3, -1)
        candidate = jnp.tanh(jax.nn.sigmoid(reset) * candidate)
        update = jax.nn.sigmoid(update - 1)
        return update * candidate + (1 - update) * split_blocks(deter, blocks)

    def posterior(self, deter: Array, token_part: Array) -> Array:
        """Statistics given the observation: deter [..., D], [..., H] to [..., S, K or 2]."""
        chex.assert_equal_shape_prefix([deter, token_part], -1)
        x = nn.silu(self.posterior_norm(self.posterior_in.add_first(deter, token_part)))
        return self._shape(self.posterior_out(self.posterior_mlp(x)))

    def prior(self, deter: Array) -> Array:
        """Statistics without the observation: deter [..., D] to [..., S, K or 2]."""
        chex.assert_shape(deter, (..., self.config.deter))
        return self._shape(self.prior_out(self.prior_mlp(deter)))

    def _shape(self, flat: Array) -> Array:
        return flat.reshape(*flat.shape[:-1], self.config.stoch, -1)

    def distribution(self, stats: Array) -> Distribution:
        """The distribution of one latent, an event over all S groups; needs no parameters."""
        chex.assert_shape(stats, (..., self.config.stoch, None))
        if self.config.latent == "categorical":
            return distributions.independent(distributions.one_hot(stats, self.config.unimix), 1)
        std = jax.nn.softplus(stats[..., 1].astype(jnp.float32)) + self.config.min_std
        return distributions.independent(distributions.normal(stats[..., 0], std), 1)

    def noise(self, key: Array, batch: tuple[int, ...]) -> Array:
        """Noise of a latent: [*batch, S, K] Gumbel or [*batch, S] normal."""
        chex.assert_shape(key, ())
        draw = random.gumbel if self.config.latent == "categorical" else jax.random.normal
        return draw(key, (*batch, *self._stoch_shape))

    def split(self, feat: Array) -> Latent:
        """The inverse of `feature`: [..., F] to a latent."""
        chex.assert_shape(feat, (..., self._features))
        deter, stoch = feat[..., : self.config.deter], feat[..., self.config.deter :]
        return {"deter": deter, "stoch": stoch.reshape(*feat.shape[:-1], *self._stoch_shape)}

    def initial(self, batch: int) -> Latent:
        """The zero state that every episode starts from."""
        return {
            "deter": jnp.zeros((batch, self.config.deter), self.dtype),
            "stoch": jnp.zeros((batch, *self._stoch_shape), self.dtype),
        }


def init(config: RSSMConfig, key: Array, action: Array, token: Array) -> Mapping:
    """The parameters, float32, the same for every form of the step.

    Args:
      config: sizes.
      key: random key.
      action, token: [N, A] and [N, E], of any value.
    """
    chex.assert_rank([action, token], 2)

    def use(rssm: RSSM) -> None:
        feat = feature(rssm.initial(len(action)))
        deter, _ = rssm(feat, rssm.action_part(action), rssm.token_part(token))
        rssm.prior(deter)

    return RSSM(config, jnp.float32).init(key, method=use)


def feature(latent: Latent) -> Array:
    """Input of the heads: deter and the flattened stoch, [..., D + S*K]."""
    deter = latent["deter"]
    chex.assert_tree_shape_prefix(dict(latent), deter.shape[:-1])
    return jnp.concatenate([deter, latent["stoch"].reshape(*deter.shape[:-1], -1)], -1)


def pack(config: RSSMConfig, latent: Latent) -> Latent:
    """The latent as stored in replay: one-hot groups become class indices, uint8 [..., S]."""
    chex.assert_tree_shape_prefix(dict(latent), latent["deter"].shape[:-1])
    if config.latent == "gaussian":
        return latent
    return {"deter": latent["deter"], "stoch": latent["stoch"].argmax(-1).astype(jnp.uint8)}


def unpack(config: RSSMConfig, stored: Latent, dtype: DTypeLike) -> Latent:
    """The inverse of `pack`, in the compute dtype; `NO_CLASS` is a group of zeros."""
    chex.assert_shape(
        [stored["deter"], stored["stoch"]], [(..., config.deter), (..., config.stoch)]
    )
    stoch = stored["stoch"]
    if config.latent == "categorical":
        stoch = jax.nn.one_hot(stoch, config.classes)
    return {"deter": stored["deter"].astype(dtype), "stoch": stoch.astype(dtype)}
