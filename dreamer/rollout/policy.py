"""The compiled policy of N environments, with what it remembers between steps."""

from collections.abc import Callable
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
    """Acts in N environments and holds their carry; `reset` before the first step.

    Args:
      agent: networks.
      num_envs: N.
      greedy: mode of the policy instead of a sample.
      device: that of the parameters; None is the first.
      act: of `compile_act`, to share it between policies.
      share: (i, n) where this is the i-th of n policies that draw as one.
    """

    def __init__(
        self,
        agent: Agent,
        num_envs: int,
        greedy: bool = False,
        device: jax.Device | None = None,
        act: Callable | None = None,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        self.num_envs = num_envs
        self.carry: Carry
        self._agent, self._device = agent, device
        self._seen = tuple(agent.seen)
        self._compile = lambda function: compile_act(function, greedy, share)
        self._act = act or self._compile(agent.act)
        self._key: jax.Array
        self._first = True  # no step since the carry was set

    def enter(self, act: Act) -> None:
        """Acts by another function from here on, that of the next phase."""
        self._act = self._compile(act)

    def reset(self, key: jax.Array) -> None:
        """Starts from the initial carry; from here on the draws of step n follow from `key`, n."""
        self._first = True
        fresh = key, self._agent.initial_carry(self.num_envs)
        self._key, self.carry = mesh.to_device(fresh, self._device)

    def get_state(self) -> dict[str, Any]:
        """The carry as numpy arrays in nested dicts."""
        state: dict[str, Any] = serialization.to_state_dict(jax.device_get(self.carry))
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores a carry, also one that was computed in another dtype.

        Raises:
          UserError: it has other arrays.
        """
        self.carry = mesh.to_device(restored_carry(self.carry, state), self._device)
        self._first = True

    def __call__(
        self, params: Any, time_step: dm_env.TimeStep, step: int
    ) -> tuple[dict[str, np.ndarray], dict[str, jax.Array]]:
        """One action per environment.

        Args:
          params: at least those of `Agent.acting`.
          time_step: batched, leaves [N, ...].
          step: number of this step, which decides the random draws, modulo 2**32.

        Returns:
          Actions [N, ...] by key, and the latents as replay stores them, still on the device.
        """
        needed = {name: params[name] for name in self._agent.acting}
        first = time_step.step_type == dm_env.StepType.FIRST
        seen = {key: time_step.observation[key] for key in self._seen}
        if self._first:  # or acting would be compiled again for the carry that it gives
            self.carry, self._first = mesh.place_like(self.carry, needed), False
        carry, action, latent = self._act(
            needed, self.carry, seen, first, self._key, np.uint32(step % 2**32)
        )
        action, self.carry = jax.device_get(action), carry  # unless the call failed
        return action, dict(latent)


class RandomPolicy:
    """Uniformly random actions, of those that masks allow."""

    def __init__(self, num_envs: int, spec: Any, seed: int) -> None:
        self.num_envs = num_envs
        self._spec, self._rng = spec, np.random.default_rng(seed)

    def reset(self, key: jax.Array) -> None:
        """Keeps its generator, which has a seed of its own."""

    def __call__(
        self, params: Any, time_step: dm_env.TimeStep, step: int
    ) -> tuple[dict[str, np.ndarray], dict]:
        """Actions [N, ...] by key, and no latents."""
        seen = time_step.observation
        return random_action(self._spec, self.num_envs, self._rng, seen), {}


def compile_act(function: Act, greedy: bool, share: tuple[int, int] = (0, 1)) -> Callable:
    """Compiles one step of the policy, with the number of the step for its draws."""

    def act(params: Any, carry: Carry, observation: Any, first: Any, key: Any, step: Any) -> Any:
        key = jax.random.fold_in(key, step)
        return function(params, carry, observation, first, key, greedy, share)

    return jax.jit(act)


def restored_carry(like: Carry, state: dict[str, Any]) -> Carry:
    """The carry of nested dicts of arrays, in the dtypes of one like it.

    Raises:
      UserError: it has other arrays.
    """
    tree.refuse_others("carry", state, serialization.to_state_dict(like))
    saved = serialization.from_state_dict(like, state)
    return jax.tree.map(lambda x, own: np.asarray(x).astype(own.dtype), saved, like)
