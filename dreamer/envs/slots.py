"""Where environments put what they observe, so that nothing goes through pipes: arrays [N, ...] in
the types of the space, nested as it is, with a row for each environment.

Legend: N environments.
"""

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np

from dreamer.envs.spaces import children

Memory = Any  # nested dicts of bytes
Slots = Any  # nested dicts of arrays [N, ...]


def allocate(space: gymnasium.Space, num_envs: int, take: Callable[[int], Any]) -> Memory:
    """Memory for N observations of a space; `take(size)` gives so many bytes, all zero."""
    parts = children(space)
    if parts is None:
        one = np.dtype(space.dtype).itemsize * int(np.prod(space.shape or ()))
        return take(max(1, num_envs * one))
    return {name: allocate(part, num_envs, take) for name, part in parts}


def view(space: gymnasium.Space, num_envs: int, memory: Memory) -> Slots:
    """The arrays in memory of `allocate`. Those of a Tuple are a dict too, by their numbers."""
    parts = children(space)
    if parts is None:
        return np.ndarray((num_envs, *(space.shape or ())), space.dtype, memory)
    return {name: view(part, num_envs, memory[name]) for name, part in parts}


def write(slots: Slots, index: int, observation: Any) -> None:
    """Puts the observation of one environment into its rows."""
    if isinstance(slots, dict):
        for name, part in slots.items():
            write(part, index, observation[name])
    else:
        slots[index] = observation


def read(slots: Slots, index: int) -> Any:
    """The rows of one environment."""
    if isinstance(slots, dict):
        return {name: read(part, index) for name, part in slots.items()}
    return slots[index]
