"""Plays a fixed number of episodes in new environments."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import dm_env
import jax
import numpy as np

from dreamer.config.env import Env
from dreamer.envs import images, registry
from dreamer.envs.base import BatchedEnv, Restart
from dreamer.errors import describe
from dreamer.rollout.driver import Driver, episodes_per_env, play
from dreamer.rollout.policy import Policy

MAX_FRAMES = 2000  # of a video; episodes may last for hours


@dataclass(frozen=True)
class EvaluationResult:
    """Results by environment, in the order in which its episodes started."""

    returns: np.ndarray  # [episodes]
    lengths: np.ndarray  # [episodes], steps
    frames: np.ndarray | None = None  # [T, H, W, 3] uint8 of the first episode
    restarts: Sequence[Restart] = ()  # of environments; their broken episodes do not count
    not_drawn: str = ""  # why rendering failed, if it did


def evaluate(
    policy: Policy,
    params: Any,
    env_config: Env,
    episodes: int,
    seed: int,
    record: bool = False,
    interrupted: Callable[[], bool] = lambda: False,
) -> EvaluationResult | None:
    """Plays episodes with fixed parameters in new environments.

    Args:
      policy: for N environments; it is reset.
      params: its parameters.
      env_config: the environment's section.
      episodes: their number in all environments, at least N.
      seed: of the environments and the policy.
      record: keeps the frames of the first episode.
      interrupted: called at every step; if True, the result is None.
    """
    num_envs = policy.num_envs
    left = episodes_per_env(episodes, num_envs)
    results: list[list[tuple[float, int]]] = [[] for _ in left]
    with contextlib.closing(registry.make(env_config, num_envs, seed, render=record)) as env:
        policy.reset(jax.random.key(seed))
        driver, recorder = Driver(env, policy, ()), Recorder(env, done=not record)
        known = 0
        if interrupted():
            return None
        for _, ended in play(driver, params):
            if interrupted():
                return None
            recorder.add(driver.time_step)
            broken = {restart.env for restart in env.restarts[known:]}
            known = len(env.restarts)
            for i, score, length in ended:
                if i not in broken and left[i]:
                    results[i].append((score, length))
                    left[i] -= 1
            if not any(left):
                break
    returns, lengths = (np.array(x) for x in zip(*sum(results, []), strict=True))
    frames = images.stack(recorder.frames) if recorder.frames else None
    return EvaluationResult(returns, lengths, frames, env.restarts, recorder.failure)


@dataclass
class Recorder:
    """Keeps the frames of environment 0 until its first episode ends, at most `MAX_FRAMES`.

    If rendering fails there are none, and the episode continues.
    """

    env: BatchedEnv
    frames: list[np.ndarray] = field(default_factory=list)
    done: bool = False
    failure: str = ""

    def add(self, time_step: dm_env.TimeStep) -> None:
        """Adds the frame of a time step."""
        if self.done:
            return
        try:
            picture = frame(self.env, time_step)
        except Exception as error:
            self.failure, self.done, self.frames = describe(error), True, []
            return
        if picture is not None:
            self.frames.append(picture)
        self.done |= bool(time_step.step_type[0] == dm_env.StepType.LAST)
        self.done |= len(self.frames) == MAX_FRAMES


def frame(env: BatchedEnv, time_step: dm_env.TimeStep) -> np.ndarray | None:
    """A frame of environment 0, uint8 [H, W, 3]: rendered, or its first observed image; None if it
    has neither."""
    rendered = env.render()
    if rendered is not None:
        return np.array(rendered[0])
    for value in time_step.observation.values():
        if value.ndim == 4 and value.dtype == np.uint8:
            return images.picture(value[0, ..., :3].copy())
    return None
