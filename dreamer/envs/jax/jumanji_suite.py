"""Jumanji: puzzles, packing and routing written in JAX, with masks of the actions that are valid.

Source: Bonnet et al. 2024, "Jumanji: a Diverse Suite of Scalable Reinforcement Learning
Environments in JAX". Running out of `time_limit` is a truncation here; most of Jumanji does not
distinguish it from the end of a task. Several agents of one environment act as one, rewards summed.

A mask of every part of an action stays as it is. A mask of combinations of parts (a piece *and* its
place) does not mask each part alone, so the parts become one action with a class for every
combination. FlatPack has too many of them, 8,100: its parts are separate actions without a mask,
and Jumanji ignores invalid ones.
"""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp
import jumanji
import numpy as np
from dm_env import specs
from jax import Array
from jumanji import specs as theirs

from dreamer.config.env import JumanjiEnv
from dreamer.envs.base import MASK, Specs
from dreamer.envs.jax.simulators import NEVER, Action, Observation, plain_key, settled, traced
from dreamer.envs.spaces import MAX_CLASSES

TASKS = tuple(sorted(jumanji.registered_environments()))
MAX_COMBINATIONS = 2**12
LOWEST = {("TSP-v1", "position"): -1}  # before the first city, where its own spec says 0
LAST = 2  # of Jumanji's step types
SLOW_RESET = True


class Jumanji:
    """A Jumanji environment as a `Simulator`."""

    def __init__(self, config: JumanjiEnv) -> None:
        self._env = jumanji.make(config.task)
        self.limit = int(getattr(self._env, "time_limit", 0))
        self._endless = copy.copy(self._env)
        if self.limit:
            self._endless.time_limit = NEVER
        leaves = dict(_leaves(self._env.observation_spec))
        mask = leaves.pop((MASK,), None)
        self.actions, self._native, masked = _actions(self._env.action_spec, mask)
        self.observations: Specs = {}
        self._paths: dict[str, tuple[tuple[str, ...], int]] = {}  # and the class that becomes 0
        for path, spec in leaves.items():
            name = "_".join(path)
            own = int(np.min(getattr(spec, "minimum", 0)))
            lowest = LOWEST.get((config.task, name), own)
            leaf = self.observations[name] = _observed(name, spec, lowest)
            whole = np.issubdtype(leaf.dtype, np.integer)
            self._paths[name] = path, lowest if whole else 0
        if masked:
            leaf = self.actions["action"]
            assert isinstance(leaf, specs.BoundedArray)
            shape = (*leaf.shape, int(np.max(leaf.maximum)) + 1)
            self.observations[MASK] = specs.BoundedArray(shape, bool, False, True, MASK)

    def reset(self, key: Array) -> tuple[Any, Observation]:
        with traced():
            state, time_step = self._env.reset(plain_key(key))
        return settled(state, state), self._encode(time_step.observation)

    def step(self, key: Array, state: Any, action: Action) -> tuple[Any, Observation, Array, Array]:
        native = self._native(action)
        with traced():
            following, time_step = self._env.step(state, native)
            ends = self._endless.step(state, native)[1] if self.limit else time_step
            # One reward and discount for every agent, where there are several.
            terminal = (ends.step_type == LAST).all() & (ends.discount == 0).all()
            reward = jnp.sum(time_step.reward)
        following = settled(following, state)
        return following, self._encode(time_step.observation), reward, terminal

    def _encode(self, observation: Any) -> Observation:
        encoded = {}
        for name, (path, start) in self._paths.items():
            value, leaf = observation, self.observations[name]
            for attribute in path:
                value = getattr(value, attribute)
            encoded[name] = (jnp.asarray(value, leaf.dtype) - start).reshape(leaf.shape)
        if MASK in self.observations:
            encoded[MASK] = observation.action_mask.reshape(self.observations[MASK].shape)
        return encoded


make_simulator = Jumanji


def _leaves(spec: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The arrays of a nested spec, with the attributes that lead to each."""
    if isinstance(spec, theirs.Array):
        yield path, spec
    else:
        for name, inner in spec._specs.items():
            yield from _leaves(inner, (*path, name))


def _observed(name: str, spec: Any, lowest: int) -> specs.Array:
    """Integers of few values become classes from 0, all others vectors; rank 3 and more is flat."""
    shape = spec.shape if len(spec.shape) <= 2 else (int(np.prod(spec.shape)),)
    if isinstance(spec, theirs.BoundedArray) and not np.issubdtype(spec.dtype, np.floating):
        last = int(np.max(spec.maximum)) - lowest
        if last < MAX_CLASSES:
            return specs.BoundedArray(shape, np.int32, 0, last, name)
    return specs.Array(shape, np.float32, name)


def _actions(spec: Any, mask: Any) -> tuple[Specs, Callable[[Action], Array], bool]:
    """The specs of an action, their conversion to Jumanji's own, and whether its mask fits."""
    if np.issubdtype(spec.dtype, np.floating):
        return *_continuous(spec), False
    counts = np.broadcast_to(np.asarray(spec.maximum) + 1, spec.shape)
    apart = mask is None or mask.shape[:-1] == spec.shape
    if mask is not None and apart:  # its length counts, not the maximum
        counts = np.full(spec.shape, mask.shape[-1])
    if spec.shape == () or (apart and (counts == counts[0]).all()):
        last = int(counts.max()) - 1
        leaf = specs.BoundedArray(spec.shape, np.int32, 0, last, "action")
        if not spec.shape:
            leaf = specs.DiscreteArray(last + 1, np.int32, "action")
        return (
            {"action": leaf},
            lambda action: action["action"].astype(spec.dtype),
            mask is not None,
        )
    if counts.prod() > MAX_COMBINATIONS:
        return *_separate(counts), False

    def spread(action: Action) -> Array:
        return jnp.stack(jnp.unravel_index(action["action"], tuple(counts)), -1)

    every = specs.DiscreteArray(int(counts.prod()), np.int32, "action")
    return {"action": every}, spread, mask is not None


def _continuous(spec: Any) -> tuple[Specs, Callable[[Action], Array]]:
    low, high = spec.minimum, spec.maximum

    def scaled(action: Action) -> Array:
        unit = (jnp.clip(action["action"], -1, 1).reshape(spec.shape) + 1) / 2
        return low + unit * (high - low)

    leaf = specs.BoundedArray((int(np.prod(spec.shape)),), np.float32, -1, 1, "action")
    return {"action": leaf}, scaled


def _separate(counts: np.ndarray) -> tuple[Specs, Callable[[Action], Array]]:
    """A key for every part."""
    names = [f"action_{number}" for number in range(len(counts))]
    leaves: Specs = {
        name: specs.DiscreteArray(int(count), np.int32, name)
        for name, count in zip(names, counts, strict=True)
    }
    return leaves, lambda action: jnp.stack([action[name] for name in names], -1)
