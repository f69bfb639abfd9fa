"""Environments written in JAX as a `BatchedEnv`, for the host."""

from collections.abc import Mapping
from typing import Any

import dm_env
import jax
import jax.numpy as jnp
import numpy as np

from dreamer.envs.base import Actions, BatchedEnv
from dreamer.envs.jax.episodes import EnvState, JaxEnv

# Keeps their keys apart from those of the run's other purposes, which have small numbers.
_PURPOSE = 2**31 - 1


class BatchedJax(BatchedEnv):
    """N environments, stepped together in one compiled call. They draw no frames."""

    def __init__(self, env: JaxEnv, num_envs: int, seed: int, first: int = 0) -> None:
        super().__init__(num_envs, env.simulator.observations, env.simulator.actions)
        self._keys = env_keys(seed, num_envs, first)
        self._reset, self._step = jax.jit(jax.vmap(env.reset)), jax.jit(env.step_all)
        self._state: Any = None

    def reset(self) -> dm_env.TimeStep:
        before = self._state
        none = np.zeros(self.num_envs, np.int32)
        episodes = none if before is None else np.asarray(before.episode) + 1
        return self._keep(*self._reset(self._keys, episodes))

    def step(self, action: Actions) -> dm_env.TimeStep:
        assert self._state is not None, "call reset first"
        return self._keep(*self._step(self._state, dict(action)))

    def get_state(self) -> dict[str, Any]:
        assert self._last is not None, "call reset first"
        return dump(self._state, self._last)

    def set_state(self, state: Mapping[str, Any]) -> tuple[np.ndarray, dm_env.TimeStep]:
        rows = state.get("time_step") or [[]]
        count = len(next(iter(rows.values())) if isinstance(rows, Mapping) else rows[0])
        if count != self.num_envs:
            raise ValueError(f"state of {count} environments given to {self.num_envs}")
        pattern = jax.eval_shape(self._reset, self._keys, np.zeros(self.num_envs, np.int32))
        loaded = load(state, pattern)
        if loaded is None:
            return np.zeros(self.num_envs, bool), self.reset()
        return np.ones(self.num_envs, bool), self._keep(*loaded)

    def _keep(self, state: Any, time_step: dm_env.TimeStep) -> dm_env.TimeStep:
        self._state, self._last = state, jax.device_get(time_step)
        return self._last


def env_keys(seed: int, num_envs: int, first: int = 0) -> np.ndarray:
    """The data of a random key per environment, from number `first` on: uint32 [N, 2]."""
    key = jax.random.fold_in(jax.random.key(seed), _PURPOSE)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, first + jnp.arange(num_envs))
    return np.asarray(jax.random.key_data(keys))


def dump(state: EnvState, time_step: dm_env.TimeStep) -> dict[str, Any]:
    """N environments and their last time step as copies of their arrays, by number.

    Arrays without elements are left out: checkpoints do not take them.
    """
    parts = {"state": state, "time_step": time_step}
    return {
        name: {
            str(number): np.array(leaf)
            for number, leaf in enumerate(jax.tree.leaves(part))
            if leaf.size
        }
        for name, part in parts.items()
    }


def load(
    saved: Mapping[str, Any], pattern: tuple[EnvState, dm_env.TimeStep]
) -> tuple[EnvState, dm_env.TimeStep] | None:
    """The inverse of `dump`, as numpy arrays; None for a state of other environments.

    Checkpoints of format 1 have nested lists in place of arrays, in JSON.
    """
    restored = []
    for name, part in zip(("state", "time_step"), pattern, strict=True):
        leaves, structure = jax.tree.flatten(part)
        found = saved.get(name, {})
        if isinstance(found, list):
            found = {str(number): np.asarray(value) for number, value in enumerate(found)}
        # Of an array without elements, a list keeps only the axes down to the empty one.
        found = {number: value for number, value in found.items() if value.size}
        expected = {str(number): leaf for number, leaf in enumerate(leaves)}
        found |= {n: np.zeros(leaf.shape) for n, leaf in expected.items() if not leaf.size}
        if {n: x.shape for n, x in found.items()} != {n: x.shape for n, x in expected.items()}:
            return None
        arrays = [found[number].astype(leaf.dtype) for number, leaf in expected.items()]
        restored.append(jax.tree.unflatten(structure, arrays))
    state, time_step = restored
    return state, time_step
