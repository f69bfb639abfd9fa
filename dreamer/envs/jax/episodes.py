"""Episodes of one environment written in JAX, as dm_env time steps and pure functions."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import dm_env
import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from dreamer.envs.base import FIRST, LAST, MID, Specs

Observation = Mapping[str, Array]
Action = Mapping[str, Array]

SHARES = 16  # parts of the environments that slow resets are done for at a time


class Simulator(Protocol):
    """The physics of one environment; knows nothing of episodes."""

    observations: Specs
    actions: Specs
    limit: int  # steps of an episode; 0 is no limit

    def reset(self, key: Array) -> tuple[Any, Observation]:
        """A first state and what is seen of it, leaves as `observations` says."""
        ...

    def step(self, key: Array, state: Any, action: Action) -> tuple[Any, Observation, Array, Array]:
        """The next state, what is seen of it, the reward, and whether the state is terminal."""
        ...


@struct.dataclass
class EnvState:
    """Where an environment is. Episode k draws all its randomness from its key and k."""

    inner: Any  # of the simulator
    key: Array  # of the environment, its plain data uint32 [2]
    episode: Array  # int32, number of this episode
    time: Array  # int32, steps done in it
    over: Array  # bool, the last time step was LAST


@dataclass(frozen=True)
class JaxEnv:
    """One environment as pure functions: vmap `reset` over keys, and step N with `step_all`.

    Args:
      simulator: its physics.
      repeat: simulator steps per step, rewards summed.
      time_limit: steps until truncation, if that is before the simulator's own limit; or 0.
      slow_reset: whether a reset costs so much that none may be done in vain.
    """

    simulator: Simulator
    repeat: int = 1
    time_limit: int = 0
    slow_reset: bool = False

    @property
    def limit(self) -> int:
        """Steps until truncation; 0 is never."""
        own = -(-self.simulator.limit // self.repeat)  # rounded up
        return min(own, self.time_limit) if own and self.time_limit else own or self.time_limit

    def reset(self, key: Array, episode: Array | int = 0) -> tuple[EnvState, dm_env.TimeStep]:
        """Starts an episode of the environment whose key has this data."""
        episode = jnp.asarray(episode, jnp.int32)
        inner, observation = self.simulator.reset(self._key(key, episode, jnp.int32(0)))
        state = EnvState(inner, key, episode, jnp.int32(0), jnp.array(False))
        zero, one = jnp.float32(0), jnp.float32(1)
        return state, dm_env.TimeStep(jnp.int32(FIRST), zero, one, dict(observation))

    def step(self, state: EnvState, action: Action) -> tuple[EnvState, dm_env.TimeStep]:
        """One step; after LAST the action is ignored and the next episode gives FIRST."""
        # Both are computed, as under vmap they would be anyway.
        stepped = self._advance(state, action)
        restarted = self.reset(state.key, state.episode + 1)
        return jax.tree.map(lambda a, b: jnp.where(state.over, a, b), restarted, stepped)

    def step_all(self, states: EnvState, actions: Action) -> tuple[EnvState, dm_env.TimeStep]:
        """`step` of N environments, leaves [N, ...]; slow resets only for those that are over."""
        if not self.slow_reset:
            return jax.vmap(self.step)(states, actions)
        num_envs = len(states.over)
        share = -(-num_envs // SHARES)  # rounded up

        def restart(carry: tuple) -> tuple:
            left, found = carry
            index = jnp.nonzero(left, size=share, fill_value=num_envs)[0]  # N: nowhere
            fresh = jax.vmap(self.reset)(states.key[index], states.episode[index] + 1)
            return jax.tree.map(
                lambda old, new: old.at[index].set(new, mode="drop"),
                (left, found),
                (jnp.zeros(share, bool), fresh),
            )

        stepped = jax.vmap(self._advance)(states, actions)
        return jax.lax.while_loop(lambda carry: carry[0].any(), restart, (states.over, stepped))[1]

    def _advance(self, state: EnvState, action: Action) -> tuple[EnvState, dm_env.TimeStep]:
        inner, terminal, reward = state.inner, jnp.array(False), jnp.float32(0)
        observation: Observation = {}
        for number in range(self.repeat):
            key = self._key(state.key, state.episode, state.time * self.repeat + number + 1)
            following = self.simulator.step(key, inner, action)
            if number:  # nothing moves after the end
                following = jax.tree.map(
                    lambda old, new, over=terminal: jnp.where(over, old, new),
                    (inner, observation, jnp.zeros_like(reward), terminal),
                    following,
                )
            inner, observation, gained, terminal = following
            reward += gained.astype(jnp.float32)
        time = state.time + 1
        over = terminal | (time >= self.limit) if self.limit else terminal
        time_step = dm_env.TimeStep(
            jnp.where(over, LAST, MID).astype(jnp.int32),
            reward,
            1 - terminal.astype(jnp.float32),
            dict(observation),
        )
        return EnvState(inner, state.key, state.episode, time, over), time_step

    def _key(self, key: Array, episode: Array, number: Array) -> Array:
        of_episode = jax.random.fold_in(jax.random.wrap_key_data(key), episode)
        return jax.random.fold_in(of_episode, number)
