"""The policy as one function of plain arrays, its weights inside."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dreamer.agent import agent as agents
from dreamer.agent import interface
from dreamer.agent.agent import Agent, Carry
from dreamer.run.policy import PARTS

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
        weights = {name: params[name] for name in PARTS}
        # As they are used: half the bytes where that is bfloat16.
        self._weights = jax.device_get(
            jax.jit(partial(agents.cast_kernels, dtype=agent.dtype))(weights)
        )
        carry = jax.eval_shape(partial(agents.initial_carry, agent, 1))
        self._dtypes = {"action": carry.action.dtype} | {
            k: x.dtype for k, x in carry.latent.items()
        }
        parts = {**carry.latent, "action": carry.action}
        self.memory = {key: _struct(x.shape[1:], np.float32) for key, x in parts.items()}
        seen = interface.seen(agent)
        self.observation = {key: _struct(x.shape, x.dtype) for key, x in seen.items()}
        self.action = {key: _struct(x.shape, x.dtype) for key, x in agent.actions.items()}
        noise = jax.eval_shape(lambda: self.noise(1, np.uint32(0)))
        self.noise_form = {key: _struct(x.shape[1:], x.dtype) for key, x in noise.items()}

    def __call__(self, memory: Any, observation: Any, is_first: Array, seed: Array) -> tuple:
        """Draws by a seed, an unsigned integer that is another one for every step."""
        noise = self.noise(is_first.shape[0], seed)
        return self.with_noise(memory, observation, is_first, noise)

    def with_noise(self, memory: Any, observation: Any, is_first: Array, noise: Any) -> tuple:
        """Draws by given noise, see `noise`."""
        latent = {key: x.astype(self._dtypes[key]) for key, x in memory.items()}
        carry = Carry(latent, latent.pop("action"))
        drawn = {key: x for key, x in noise.items() if key != "latent"}
        carry, action, _ = agents.act_with(
            *(self._agent, self._weights, carry, observation, is_first),
            *(noise["latent"], drawn or None),
        )
        memory = {**carry.latent, "action": carry.action}
        return {key: x.astype(jnp.float32) for key, x in memory.items()}, action

    def noise(self, num_envs: Any, seed: Any) -> dict[str, Array]:
        """What `seed` draws: `latent` [N, ...], and the key of every action unless greedy."""
        key = jax.random.fold_in(jax.random.key(0), seed)
        latent, action = agents.acting_noise(self._agent, key, num_envs, self._greedy)
        return {"latent": latent, **(action or {})}

    def noise_described(self) -> dict[str, Any]:
        """Shapes and distributions of `noise` for one environment."""
        gaussian = self._agent.config.rssm.latent == "gaussian"

        def kind(key: str) -> str:
            normal = gaussian if key == "latent" else self.action[key].dtype.kind == "f"
            return "standard normal" if normal else "standard gumbel"

        return {
            key: {"shape": x.shape, "dtype": x.dtype.name, "distribution": kind(key)}
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
