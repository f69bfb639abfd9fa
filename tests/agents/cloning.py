"""A second agent, as small as it can be: one layer that repeats recorded actions.

It first collects at random, then learns without acting, and at last acts; or it evolves by the
returns of its episodes. It shows that nothing above `agents/` knows Dreamer.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from dreamer.agents.interface import Agent, Phase
from dreamer.config.agent import AgentConfig
from dreamer.nets.spaces import Specs


@struct.dataclass
class State:
    params: Any
    updates: Array


@dataclass(frozen=True)
class Cloning(Agent):
    """Continuous vectors in, one discrete action out."""

    config: AgentConfig
    observations: Specs
    actions: Specs
    updates: int
    dtype: Any = jnp.float32
    acting = ("layer",)
    collected = 30  # steps

    @property
    def phases(self) -> tuple[Phase, ...]:
        return (
            Phase("collect", self.act_randomly, None, steps=self.collected),
            Phase("clone", None, self.train_step, updates=5),
            Phase("act", self.act, self.train_step),
        )

    @property
    def latent(self) -> Mapping[str, Any]:
        return {"count": ((), np.dtype(np.int32))}

    def init(self, key: Array) -> State:
        return self.state_of({"layer": {"kernel": jax.random.normal(key, (self._inputs, 2))}})

    def state_of(self, params: Any) -> State:
        return State(params, jnp.zeros((), jnp.int32))

    def initial_carry(self, num_envs: int) -> dict[str, Array]:
        return {"count": jnp.zeros(num_envs, jnp.int32)}

    def noise(self, key: Array, num_envs: int, greedy: bool) -> dict[str, Array]:
        return {} if greedy else {"action": jax.random.gumbel(key, (num_envs, 2))}

    def act_with(
        self, params: Any, carry: Any, observation: Any, is_first: Array, noise: Any
    ) -> tuple[Any, Any, Any]:
        logits = self._inputs_of(observation) @ params["layer"]["kernel"] + noise.get("action", 0)
        count = jnp.where(is_first, 0, carry["count"] + 1)
        return {"count": count}, {"action": logits.argmax(-1).astype(jnp.int32)}, {"count": count}

    def act_randomly(
        self, params: Any, carry: Any, observation: Any, is_first: Array, key: Array, *_: Any
    ) -> tuple[Any, Any, Any]:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return self.act(zeros, carry, observation, is_first, key, greedy=False)

    def train_step(
        self, state: State, batch: Mapping, key: Array, axis_name: str | None = None
    ) -> tuple[State, Any, Any]:
        inputs = self._inputs_of(batch["observation"])
        target = jax.nn.one_hot(batch["action"]["action"], 2)

        def loss(params: Any) -> Array:
            return -(jax.nn.log_softmax(inputs @ params["layer"]["kernel"]) * target).sum(-1).mean()

        value, gradient = jax.value_and_grad(loss)(state.params)
        gradient = jax.lax.pmean(gradient, axis_name) if axis_name else gradient
        params = jax.tree.map(lambda x, g: x - 0.1 * g, state.params, gradient)
        metrics = {"loss/total": value, "optimizer/skipped": jnp.zeros(())}
        latent = {"count": jnp.full(batch["is_first"][:, 1:].shape, 7, jnp.int32)}
        return State(params, state.updates + 1), latent, metrics

    @property
    def _inputs(self) -> int:
        return sum(int(np.prod(spec.shape)) for spec in self.observations.values())

    def _inputs_of(self, observation: Mapping[str, Array]) -> Array:
        parts = [observation[key] for key in sorted(self.observations)]
        return jnp.concatenate([x.astype(jnp.float32) for x in parts], -1)


@dataclass(frozen=True)
class Evolving(Cloning):
    """Each environment acts with weights of its own, in the carry; the best ones are kept."""

    acting = ()

    @property
    def phases(self) -> tuple[Phase, ...]:
        return (Phase("evolve", self.act, None, evolve=self.evolve),)

    def initial_carry(self, num_envs: int) -> dict[str, Array]:
        kernels = jax.random.normal(jax.random.key(0), (num_envs, self._inputs, 2))
        return {"kernel": kernels, "count": jnp.zeros(num_envs, jnp.int32)}

    def act_with(
        self, params: Any, carry: Any, observation: Any, is_first: Array, noise: Any
    ) -> tuple[Any, Any, Any]:
        logits = jnp.einsum("ni,nio->no", self._inputs_of(observation), carry["kernel"])
        count = jnp.where(is_first, 0, carry["count"] + 1)
        action = {"action": logits.argmax(-1).astype(jnp.int32)}
        return carry | {"count": count}, action, {"count": count}

    def evolve(self, state: State, carry: Any, ended: Any) -> tuple[State, Any]:
        best = max(ended, key=lambda one: one[1])[0]
        params = {"layer": {"kernel": carry["kernel"][best]}}
        return state.replace(params=params, updates=state.updates), carry
