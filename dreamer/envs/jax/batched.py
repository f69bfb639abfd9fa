"""Environments written in JAX behind the interface of all others, for the host."""

from collections.abc import Mapping
from typing import Any

import dm_env
import jax
import jax.numpy as jnp
import numpy as np

from dreamer.envs.base import Actions, Specs
from dreamer.envs.jax.episodes import JaxEnv


class BatchedJax:
    """N environments, stepped together in one compiled call. See `envs.base.BatchedEnv`."""

    def __init__(self, env: JaxEnv, num_envs: int, seed: int) -> None:
        self.num_envs = num_envs
        self._env = env
        self._keys = env_keys(seed, num_envs)
        self._reset, self._step = jax.jit(jax.vmap(env.reset)), jax.jit(jax.vmap(env.step))
        self._state: Any = None
        self._last: dm_env.TimeStep | None = None

    def observation_spec(self) -> Specs:
        return dict(self._env.simulator.observations)

    def action_spec(self) -> Specs:
        return dict(self._env.simulator.actions)

    def reset(self) -> dm_env.TimeStep:
        episodes = (
            np.zeros(self.num_envs, np.int32) if self._state is None else self._episodes() + 1
        )
        return self._keep(*self._reset(self._keys, episodes))

    def step(self, action: Actions) -> dm_env.TimeStep:
        assert self._state is not None, "call reset first"
        return self._keep(*self._step(self._state, dict(action)))

    def render(self) -> np.ndarray | None:
        return None

    def get_state(self) -> dict[str, Any]:
        assert self._last is not None, "call reset first"
        plain = self._state.replace(key=jax.random.key_data(self._state.key))
        return {
            "state": [np.asarray(leaf).tolist() for leaf in jax.tree.leaves(plain)],
            "time_step": [np.asarray(leaf).tolist() for leaf in jax.tree.leaves(self._last)],
        }

    def set_state(self, state: Mapping[str, Any]) -> tuple[np.ndarray, dm_env.TimeStep]:
        if self._state is None:
            self.reset()
        plain = self._state.replace(key=jax.random.key_data(self._state.key))
        plain = _filled(plain, state["state"], self.num_envs)
        moved = plain.replace(key=jax.random.wrap_key_data(plain.key))
        time_step = _filled(self._last, state["time_step"], self.num_envs)
        return np.ones(self.num_envs, bool), self._keep(moved, time_step)

    def close(self) -> None:
        pass

    def _episodes(self) -> np.ndarray:
        return np.asarray(self._state.episode)

    def _keep(self, state: Any, time_step: dm_env.TimeStep) -> dm_env.TimeStep:
        self._state, self._last = state, jax.device_get(time_step)
        return self._last


def env_keys(seed: int, num_envs: int) -> jax.Array:
    """A key per environment: [N]."""
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.arange(num_envs))


def _filled(tree: Any, values: list[Any], num_envs: int) -> Any:
    """The leaves of a tree with other values, of the same shapes and dtypes."""
    leaves, structure = jax.tree.flatten(tree)
    if len(values) != len(leaves) or len(values[0]) != num_envs:
        raise ValueError(f"state of other environments given to {num_envs}")
    arrays = [jnp.asarray(v, leaf.dtype) for v, leaf in zip(values, leaves, strict=True)]
    return jax.tree.unflatten(structure, arrays)
