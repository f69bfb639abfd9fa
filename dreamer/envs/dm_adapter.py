"""One dm_env environment as a gymnasium environment."""

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
    """Adapts a dm_env environment to gymnasium's interface.

    Nested dicts and sequences of specs become Dict and Tuple spaces. An end with discount 0 is a
    termination, any other a truncation, as dm_env means it.

    Args:
      make: Makes the environment from a seed. dm_env has no seed at a reset, so every seed, here
        every episode, recreates the environment, unless there is a `reseed`.
      reseed: Seeds the next reset of an environment.
      render: Draws a frame uint8 [H, W, 3] of an environment with its last observation; None if it
        cannot render.
    """

    def __init__(
        self,
        make: Maker,
        reseed: Callable[[Any, int], None] | None = None,
        render: Callable[[Any, Any], np.ndarray] | None = None,
    ) -> None:
        self._make, self._reseed, self._draw = make, reseed, render
        self._env = make(0)
        self._observation: Any = None
        self.observation_space = to_space(self._env.observation_spec(), "observation")
        self.action_space = to_space(self._env.action_spec(), "action")
        self.metadata = {"render_modes": ["rgb_array"] if render else []}
        self.render_mode = "rgb_array" if render else None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        if seed is not None and self._reseed is not None:
            self._reseed(self._env, seed)
        elif seed is not None:
            self._env.close()
            self._env = self._make(seed)
        return self._checked(self._env.reset(), "reset").observation, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        time_step = self._checked(self._env.step(action), "step")
        terminal = time_step.last() and time_step.discount == 0
        truncated = time_step.last() and not terminal
        reward = 0.0 if time_step.reward is None else float(np.sum(time_step.reward))
        return time_step.observation, reward, bool(terminal), bool(truncated), {}

    def render(self) -> Any:
        return self._draw(self._env, self._observation) if self._draw else None

    def close(self) -> None:
        self._env.close()

    def _checked(self, time_step: Any, method: str) -> dm_env.TimeStep:
        if not isinstance(time_step, dm_env.TimeStep):
            raise EnvironmentFault(
                f"gave a {type(time_step).__name__} in its {method}, expected a dm_env.TimeStep"
            )
        self._observation = time_step.observation
        return time_step


def to_space(spec: Any, what: str) -> gymnasium.Space:
    """The gymnasium space of a dm_env spec, or of nested dicts and sequences of them.

    Raises:
      UserError: A spec is not one of an array of numbers.
    """
    match spec:
        case Mapping():
            parts = {str(key): to_space(leaf, f"{what} {key}") for key, leaf in spec.items()}
            return spaces.Dict(parts)
        case list() | tuple():
            return spaces.Tuple([to_space(leaf, what) for leaf in spec])
        case specs.DiscreteArray():
            return spaces.Discrete(int(spec.num_values))
    if not isinstance(spec, specs.Array) or spec.dtype.kind not in "fiub":
        raise UserError(f"{what} has the spec {spec}; allowed are arrays of numbers")
    bounds: tuple[Any, Any] = (-np.inf, np.inf) if spec.dtype.kind == "f" else (False, True)
    if isinstance(spec, specs.BoundedArray):
        bounds = spec.minimum, spec.maximum
    elif spec.dtype.kind in "iu":
        bounds = np.iinfo(spec.dtype).min, np.iinfo(spec.dtype).max
    low, high = (np.broadcast_to(bound, spec.shape).astype(spec.dtype) for bound in bounds)
    return spaces.Box(low, high, dtype=spec.dtype.type)
