"""The policy as one function of plain arrays, which includes its weights."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dreamer.agents.interface import Agent

Form = dict[str, jax.ShapeDtypeStruct]  # of one environment, by key


@dataclass(frozen=True)
class Exported:
    """A converted policy."""

    file: str  # its name in the folder
    loader: str  # script in this package that goes with it
    call: str  # how to call it
    data: bytes
    num_envs: int  # batch size; 0 is any
    act: Callable  # (memory, observation, is_first, seed) to (memory, action), loaded from `data`
    more: dict[str, Any] = field(default_factory=dict)  # for policy.json
    # A number of steps to the noise inputs of `act`, [T, N, ...] by name.
    draws: Callable[[int], dict[str, np.ndarray]] = lambda steps: {}


class PolicyFunction:
    """(memory, observation, is_first, seed) to (memory, action), of N environments.

    With seed n, it draws what step n of a `Policy` reset with key 0 draws. Memory is float32, which
    represents the narrower types of the computation exactly.

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
        leaves = jax.tree_util.tree_leaves_with_path(self._carry)
        self.memory = {_name(path): _struct(x.shape[1:], np.float32) for path, x in leaves}
        self.observation = {key: _struct(x.shape, x.dtype) for key, x in agent.seen.items()}
        self.action = {key: _struct(x.shape, x.dtype) for key, x in agent.actions.items()}
        noise = jax.eval_shape(lambda: self.noise(1, np.uint32(0)))
        self.noise_form = {key: _struct(x.shape[1:], x.dtype) for key, x in noise.items()}

    def __call__(self, memory: Any, observation: Any, is_first: Array, seed: Array) -> tuple:
        """Draws by a seed, an unsigned integer that differs for every step."""
        noise = self.noise(is_first.shape[0], seed)
        return self.with_noise(memory, observation, is_first, noise)

    def with_noise(self, memory: Any, observation: Any, is_first: Array, noise: Any) -> tuple:
        """Draws by given noise, see `noise`."""
        carry = jax.tree_util.tree_map_with_path(
            lambda path, x: memory[_name(path)].astype(x.dtype), self._carry
        )
        carry, action, _ = self._agent.act_with(self._weights, carry, observation, is_first, noise)
        leaves = jax.tree_util.tree_leaves_with_path(carry)
        return {_name(path): x.astype(jnp.float32) for path, x in leaves}, action

    def noise(self, num_envs: Any, seed: Any) -> dict[str, Array]:
        """Noise drawn by `seed`: `latent` [N, ...], and the key of every action unless greedy."""
        key = jax.random.fold_in(jax.random.key(0), seed)
        return self._agent.noise(key, num_envs, self._greedy)

    def noise_described(self) -> dict[str, Any]:
        """Shapes and distributions of `noise` for one environment."""
        return {
            key: form | {"distribution": self._agent.noise_kind(key)}
            for key, form in forms(self.noise_form).items()
        }


def forms(part: Form) -> dict[str, dict[str, Any]]:
    """Shapes and types by key, for JSON."""
    return {key: {"shape": x.shape, "dtype": x.dtype.name} for key, x in part.items()}


def batched(form: Form, num_envs: Any) -> Form:
    """The form of N environments."""
    return {key: _struct((num_envs, *x.shape), x.dtype) for key, x in form.items()}


def _name(path: tuple[Any, ...]) -> str:
    """The name of a leaf of a carry: the last part of its path."""
    return jax.tree_util.keystr(path[-1:], simple=True)


def _struct(shape: tuple, dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, np.dtype(dtype))
