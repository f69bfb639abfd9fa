"""Episodes of one environment written in JAX, as dm_env time steps and pure functions."""

from dataclasses import dataclass
from typing import Any

import dm_env
import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from dreamer.config.env import WORKERS, EnvBase
from dreamer.envs.base import FIRST, LAST, MID
from dreamer.envs.jax.simulators import Action, Observation, Simulator, traced
from dreamer.errors import UserError

SHARES = 16  # parts of the environments that slow resets are done for at a time


@struct.dataclass
class EnvState:
    """State of an environment. Episode k draws all its randomness from the key and k."""

    inner: Any  # of the simulator
    key: Array  # plain data uint32 [2] of the environment's key
    episode: Array  # int32, its number
    time: Array  # int32, steps of the episode so far
    over: Array  # bool, the last time step was LAST


@dataclass(frozen=True)
class JaxEnv:
    """One environment as pure functions: vmap `reset` over keys, and step N with `step_all`.

    Args:
      simulator: Its physics.
      repeat: Simulator steps per step, rewards summed.
      time_limit: Steps until truncation, if that is before the simulator's own limit; or 0.
      slow_reset: Whether a reset is too slow to compute one that is not needed.
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
        """Starts an episode of the environment with this key data."""
        episode = jnp.asarray(episode, jnp.int32)
        inner, observation = self.simulator.reset(self._key(key, episode, jnp.int32(0)))
        state = EnvState(inner, key, episode, jnp.int32(0), jnp.array(False))
        zero, one = jnp.float32(0), jnp.float32(1)
        return state, dm_env.TimeStep(jnp.int32(FIRST), zero, one, dict(observation))

    def step(self, state: EnvState, action: Action) -> tuple[EnvState, dm_env.TimeStep]:
        """One step; after LAST the action is ignored and the next episode starts with FIRST."""
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


def make(suite: Any, config: EnvBase) -> JaxEnv:
    """Makes one environment of a suite.

    Raises:
      UserError: The configuration has workers.
    """
    for key in WORKERS:
        if getattr(config, key) != EnvBase.model_fields[key].default:
            raise UserError(
                f"env.{key}={getattr(config, key)}: environments written in JAX step in compiled "
                f"code, without workers; leave out env.{key}"
            )
    with traced():
        simulator = suite.make_simulator(config)
    return JaxEnv(simulator, config.repeat, config.time_limit, suite.SLOW_RESET)
