"""Dreamer behind the interface of agents."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from dreamer.agents import interface
from dreamer.agents.dreamer import imagine, learning, parts, report
from dreamer.config.agent import AgentConfig
from dreamer.nets.spaces import Specs


@dataclass(frozen=True, repr=False)
class Dreamer(parts.Parts, interface.Agent):
    """DreamerV3. Source: Hafner et al. 2025."""

    acting = ("encoder", "rssm", "actor")

    state_of = parts.state_of
    initial_carry = parts.initial_carry
    noise = parts.noise
    act_with = parts.act_with
    train_step = learning.train_step
    open_loop = report.open_loop
    imagine = imagine.imagine

    @property
    def seen(self) -> Specs:
        return dict(self.model.encoder.observations)

    @property
    def latent(self) -> Mapping[str, tuple[tuple[int, ...], Any]]:
        carry = jax.eval_shape(partial(self.initial_carry, 1))
        stored = jax.eval_shape(partial(parts.stored_latent, self), carry.latent)
        return {key: (x.shape[1:], np.dtype(x.dtype)) for key, x in stored.items()}

    def compact(self, params: interface.Params) -> interface.Params:
        return parts.cast_kernels(params, self.dtype)

    def noise_kind(self, name: str) -> str:
        gaussian = self.config.rssm.latent == "gaussian"
        normal = gaussian if name == "latent" else self.actions[name].dtype.kind == "f"
        return "standard normal" if normal else "standard gumbel"

    @property
    def images(self) -> tuple[str, ...]:
        predicted = self.model.decoder.observations
        return tuple(key for key, spec in predicted if len(spec.shape) == 3)


def make(config: AgentConfig, observations: Specs, actions: Specs, updates: int = 0) -> Dreamer:
    """Dreamer for the spaces of an environment, see `parts.build`."""
    return Dreamer(**vars(parts.build(config, observations, actions, updates)))
