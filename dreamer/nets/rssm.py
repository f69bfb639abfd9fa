"""The recurrent state-space model: one step of the block GRU, the posterior and the prior."""

from collections.abc import Mapping

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
    twin_blocks,
)
from dreamer.ops import distributions, random
from dreamer.ops.distributions import Distribution

Latent = Mapping[str, Array]  # deter [..., D] and stoch [..., S, K] (gaussian: [..., S])


class RSSM(nn.Module):
    """Deterministic state by a block GRU and a stochastic latent, categorical or gaussian.

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
        layers = range(config.dynamics_layers)
        self.dynamics_hidden = [BlockLinear(config.deter, config.blocks, dtype) for _ in layers]
        self.dynamics_norm = [RMSNorm(dtype) for _ in layers]
        self.gates = BlockLinear(3 * config.deter, config.blocks, dtype)
        self.posterior_in = TwoInputLinear(config.hidden, dtype)
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
    def _shared_row(self) -> int:
        """Where the kernel of the first layer begins with the input that all blocks share."""
        return self.config.deter // self.config.blocks

    def action_part(self, action: Array) -> Array:
        """What `core` needs of an action, before any state is known: [..., A] to [..., D]."""
        row = self._shared_row + 2 * self.config.hidden
        return self.dynamics_hidden[0].share(self._embed_action(action), row)

    def _embed_action(self, action: Array) -> Array:
        """[..., A] to [..., H]; entries beyond [-1, 1] are scaled down."""
        return self.embed_action(action / jax.lax.stop_gradient(jnp.maximum(1.0, jnp.abs(action))))

    def token_part(self, token: Array) -> Array:
        """What `posterior` needs of a token, before any state is known: [..., E] to [..., H]."""
        return self.posterior_in.second(token)

    def core(self, feat: Array, action_part: Array) -> Array:
        """The next deterministic state, before anything is seen.

        Args:
          feat: [..., F].
          action_part: [..., D], of the action taken in that state.

        Returns:
          [..., D].
        """
        deter, layer = feat[..., : self.config.deter], self.dynamics_hidden[0]
        blocks = [block.variables["params"] for block in (self.embed_deter, self.embed_stoch)]
        state = merge_blocks(twin_blocks(blocks, feat, self.dtype))
        x = layer.own(deter) + layer.share(state, self._shared_row) + action_part
        return self._gru(deter, x)

    def _gru(self, deter: Array, x: Array) -> Array:
        """The next deterministic state, [..., D], from this one and its first layer's product x."""
        x = nn.silu(self.dynamics_norm[0](x))
        for layer, norm in zip(self.dynamics_hidden[1:], self.dynamics_norm[1:], strict=True):
            x = nn.silu(norm(layer(x)))
        blocks = self.config.blocks
        reset, candidate, update = jnp.split(split_blocks(self.gates(x), blocks), 3, -1)
        candidate = jnp.tanh(jax.nn.sigmoid(reset) * candidate)
        update = jax.nn.sigmoid(update - 1)
        deter = update * candidate + (1 - update) * split_blocks(deter, blocks)
        if jax.default_backend() == "cpu":
            # Computed block by block, which is fastest, and not by the shape in which it is read.
            deter = jax.lax.optimization_barrier(deter)
        return merge_blocks(deter)

    def posterior(self, deter: Array, token_part: Array) -> Array:
        """Statistics given what is seen: deter [..., D], [..., H] to [..., S, K or 2]."""
        x = nn.silu(self.posterior_norm(self.posterior_in.add_first(deter, token_part)))
        return self._shape(self.posterior_out(self.posterior_mlp(x)))

    def prior(self, deter: Array) -> Array:
        """Statistics of the latent before seeing: deter [..., D] to [..., S, K or 2]."""
        return self._shape(self.prior_out(self.prior_mlp(deter)))

    def _shape(self, flat: Array) -> Array:
        return flat.reshape(*flat.shape[:-1], self.config.stoch, -1)

    def __call__(
        self, deter: Array, stoch: Array, action: Array, token: Array
    ) -> tuple[Array, Array]:
        """One whole step in its plain form, which creates the parameters.

        Returns:
          Prior and posterior statistics, those that the methods above compute in parts.
        """
        stoch = stoch.reshape(*deter.shape[:-1], -1)
        shared = self.embed_deter(deter), self.embed_stoch(stoch), self._embed_action(action)
        deter = self._gru(deter, self.dynamics_hidden[0](deter, jnp.concatenate(shared, -1)))
        x = nn.silu(self.posterior_norm(self.posterior_in(deter, token)))
        return self.prior(deter), self._shape(self.posterior_out(self.posterior_mlp(x)))

    def distribution(self, stats: Array) -> Distribution:
        """The distribution of one latent, an event over all S groups; needs no parameters."""
        if self.config.latent == "categorical":
            return distributions.independent(distributions.one_hot(stats, self.config.unimix), 1)
        std = jax.nn.softplus(stats[..., 1].astype(jnp.float32)) + self.config.min_std
        return distributions.independent(distributions.normal(stats[..., 0], std), 1)

    def noise(self, key: Array, batch: tuple[int, ...]) -> Array:
        """What a latent is made from: [*batch, S, K] Gumbel or [*batch, S] normal noise."""
        draw = random.gumbel if self.config.latent == "categorical" else jax.random.normal
        return draw(key, (*batch, *self._stoch_shape))

    def split(self, feat: Array) -> Latent:
        """The inverse of `feature`: [..., F] to a latent."""
        deter, stoch = feat[..., : self.config.deter], feat[..., self.config.deter :]
        return {"deter": deter, "stoch": stoch.reshape(*feat.shape[:-1], *self._stoch_shape)}

    def initial(self, batch: int) -> Latent:
        """The zero state that every episode starts from."""
        return {
            "deter": jnp.zeros((batch, self.config.deter), self.dtype),
            "stoch": jnp.zeros((batch, *self._stoch_shape), self.dtype),
        }


def feature(latent: Latent) -> Array:
    """What the heads see: deter and the flattened stoch, [..., D + S*K]."""
    deter = latent["deter"]
    return jnp.concatenate([deter, latent["stoch"].reshape(*deter.shape[:-1], -1)], -1)


def pack(config: RSSMConfig, latent: Latent) -> Latent:
    """The latent as replay stores it: one-hot groups become class numbers, [..., S] uint8."""
    if config.latent == "gaussian":
        return latent
    return {"deter": latent["deter"], "stoch": latent["stoch"].argmax(-1).astype(jnp.uint8)}


def unpack(config: RSSMConfig, stored: Latent, dtype: DTypeLike) -> Latent:
    """The inverse of `pack`, in the compute dtype; `NO_CLASS` is a group of zeros."""
    stoch = stored["stoch"]
    if config.latent == "categorical":
        stoch = jax.nn.one_hot(stoch, config.classes)
    return {"deter": stored["deter"].astype(dtype), "stoch": stoch.astype(dtype)}
