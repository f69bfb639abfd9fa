"""Plays a fixed number of whole episodes on fresh environments."""

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
from dreamer.rollout.driver import Driver, play, shares
from dreamer.rollout.policy import Policy

MAX_FRAMES = 2000  # of a video; an episode may last for hours


@dataclass(frozen=True)
class EvaluationResult:
    """Results in the order in which episodes were started, environment by environment."""

    returns: np.ndarray  # [episodes]
    lengths: np.ndarray  # [episodes], steps
    frames: np.ndarray | None = None  # [T, H, W, 3] uint8 of the first episode
    restarts: Sequence[Restart] = ()  # restarted environments, whose broken episodes do not count
    not_drawn: str = ""  # why there are no frames, where drawing failed


def evaluate(
    policy: Policy,
    params: Any,
    env_config: Env,
    episodes: int,
    seed: int,
    record: bool = False,
    interrupted: Callable[[], bool] = lambda: False,
) -> EvaluationResult | None:
    """Plays episodes with fixed parameters on fresh environments, as many as the policy is for.

    Args:
      policy: for N environments; it is reset.
      params: its parameters.
      env_config: the environment's section.
      episodes: how many in all, at least N.
      seed: of the environments and the policy.
      record: keep the frames of the first episode.
      interrupted: called at every step; when True the result is None.
    """
    num_envs = policy.num_envs
    left = shares(episodes, num_envs)
    results: list[list[tuple[float, int]]] = [[] for _ in left]
    env = registry.make(env_config, num_envs, seed, render=record)
    try:
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
    finally:
        env.close()
    returns, lengths = (np.array(x) for x in zip(*sum(results, []), strict=True))
    frames = images.stack(recorder.frames) if recorder.frames else None
    return EvaluationResult(returns, lengths, frames, env.restarts, recorder.failure)


@dataclass
class Recorder:
    """Keeps the frames of environment 0 until its first episode ends, or the first `MAX_FRAMES`.

    Where drawing fails there are none, and the episode continues.
    """

    env: BatchedEnv
    frames: list[np.ndarray] = field(default_factory=list)
    done: bool = False
    failure: str = ""

    def add(self, time_step: dm_env.TimeStep) -> None:
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
    """What environment 0 looks like, uint8 [H, W, 3]: its rendering, or else its first image; None
    without either."""
    rendered = env.render()
    if rendered is not None:
        return np.array(rendered[0])
    for value in time_step.observation.values():
        if value.ndim == 4 and value.dtype == np.uint8:
            return images.picture(value[0, ..., :3].copy())
    return None
