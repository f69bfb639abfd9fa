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
from dreamer.errors import UserError, describe
from dreamer.run.policy import Policy

MAX_FRAMES = 2000  # of a video; an episode may last for hours


@dataclass(frozen=True)
class Evaluation:
    """Results in the order in which episodes were started, environment by environment."""

    returns: np.ndarray  # [episodes]
    lengths: np.ndarray  # [episodes], steps
    frames: np.ndarray | None = None  # [T, H, W, 3] uint8 of the first episode
    restarts: Sequence[Restart] = ()  # environments made anew, whose broken episodes do not count
    not_drawn: str = ""  # why there are no frames, where drawing failed


@dataclass
class Episodes:
    """Adds up rewards and steps of the running episodes of N environments."""

    returns: np.ndarray
    lengths: np.ndarray

    @classmethod
    def start(cls, num_envs: int) -> "Episodes":
        return cls(np.zeros(num_envs), np.zeros(num_envs, np.int64))

    def add(self, time_step: dm_env.TimeStep) -> list[tuple[int, float, int]]:
        """Takes a time step; gives (environment, return, steps) of each episode it ended."""
        first = time_step.step_type == dm_env.StepType.FIRST
        self.returns = np.where(first, 0.0, self.returns + time_step.reward)
        self.lengths = np.where(first, 0, self.lengths + 1)
        ended = np.flatnonzero(time_step.step_type == dm_env.StepType.LAST)
        return [(int(i), float(self.returns[i]), int(self.lengths[i])) for i in ended]

    def get_state(self) -> dict[str, list]:
        """The running sums, made of JSON types."""
        return {"returns": self.returns.tolist(), "lengths": self.lengths.tolist()}

    def set_state(self, state: dict[str, list]) -> None:
        """Restores a result of `get_state`.

        Raises:
          UserError: it is of another number of environments.
        """
        returns, lengths = np.array(state["returns"], float), np.array(state["lengths"], np.int64)
        if not returns.shape == lengths.shape == self.lengths.shape:
            raise UserError(f"it is of {len(lengths)} environments, not {len(self.lengths)}")
        self.returns, self.lengths = returns, lengths

    def forget(self, envs: np.ndarray) -> None:
        """Starts again from zero where the mask [N] is True."""
        self.returns, self.lengths = (
            np.where(envs, 0.0, self.returns),
            np.where(envs, 0, self.lengths),
        )


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


def evaluate(
    policy: Policy,
    params: Any,
    env_config: Env,
    episodes: int,
    seed: int,
    record: bool = False,
    interrupted: Callable[[], bool] = lambda: False,
) -> Evaluation | None:
    """Plays episodes with fixed parameters on fresh environments, as many as the policy is for.

    Short episodes are not favoured: every environment plays its own share of the episodes.

    Args:
      policy: for N environments; it is reset.
      params: its parameters.
      env_config: the environment's section.
      episodes: how many in all, at least N.
      seed: of the environments and the policy.
      record: keep the frames of the first episode.
      interrupted: asked at every step; when True the result is None.
    """
    num_envs = policy.num_envs
    shares = [len(range(i, episodes, num_envs)) for i in range(num_envs)]
    results: list[list[tuple[float, int]]] = [[] for _ in shares]
    env = registry.make(env_config, num_envs, seed, render=record)
    try:
        policy.reset(jax.random.key(seed))
        recorder = Recorder(env) if record else None
        running, step, time_step = Episodes.start(num_envs), 0, env.reset()
        known = len(env.restarts)
        while any(len(result) < share for result, share in zip(results, shares, strict=True)):
            if interrupted():
                return None
            if recorder:
                recorder.add(time_step)
            broken = {restart.env for restart in env.restarts[known:]}
            known = len(env.restarts)
            for i, score, length in running.add(time_step):
                if i not in broken and len(results[i]) < shares[i]:
                    results[i].append((score, length))
            action, _ = policy(params, time_step, step)
            time_step = env.step(action)
            step += 1
    finally:
        env.close()
    flat = [result for env_results in results for result in env_results]
    frames = images.stack(recorder.frames) if recorder and recorder.frames else None
    returns, lengths = (np.array(column) for column in zip(*flat, strict=True))
    not_drawn = recorder.failure if recorder else ""
    return Evaluation(returns, lengths, frames, env.restarts, not_drawn)
