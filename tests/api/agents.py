"""Tiny agents that learned nothing but noise, and environments for them."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import dm_env
import gymnasium
import jax
import numpy as np
from dm_env import specs
from gymnasium import spaces

from dreamer.agents.dreamer import parts
from dreamer.api.agent import TrainedAgent
from dreamer.config import Config
from dreamer.envs.base import FIRST, LAST, MID, Specs
from tests import tiny
from tests.agents.dreamer.test_masks import ACTIONS, MASKS, masked


def trained(made: parts.Parts) -> TrainedAgent:
    """With weights of noise, as if something had been learned; without compiling how they begin."""
    rng = np.random.default_rng(0)

    def draw(path: tuple, x: Any) -> np.ndarray:
        noise = rng.normal(size=x.shape).astype(np.float32)
        if path[-1].key == "scale":
            return 1 + 0.1 * noise
        return noise / np.sqrt(np.prod(x.shape[:-1], dtype=np.float32)) if x.ndim > 1 else noise

    pattern = jax.eval_shape(lambda: parts.init_params(made, jax.random.key(0)))
    return TrainedAgent(Config(), made, jax.tree_util.tree_map_with_path(draw, pattern), 7)


@cache
def agent() -> TrainedAgent:
    """Has actions of every kind, of which two are masked."""
    return trained(masked())


@cache
def seeing() -> TrainedAgent:
    """Sees images of 8x8 and steers; environments for it are `Noise(IMAGE, STEERING, N)`."""
    mults = {"encoder": {"mults": (1,)}, "decoder": {"mults": (1,)}}
    return trained(tiny.agent(IMAGE, STEERING, **mults))


IMAGE = {"image": specs.BoundedArray((8, 8, 3), np.uint8, 0, 255, "image")}
STEERING = {"action": specs.BoundedArray((2,), np.float32, -1, 1, "action")}


class Noise:
    """A `BatchedEnv` of random numbers and random masks; episodes of 7 steps."""

    def __init__(self, observations: Specs, actions: Specs, num_envs: int, seed: int = 0) -> None:
        self.num_envs = num_envs
        self._specs = observations, actions
        self._rng = np.random.default_rng(seed)
        self._step = 0
        self.taken: list[tuple[dict, Mapping]] = []  # observations and the actions taken

    def observation_spec(self) -> Specs:
        return dict(self._specs[0])

    def action_spec(self) -> Specs:
        return dict(self._specs[1])

    def reset(self) -> dm_env.TimeStep:
        self._step = 0
        return self._time_step(FIRST)

    def step(self, action: Mapping[str, np.ndarray]) -> dm_env.TimeStep:
        self.taken.append((self._seen, action))
        self._step = (self._step + 1) % 8
        return self._time_step({0: FIRST, 7: LAST}.get(self._step, MID))

    def render(self) -> None:
        return None

    def close(self) -> None:
        pass

    def _time_step(self, kind: int) -> dm_env.TimeStep:
        n = self.num_envs
        self._seen = {key: self._draw((n, *x.shape), x.dtype) for key, x in self._specs[0].items()}
        reward = np.zeros(n, np.float32) if kind == FIRST else np.ones(n, np.float32)
        return dm_env.TimeStep(
            np.full(n, kind, np.int32), reward, np.ones(n, np.float32), self._seen
        )

    def _draw(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        if dtype == np.uint8:
            return self._rng.integers(0, 256, shape).astype(np.uint8)
        if dtype != np.bool_:
            return self._rng.normal(size=shape).astype(np.float32)
        valid = self._rng.random(shape) < 0.4
        valid[..., 1] |= ~valid.any(-1)
        return valid


def env(num_envs: int, seed: int = 0) -> Noise:
    """For `agent`."""
    return Noise(tiny.VECTOR | MASKS, ACTIONS, num_envs, seed)


class Choice(gymnasium.Env):
    """For `agent`: numbers and masks as gymnasium gives them; refuses what a mask excludes."""

    observation_space = spaces.Dict(
        {
            "observation": spaces.Box(-np.inf, np.inf, (3,), np.float32),
            "action_mask": spaces.MultiBinary(3),
            "action_mask_pair": spaces.MultiBinary([2, 4]),
        }
    )
    action_space = spaces.Dict(
        {
            "action": spaces.Discrete(3),
            "pair": spaces.MultiDiscrete([4, 4]),
            "push": spaces.Box(0, 4, (1,), np.float32),
        }
    )

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self._left = 9
        return self._look(), {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action), action
        assert self._mask[action["action"]], "excluded"
        assert self._pair[[0, 1], action["pair"]].all(), "excluded"
        self._left -= 1
        return self._look(), 1.0, self._left == 0, False, {}

    def _look(self) -> dict[str, np.ndarray]:
        self._mask, self._pair = (self._valid(shape) for shape in ((3,), (2, 4)))
        place = self.np_random.normal(size=3).astype(np.float32)
        return {"observation": place, "action_mask": self._mask, "action_mask_pair": self._pair}

    def _valid(self, shape: tuple[int, ...]) -> np.ndarray:
        valid = self.np_random.random(shape) < 0.4
        valid[..., 1] |= ~valid.any(-1)
        return valid.astype(np.int8)
