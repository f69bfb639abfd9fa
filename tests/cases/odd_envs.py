"""Environments as their owners write them by mistake, each wrong in one way."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

SEEN = np.zeros(3, np.float32)


class Right(gymnasium.Env):
    """Nothing is wrong with it: sees three zeros, has episodes of seven steps."""

    observation_space: Any = spaces.Box(-1, 1, (3,), np.float32)
    action_space: Any = spaces.Discrete(3)
    what: Any = SEEN
    reward: Any = 1.0
    terminated: Any = False
    info: ClassVar[Any] = {}

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        self.time = 0
        return self.what, {}

    def step(self, action: Any) -> Any:
        self.time += 1
        return self.what, self.reward, self.terminated, self.time == 7, self.info


def like(**changes: Any) -> type[Right]:
    return type("Odd", (Right,), changes)


def seeing(space: gymnasium.Space) -> type[Right]:
    """One that observes the smallest of a space."""
    shape, dtype = space.shape or (), space.dtype
    return like(observation_space=space, what=np.zeros(shape, dtype))


def raising(error: Callable[[], BaseException], *methods: str) -> type[Right]:
    def method(self: Any, *args: Any, **options: Any) -> Any:
        raise error()

    return like(**dict.fromkeys(methods, method))


# ------------------------------------------------------------------------- how it is made


class NeedsLevel(Right):
    def __init__(self, level: int, size: int = 3) -> None: ...


class ModeWithoutDefault(Right):
    def __init__(self, render_mode: Any) -> None: ...


def itself() -> Any:
    return Right


def forgets() -> None:
    Right()


def yields() -> Iterator[Any]:
    yield Right()


async def waits() -> Any:
    return Right()


def a_list() -> Any:
    return [Right()]


class Duck:
    def reset(self) -> Any: ...
    def step(self, action: Any) -> Any: ...


class Parallel(Duck):
    """As PettingZoo has it."""

    possible_agents = ("a", "b")

    def observation_space(self, agent: str) -> Any: ...


class VecEnv(Duck):
    """As Stable-Baselines3 has it."""

    num_envs = 2

    def step_async(self, action: Any) -> Any: ...
    def step_wait(self) -> Any: ...


class GymEnv(Duck):
    """As the package gym has it."""


GymEnv.__module__ = "gym.core"
already = Right()
exits_at_once = raising(SystemExit, "__init__")
unprintable_at_once = raising(lambda: Unprintable(), "__init__")


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not even this")


class Quit(BaseException):
    """What is no Exception."""


# ------------------------------------------------------------------------- what it says of itself

no_space = like(observation_space=None)
class_as_space = like(action_space=spaces.Discrete)
method_as_space = like(action_space=lambda self: spaces.Discrete(2))


class PropertyFails(Right):
    @property
    def action_space(self) -> Any:
        raise KeyError("no actions yet")


sequence = like(observation_space=spaces.Sequence(spaces.Discrete(3)), what=(1,))
text = like(observation_space=spaces.Dict(say=spaces.Text(5)))
one_of = like(observation_space=spaces.OneOf([spaces.Discrete(3), spaces.Discrete(2)]))
nothing = seeing(spaces.Box(-1, 1, (0,)))
stacked = seeing(spaces.Box(0, 255, (12, 64, 64), np.uint8))
gray_stacked = seeing(spaces.Box(0, 255, (5, 84, 84), np.uint8))
planes = seeing(spaces.Box(0, 1, (17, 8, 8), np.uint8))
frames = seeing(spaces.Box(0, 255, (4, 64, 64, 3), np.uint8))
ram = seeing(spaces.Box(0, 255, (10_000,), np.uint8))
many_keys = like(observation_space=spaces.Dict({str(i): spaces.Discrete(40_000) for i in "ab"}))
many_actions = like(action_space=spaces.MultiDiscrete([40_000, 30_000]))
floats = seeing(spaces.Box(0, 1, (64, 64, 3), np.float32))
halves = like(observation_space=spaces.Box(-np.inf, np.inf, (3,), np.float16), what=SEEN + 1e5)
part_empty = like(
    observation_space=spaces.Dict(x=spaces.Box(0, 1, (0,)), y=spaces.Discrete(2)),
    what={"x": np.zeros(0, np.float32), "y": 1},
)


class Claims(Right):
    """Says that it renders."""

    metadata: ClassVar[Any] = {"render_modes": ["rgb_array"]}

    def __init__(self, render_mode: Any = None) -> None:
        self.render_mode = render_mode


class ClaimsFloats(Claims):
    def render(self) -> Any:
        return np.zeros((8, 8, 3))


class ExitsInRender(Claims):
    def render(self) -> Any:
        sys.exit(0)


# ------------------------------------------------------------------------- what it gives


class Old(Right):
    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        return super().reset()[0]


class OldDict(Old):
    observation_space = spaces.Dict(a=spaces.Discrete(3), b=spaces.Discrete(3))
    what: ClassVar[Any] = {"a": 1, "b": 2}


class OldPair(Old):
    observation_space = spaces.Tuple([spaces.Discrete(3), spaces.Discrete(3)])
    what = (1, 2)


class NoInfo(Right):
    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        return super().reset()[0], None


class NoSeed(Right):
    def reset(self) -> Any:
        return super().reset()


class SeedAlone(Right):
    def reset(self, seed: Any = None) -> Any:
        return super().reset()


class Four(Right):
    def step(self, action: Any) -> Any:
        return self.what, 1.0, False, {}


class NoArray:
    def __array__(self, *args: Any, **options: Any) -> Any:
        raise RuntimeError("it is on another device")


class Far(Right):
    """Sees another number outside of its bounds at every reset."""

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        return np.full(3, 5 + np.random.default_rng(seed).random(), np.float32), {}


strange = like(what=NoArray())
array_as_end = like(terminated=np.array([True]))
text_as_end = like(terminated="no")
none_as_end = like(terminated=None)
complex_reward = like(reward=1j)
object_reward = like(reward=object())
large = like(reward=2**60)
own_terminal = like(info={"is_terminal": np.ones(2)})
exits = raising(SystemExit, "step")
quits = raising(lambda: Quit("enough"), "step")
unprintable = raising(lambda: Unprintable(), "step")
endless_message = raising(lambda: ValueError("no\n" * 100_000), "step")
exits_in_close = raising(SystemExit, "close")


class ExitsInReset(Right):
    """Where an episode begins after the first, which is the try before training."""

    made = 0

    def __init__(self) -> None:
        ExitsInReset.made += 1
        self.number = ExitsInReset.made

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        if self.number > 1:
            sys.exit(0)
        return super().reset()


class LeavesItsProcess(Right):
    def step(self, action: Any) -> Any:
        os._exit(0)


# ------------------------------------------------------------------------- several at once


class Several(VectorEnv):
    """As `Right`, without ends."""

    metadata: Any = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012
    single_observation_space = Right.observation_space
    single_action_space = Right.action_space
    reward: Any = (1, 1)
    terminated: Any = (False, False)
    info: Any = {}  # noqa: RUF012

    def __init__(self, num_envs: int, **changes: Any) -> None:
        self.num_envs = num_envs
        self.observation_space = spaces.Box(-1, 1, (num_envs, 3), np.float32)
        self.action_space = spaces.MultiDiscrete([3] * num_envs)
        for name, value in changes.items():
            setattr(self, name, value)

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        return np.zeros((self.num_envs, 3), np.float32), self.info

    def step(self, actions: Any) -> Any:
        seen = np.zeros((self.num_envs, 3), np.float32)
        return seen, self.reward, self.terminated, np.zeros(self.num_envs, bool), {}


def several_own_terminal(num_envs: int) -> VectorEnv:
    return SyncVectorEnv([own_terminal] * num_envs)


def several(**changes: Any) -> Callable:
    def function(num_envs: int) -> VectorEnv:
        return Several(num_envs, **changes)

    return function


text_rewards = several(reward=np.array(["a", "b"]))
no_rewards = several(reward=None)
some_rewards = several(reward=[1.0, None])
column_rewards = several(reward=np.ones((2, 1)))
large_rewards = several(reward=np.full(2, 2.0**60))
text_ends = several(terminated=["no", "no"])
no_info = several(info=None)
no_metadata = several(metadata=None)
no_single_space = several(single_action_space=None)


class Hangs(Right):
    """Hangs in its third step, and creates the file named by HUNG."""

    def step(self, action: Any) -> Any:
        if self.time == 2:
            Path(os.environ["HUNG"]).touch()
            time.sleep(1000)
        return super().step(action)


def hang(num_envs: int) -> VectorEnv:
    return AsyncVectorEnv([Hangs] * num_envs, context="spawn")
