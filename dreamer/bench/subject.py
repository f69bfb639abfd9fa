"""The subject of a measurement: an agent of some size on random data."""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from dm_env import specs

from dreamer.agents.dreamer import dreamer
from dreamer.agents.dreamer.dreamer import Dreamer
from dreamer.agents.dreamer.parts import State
from dreamer.config import Config
from dreamer.distributed import mesh
from dreamer.nets import spaces
from dreamer.rollout.driver import transition_spec

# Spaces of a walking robot and of an Atari game.
OBSERVATIONS: dict[str, spaces.Specs] = {
    "vector": {"observation": specs.Array((24,), np.float32, "observation")},
    "image": {"image": specs.BoundedArray((64, 64, 3), np.uint8, 0, 255, "image")},
}
ACTIONS: dict[str, spaces.Specs] = {
    "vector": {"action": specs.BoundedArray((6,), np.float32, -1, 1, "action")},
    "image": {"action": specs.DiscreteArray(18, np.int32, "action")},
}


@dataclass(frozen=True)
class Subject:
    """An untrained agent."""

    config: Config
    observation: str
    agent: Dreamer
    devices: list[jax.Device]
    key: jax.Array

    def state(self) -> State:
        """A new state on the first device."""
        return mesh.to_device(self.agent.init(self.key))

    @property
    def spec(self) -> dict[str, Any]:
        """Shapes and dtypes of one step as replay stores it."""
        return transition_spec(self.agent)

    def rows(self, *leading: int) -> dict[str, Any]:
        """Random steps as replay stores them, leaves [*leading, ...]."""
        rng = np.random.default_rng(0)
        return jax.tree.map(
            lambda leaf: _noise(rng, (*leading, *leaf[0]), np.dtype(leaf[1])),
            self.spec,
            is_leaf=lambda node: isinstance(node, tuple),
        )


def make(config: Config, observation: str) -> Subject:
    """An agent of `config` for random observations: vector or image."""
    agent = dreamer.make(config.agent, OBSERVATIONS[observation], ACTIONS[observation])
    devices = mesh.devices_of(config)
    return Subject(config, observation, agent, devices, jax.random.key(0))


def nbytes(tree: Any) -> int:
    """Bytes of all arrays of a tree, or of arrays of these shapes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _noise(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Random values that all leaves of this dtype allow; no episode starts or ends."""
    if np.issubdtype(dtype, np.bool_):
        return np.zeros(shape, bool)
    if np.issubdtype(dtype, np.integer):
        return rng.integers(0, 2, shape).astype(dtype)
    return rng.uniform(-1, 1, shape).astype(dtype)
