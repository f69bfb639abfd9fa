"""Observations on which an exported policy is compared with its agent, without an environment."""

from typing import Any

import numpy as np

from dreamer.agents.interface import Agent
from dreamer.checkpoint.loading import Saved
from dreamer.datasets import sources

LENGTH = 50  # steps of an episode of random observations


def choose(saved: Saved, num_envs: int, steps: int, seed: int) -> tuple[dict[str, Any], str]:
    """N x T observations: of the replay in the checkpoint, or random ones if it has none.

    Args:
      saved: the agent.
      num_envs: N.
      steps: T.
      seed: of random ones.

    Returns:
      observation by key, is_first, is_last: leaves [N, T, ...]; and "recorded" or "random".

    Raises:
      UserError: the replay cannot be read.
    """
    agent = saved.agent
    count = num_envs * steps
    rings = sources.first_rows(saved.checkpoint, agent.observations, agent.actions, count)
    if rings:
        return _of_rings(rings, num_envs, steps), "recorded"
    return _random(agent, num_envs, steps, seed), "random"


def _of_rings(rings: list[Any], num_envs: int, steps: int) -> dict[str, Any]:
    """[N, T] consecutive rows of rings, repeated if there are too few."""
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
    """Random values of a spec; masks allow about half, and at least one, of the actions."""
    whole = (*shape, *spec.shape)
    if np.issubdtype(spec.dtype, np.floating):
        return rng.normal(size=whole).astype(spec.dtype)
    if spec.dtype == np.bool_:
        value = rng.random(whole)
        return (value < 0.5) | (value == value.min(-1, keepdims=True))
    return rng.integers(0, np.max(spec.maximum), whole, dtype=spec.dtype, endpoint=True)
