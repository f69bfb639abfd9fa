"""The policy as one function of plain arrays, its weights inside."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import serialization
from jax import Array

from dreamer.agents.interface import Agent
from dreamer.replay import tree

Form = dict[str, jax.ShapeDtypeStruct]  # of one environment, by key


@dataclass(frozen=True)
class Exported:
    """A converted policy."""

    file: str  # its name in the folder
    loader: str  # script in this package that goes with it
    call: str  # in words
    data: bytes
    num_envs: int  # that it is for; 0 is any number
    act: Callable  # (memory, observation, is_first, seed) to (memory, action), loaded from `data`
    more: dict[str, Any] = field(default_factory=dict)  # to be told beside shapes
    # Noise by steps and environments that the draws of `act` are made of, [T, N, ...] by name.
    draws: Callable[[int, int], dict[str, np.ndarray]] = lambda steps, num_envs: {}


class PolicyFunction:
    """(memory, observation, is_first, seed) to (memory, action), of N environments.

    The draws of step n are those of `Policy` reset with the key of 0, if n is its seed. Memory is
    float32, which holds the narrower types that it is computed in without loss.

    Args:
      agent: networks.
      params: their parameters.
      greedy: mode of the policy instead of a sample; latents are sampled either way.
    """

    def __init__(self, agent: Agent, params: Any, greedy: bool) -> None:
        self._agent, self._greedy = agent, greedy
        weights = {name: params[name] for name in agent.acting}
        self._weights = jax.device_get(jax.jit(agent.compact)(weights))
        self._carry = jax.eval_shape(lambda: agent.initial_carry(1))
        leaves = self._flat(self._carry)
        self.memory = {key: _struct(x.shape[1:], np.float32) for key, x in leaves.items()}
        self.observation = {key: _struct(x.shape, x.dtype) for key, x in agent.seen.items()}
        self.action = {key: _struct(x.shape, x.dtype) for key, x in agent.actions.items()}
        noise = jax.eval_shape(lambda: self.noise(1, np.uint32(0)))
        self.noise_form = {key: _struct(x.shape[1:], x.dtype) for key, x in noise.items()}

    def __call__(self, memory: Any, observation: Any, is_first: Array, seed: Array) -> tuple:
        """Draws by a seed, an unsigned integer that is another one for every step."""
        noise = self.noise(is_first.shape[0], seed)
        return self.with_noise(memory, observation, is_first, noise)

    def with_noise(self, memory: Any, observation: Any, is_first: Array, noise: Any) -> tuple:
        """Draws by given noise, see `noise`."""
        form = tree.flatten(serialization.to_state_dict(self._carry))
        state = {path: memory[path[-1]].astype(x.dtype) for path, x in form.items()}
        carry = serialization.from_state_dict(self._carry, tree.unflatten(state))
        carry, action, _ = self._agent.act_with(self._weights, carry, observation, is_first, noise)
        return {key: x.astype(jnp.float32) for key, x in self._flat(carry).items()}, action

    def _flat(self, carry: Any) -> dict[str, Any]:
        """The leaves of a carry by their names."""
        return {path[-1]: x for path, x in tree.flatten(serialization.to_state_dict(carry)).items()}

    def noise(self, num_envs: Any, seed: Any) -> dict[str, Array]:
        """What `seed` draws: `latent` [N, ...], and the key of every action unless greedy."""
        key = jax.random.fold_in(jax.random.key(0), seed)
        return self._agent.noise(key, num_envs, self._greedy)

    def noise_described(self) -> dict[str, Any]:
        """Shapes and distributions of `noise` for one environment."""
        return {
            key: {
                "shape": x.shape,
                "dtype": x.dtype.name,
                "distribution": self._agent.noise_kind(key),
            }
            for key, x in self.noise_form.items()
        }


def batched(form: Form, num_envs: Any) -> Form:
    """The form of N environments."""
    return {key: _struct((num_envs, *x.shape), x.dtype) for key, x in form.items()}


def zeros(form: Form, num_envs: int) -> dict[str, np.ndarray]:
    """The memory before anything was seen."""
    return {key: np.zeros(x.shape, x.dtype) for key, x in batched(form, num_envs).items()}


def _struct(shape: tuple, dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, np.dtype(dtype))
