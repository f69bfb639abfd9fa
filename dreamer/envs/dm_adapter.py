"""One dm_env environment as a gymnasium one, so that every suite has the same way in."""

from collections.abc import Callable, Mapping
from typing import Any

import dm_env
import gymnasium
import numpy as np
from dm_env import specs
from gymnasium import spaces

from dreamer.errors import EnvironmentFault, UserError

Maker = Callable[[int], dm_env.Environment]


class FromDMEnv(gymnasium.Env):
    """Steps a dm_env environment by gymnasium's interface.

    Nested dicts and sequences of specs become Dict and Tuple spaces. An end with discount 0 is a
    termination, any other a truncation, as dm_env means it.

    Args:
      make: makes the environment from a seed. dm_env has no seed at a reset, so an environment is
        recreated for every seed that is given, that is for every episode here; `reseed` avoids it.
      reseed: puts a seed into an environment that is there; its next reset follows from it.
      render: gives a frame uint8 [H, W, 3] of an environment; None if it cannot be seen.
    """

    def __init__(
        self,
        make: Maker,
        reseed: Callable[[Any, int], None] | None = None,
        render: Callable[[Any], np.ndarray] | None = None,
    ) -> None:
        self._make, self._reseed, self._draw = make, reseed, render
        self._env = make(0)
        self.observation_space = to_space(self._env.observation_spec(), "observation")
        self.action_space = to_space(self._env.action_spec(), "action")
        self.metadata = {"render_modes": ["rgb_array"] if render else []}
        self.render_mode = "rgb_array" if render else None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None and self._reseed is not None:
            self._reseed(self._env, seed)
        elif seed is not None:
            self._env.close()
            self._env = self._make(seed)
        return _time_step(self._env.reset(), "reset").observation, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        time_step = _time_step(self._env.step(action), "step")
        terminal = time_step.last() and time_step.discount == 0
        truncated = time_step.last() and not terminal
        reward = 0.0 if time_step.reward is None else float(np.sum(time_step.reward))
        return time_step.observation, reward, bool(terminal), bool(truncated), {}

    def render(self) -> Any:
        return self._draw(self._env) if self._draw else None

    def close(self) -> None:
        self._env.close()


def _time_step(found: Any, method: str) -> dm_env.TimeStep:
    if isinstance(found, dm_env.TimeStep):
        return found
    raise EnvironmentFault(
        f"gave a {type(found).__name__} in its {method}, expected a dm_env.TimeStep"
    )


def to_space(spec: Any, what: str) -> gymnasium.Space:
    """The gymnasium space of a dm_env spec, or of nested dicts and sequences of them.

    Raises:
      UserError: a spec that is none of an array.
    """
    if isinstance(spec, Mapping):
        return spaces.Dict(
            {str(key): to_space(leaf, f"{what} {key}") for key, leaf in spec.items()}
        )
    if isinstance(spec, list | tuple):
        return spaces.Tuple([to_space(leaf, what) for leaf in spec])
    if isinstance(spec, specs.DiscreteArray):
        return spaces.Discrete(int(spec.num_values))
    if not isinstance(spec, specs.Array) or spec.dtype.kind not in "fiub":
        raise UserError(f"{what} has the spec {spec}; allowed are arrays of numbers")
    low, high = _bounds(spec)
    return spaces.Box(low, high, dtype=spec.dtype.type)


def _bounds(spec: specs.Array) -> tuple[np.ndarray, np.ndarray]:
    """The bounds of every entry; those of its type where the spec has none."""
    if isinstance(spec, specs.BoundedArray):
        low, high = spec.minimum, spec.maximum
    elif spec.dtype.kind == "f":
        low, high = np.array(-np.inf), np.array(np.inf)
    elif spec.dtype.kind == "b":
        low, high = np.array(False), np.array(True)
    else:
        limits = np.iinfo(spec.dtype)
        low, high = np.array(limits.min), np.array(limits.max)
    low, high = (np.broadcast_to(x, spec.shape).astype(spec.dtype) for x in (low, high))
    return low, high
