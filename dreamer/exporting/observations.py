"""Observations on which an exported policy is compared with its agent: no environment is made."""

from typing import Any

import dm_env
import numpy as np

from dreamer.agents.interface import Agent
from dreamer.checkpoint.loading import Saved
from dreamer.datasets import sources
from dreamer.envs.base import FIRST, LAST, MID, Specs

LENGTH = 50  # steps of an episode of random observations


class Replayed:
    """Observations as N environments give them, the same whatever is done there.

    Args:
      agent: which they are for.
      rows: `observation`, and of what begins and ends an episode, leaves [N, T, ...].
      native: gymnasium's space of actions in their own units, or None.
    """

    def __init__(self, agent: Agent, rows: dict[str, Any], native: Any) -> None:
        self._agent, self._rows, self._step = agent, rows, 0
        self.num_envs, self._length = rows["is_first"].shape
        self.native_actions = native

    def observation_spec(self) -> Specs:
        return dict(self._agent.observations)

    def action_spec(self) -> Specs:
        return dict(self._agent.actions)

    def reset(self) -> dm_env.TimeStep:
        self._step = 0
        return self._time_step()

    def step(self, action: Any) -> dm_env.TimeStep:
        self._step = (self._step + 1) % self._length
        return self._time_step()

    def _time_step(self) -> dm_env.TimeStep:
        now = {key: x[:, self._step] for key, x in self._rows.items() if key != "observation"}
        kind = np.where(now["is_first"], FIRST, np.where(now["is_last"], LAST, MID))
        seen = {key: x[:, self._step] for key, x in self._rows["observation"].items()}
        zero = np.zeros(self.num_envs, np.float32)
        return dm_env.TimeStep(kind.astype(np.int32), zero, zero + 1, seen)


def choose(saved: Saved, num_envs: int, steps: int, seed: int) -> tuple[Any, str]:
    """N x T observations: of the replay in the checkpoint, or random ones where it has none.

    Args:
      saved: the agent.
      num_envs: N.
      steps: T.
      seed: of random ones.

    Returns:
      Them, and what they are, in a word.

    Raises:
      UserError: the replay cannot be read.
    """
    agent = saved.agent
    native = sources.native_actions(saved.spaces, agent.actions)
    count, specs = num_envs * steps, (agent.observations, agent.actions)
    rings = sources.first_rows(saved.checkpoint, *specs, count)
    rows = _of_rings(rings, num_envs, steps) if rings else _random(agent, num_envs, steps, seed)
    return Replayed(agent, rows, native), "recorded" if rings else "random"


def _of_rings(rings: list[Any], num_envs: int, steps: int) -> dict[str, Any]:
    """[N, T] rows of rings, one after the other, and again where there are too few."""
    index = np.arange(num_envs * steps)
    joined = {key: np.concatenate([ring[key] for ring in rings]) for key in rings[0]}
    rows = (index % len(joined["is_first"])).reshape(num_envs, steps)
    taken = {key: value[rows] for key, value in joined.items()}
    first = taken["is_first"] | (rows == 0)
    first[:, 0] = True
    prefix = "observation."
    seen = {k.removeprefix(prefix): x for k, x in taken.items() if k.startswith(prefix)}
    return {"observation": seen, "is_first": first, "is_last": taken["is_last"] & ~first}


def _random(agent: Agent, num_envs: int, steps: int, seed: int) -> dict[str, Any]:
    rng, shape = np.random.default_rng(seed), (num_envs, steps)
    first = np.broadcast_to(np.arange(steps) % LENGTH == 0, shape)
    seen = {key: _draw(rng, spec, shape) for key, spec in agent.observations.items()}
    return {"observation": seen, "is_first": first, "is_last": np.zeros(shape, bool)}


def _draw(rng: np.random.Generator, spec: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Values of a spec: of a mask about half, one of every action at least."""
    whole = (*shape, *spec.shape)
    if np.issubdtype(spec.dtype, np.floating):
        return rng.normal(size=whole).astype(spec.dtype)
    if spec.dtype == np.bool_:
        value = rng.random(whole)
        return (value < 0.5) | (value == value.min(-1, keepdims=True))
    return rng.integers(0, np.max(spec.maximum), whole, dtype=spec.dtype, endpoint=True)
