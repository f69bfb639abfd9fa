"""Tiny gymnasium environments with known values, for tests; worker processes import this module."""

import os
import signal
import subprocess
import sys
import time
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from dreamer.envs.base import TERMINAL, episode_seed
from dreamer.envs.vector import VectorEnv


class Probe(gymnasium.Env):
    """Observes samples of its space, ends at a given step, keeps the received action."""

    def __init__(
        self, observation: Any, action: Any = None, terminate: int = 0, truncate: int = 0
    ) -> None:
        self.observation_space = observation
        self.action_space = spaces.Discrete(2) if action is None else action
        self._terminate, self._truncate = terminate, truncate
        self.received: Any = None
        self._step = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self._step = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action), action
        self.received = action
        self._step += 1
        terminated, truncated = self._step == self._terminate, self._step == self._truncate
        return self.observation_space.sample(), 1.0, terminated, truncated, {"noise": object()}


class Counter(gymnasium.Env):
    """Observes (step number, sum of actions, a number drawn at reset), each a float64.

    `terminate` and `truncate` end the episode at that step; `lose` is a step that info calls
    terminal.
    """

    observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float64)
    action_space = spaces.Discrete(5, start=-2)

    def __init__(self, terminate: int = 0, truncate: int = 0, lose: int = 0) -> None:
        self._ends = terminate, truncate, lose
        self._state = np.zeros(3)  # returned itself, and changed in place by the next step

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self._state[:] = 0, 0, self.np_random.random()
        return self._state, {}

    def step(self, action: Any) -> Any:
        self._state[:2] += 1, action
        terminate, truncate, lose = (self._state[0] == end for end in self._ends)
        info = {TERMINAL: bool(lose or terminate)} if self._ends[2] else {}
        return self._state, float(action), terminate, truncate, info


def several(num_envs: int) -> gymnasium.vector.VectorEnv:
    """Counters that are vectorised already."""
    return gymnasium.vector.SyncVectorEnv([Counter] * num_envs)


class Unseeded(Counter):
    """Draws its number from the operating system: no seed repeats it."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self._state[2] = np.random.default_rng().random()
        return self._state, {}


class Early(Counter):
    """Ends earlier every time it is started, whatever the seed."""

    starts = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        Early.starts += 1
        self._ends = (max(1, 6 - 3 * (Early.starts - 1)), 0, 0)
        return super().reset(seed=seed)


class Drawn(gymnasium.Env):
    """Renders a frame whose left half is 255 and right half 0; observes one number."""

    metadata = {"render_modes": ["rgb_array"]}
    observation_space = spaces.Box(0, 1, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        return np.zeros(1, np.float32), 0.0, False, False, {}

    def render(self) -> Any:
        frame = np.zeros((20, 40, 3), np.uint8)
        frame[:, :20] = 255
        return frame


class Outside(gymnasium.Env):
    """Does not keep to its bounds."""

    observation_space = spaces.Box(-1, 1, (1,))
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return np.full(1, 2, np.float32), {}


class Hinting(gymnasium.Env):
    """Observes the smallest of `space`, and always the same mask, inside of it or as info."""

    metadata = {"render_modes": ["rgb_array"]}
    render_mode = "rgb_array"

    def __init__(
        self, action: Any, mask: Any, inside: bool, space: Any = None, gives: bool = True
    ) -> None:
        space = spaces.Box(0, 1, (2,)) if space is None else space
        anything = spaces.Box(0, 1, ())
        inner = spaces.Dict({"observation": space, "action_mask": anything})
        self.observation_space = inner if inside else space
        self.action_space = action
        self.mask, self._inside, self.gives, self.over = mask, inside, gives, False
        self._least = _least(space)

    def _see(self) -> Any:
        if self._inside:
            return {"observation": self._least, "action_mask": self.mask}, {}
        return self._least, {"action_mask": self.mask} if self.gives else {}

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return self._see()

    def step(self, action: Any) -> Any:
        seen, info = self._see()
        return seen, 0.0, self.over, False, info

    def render(self) -> Any:
        return np.zeros((8, 8, 3), np.uint8)


def _least(space: Any) -> Any:
    """The smallest element of a space, or nearly so."""
    if isinstance(space, spaces.Dict):
        return {key: _least(part) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(map(_least, space.spaces))
    return np.zeros(space.shape, space.dtype)


class Modules(Counter):
    """Observes whether modules of the main program are loaded, and its process id."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return np.array(["jax" in sys.modules, "only_main" in sys.modules, os.getpid()], float), {}


class Faulty(Counter):
    """Environment 1 of seed 0 fails at the second step of its first episode, or at its reset."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self._how = how

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self._broken = seed == episode_seed(0, 1, 0)
        if self._broken and self._how == "reset":
            raise RuntimeError("does not start")
        return super().reset(seed=seed)

    def step(self, action: Any) -> Any:
        observation, *others = super().step(action)
        if not (self._broken and self._state[0] == 2):
            return observation, *others
        if self._how == "raise":
            raise RuntimeError("simulator broke")
        if self._how == "exit":
            sys.exit(3)
        if self._how == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if self._how == "hang":
            time.sleep(1000)
        if self._how == "reward":
            return observation, np.nan, *others[1:]
        return observation[:2] if self._how == "shape" else observation * np.nan, *others


class Parent(Counter):
    """Starts another program, whose process id it observes, and hangs."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        child = subprocess.Popen(["sleep", "1000"])
        return np.array([0, 0, child.pid], float), {}

    def step(self, action: Any) -> Any:
        time.sleep(1000)


class Hanging(Counter):
    """Never comes back from a step."""

    def step(self, action: Any) -> Any:
        time.sleep(1000)


class Undefined(Counter):
    """Gives NaN at its second step."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self._what = what

    def step(self, action: Any) -> Any:
        observation, reward, *others = super().step(action)
        if self._state[0] == 2:
            observation = observation * np.nan if self._what == "observation" else observation
            reward = np.inf if self._what == "reward" else reward
        return observation, reward, *others


class Missing(Counter):
    """Cannot start without a package."""

    def __init__(self) -> None:
        raise gymnasium.error.DependencyNotInstalled("Foo is missing, pip install foo")


class Bad(Counter):
    """Cannot be made."""

    def __init__(self) -> None:
        super().__init__()
        self.speed = 1 / len(())


def played(env: VectorEnv) -> list[Any]:
    """The environments that it plays in this process, once they are made by a reset."""
    return [worker.episodes.env for worker in env._pool.workers]
