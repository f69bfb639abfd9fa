"""Policies of N environments: compiled from an agent, with its carry, or random."""

from collections.abc import Callable
from functools import partial
from typing import Any

import dm_env
import jax
import numpy as np
from flax import serialization

from dreamer.agents.interface import Act, Agent, Carry
from dreamer.distributed import mesh
from dreamer.envs.base import random_action
from dreamer.replay import tree


class Policy:
    """Acts in N environments and holds their carry; call `reset` before the first step.

    Args:
      agent: networks.
      num_envs: N.
      greedy: takes the mode of the policy instead of a sample.
      device: device of the parameters; None is the first.
      act: result of `compile_act`, to share it between policies.
      shard: (i, n) of the i-th of n policies that draw as one of n times N environments.
    """

    def __init__(
        self,
        agent: Agent,
        num_envs: int,
        greedy: bool = False,
        device: jax.Device | None = None,
        act: Callable | None = None,
        shard: tuple[int, int] = (0, 1),
    ) -> None:
        self.num_envs = num_envs
        self.carry: Carry
        self._agent, self._device = agent, device
        self._compile = partial(compile_act, greedy=greedy, shard=shard)
        self._act = act or self._compile(agent.act)
        self._key: jax.Array
        self._first = True  # no step since the carry was set

    def enter(self, act: Act) -> None:
        """Acts by another function from now on, that of the next phase."""
        self._act = self._compile(act)

    def reset(self, key: jax.Array) -> None:
        """Starts from the initial carry; the draws of step n then follow from `key` and n."""
        self._first = True
        fresh = key, self._agent.initial_carry(self.num_envs)
        self._key, self.carry = mesh.to_device(fresh, self._device)

    def get_state(self) -> dict[str, Any]:
        """The carry as numpy arrays in nested dicts."""
        state: dict[str, Any] = serialization.to_state_dict(jax.device_get(self.carry))
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores a carry, also from another dtype.

        Raises:
          UserError: it has other arrays.
        """
        self.carry = mesh.to_device(restored_carry(self.carry, state), self._device)
        self._first = True

    def __call__(
        self, params: Any, time_step: dm_env.TimeStep, step: int
    ) -> tuple[dict[str, np.ndarray], dict[str, jax.Array]]:
        """Chooses one action per environment.

        Args:
          params: of the networks, at least those of `Agent.acting`.
          time_step: batched, leaves [N, ...].
          step: number of this step, which determines the draws, modulo 2**32.

        Returns:
          Actions [N, ...] by key, and the latents as replay stores them, still on the device.
        """
        needed = {name: params[name] for name in self._agent.acting}
        first = time_step.step_type == dm_env.StepType.FIRST
        seen = {key: time_step.observation[key] for key in self._agent.seen}
        if self._first:  # or acting would be compiled again for the carry that it returns
            self.carry, self._first = mesh.place_like(self.carry, needed), False
        carry, action, latent = self._act(
            needed, self.carry, seen, first, self._key, np.uint32(step % 2**32)
        )
        action, self.carry = jax.device_get(action), carry  # unless the call failed
        return action, dict(latent)


class RandomPolicy:
    """Uniformly random actions among those that masks allow."""

    def __init__(self, num_envs: int, spec: Any, seed: int) -> None:
        self.num_envs = num_envs
        self._spec, self._rng = spec, np.random.default_rng(seed)

    def reset(self, key: jax.Array) -> None:
        """Does nothing: its generator has a seed of its own."""

    def __call__(
        self, params: Any, time_step: dm_env.TimeStep, step: int
    ) -> tuple[dict[str, np.ndarray], dict]:
        """Actions [N, ...] by key, and no latents."""
        return random_action(self._spec, self.num_envs, self._rng, time_step.observation), {}


ActingPolicy = Policy | RandomPolicy


def compile_act(function: Act, greedy: bool, shard: tuple[int, int] = (0, 1)) -> Callable:
    """Compiles one step of the policy, whose draws follow from a key and the number of the step."""

    def act(params: Any, carry: Carry, observation: Any, first: Any, key: Any, step: Any) -> Any:
        key = jax.random.fold_in(key, step)
        return function(params, carry, observation, first, key, greedy, shard)

    return jax.jit(act)


def restored_carry(like: Carry, state: dict[str, Any]) -> Carry:
    """Restores a carry from nested dicts of arrays, in the dtypes of `like`.

    Raises:
      UserError: it has other arrays.
    """
    tree.refuse_others("carry", state, serialization.to_state_dict(like))
    saved = serialization.from_state_dict(like, state)
    return jax.tree.map(lambda x, own: np.asarray(x).astype(own.dtype), saved, like)
