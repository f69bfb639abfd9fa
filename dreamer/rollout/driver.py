"""The loop that acts, steps environments and makes rows of replay.

Training on the host, actors, evaluation, data collection and `TrainedAgent.record` use it.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import dm_env
import numpy as np

from dreamer.agents.interface import Agent
from dreamer.envs.base import BatchedEnv
from dreamer.errors import UserError
from dreamer.rollout.policy import ActingPolicy

Row = dict[str, Any]  # one step of N environments, leaves [N, ...]
Ended = list[tuple[int, float, int]]  # environment, return and length of each episode


class Driver:
    """Acts in N environments and steps them, one row at a time: `act`, then `step`.

    Args:
      env: N environments.
      policy: acts in them; it is reset already.
      keys: observations of the rows; None keeps all.
      stride: increment of the number of a step, which determines the random draws.
    """

    def __init__(
        self,
        env: BatchedEnv,
        policy: ActingPolicy,
        keys: Collection[str] | None = None,
        stride: int = 1,
    ) -> None:
        self.env, self.policy = env, policy
        self.episodes = EpisodeStats.start(policy.num_envs)
        self.number = 0  # of the next step
        self.time_step: dm_env.TimeStep
        self._keys, self._stride = keys, stride
        self._action: Any

    def reset(self) -> None:
        """Resets the environments."""
        self.time_step = self.env.reset()
        self.episodes.add(self.time_step)

    def act(self, params: Any) -> Row:
        """Chooses actions; returns the row of this time step, its latents still on the device."""
        self._action, latent = self.policy(params, self.time_step, self.number)
        return transition(self.time_step, self._action, latent, self._keys)

    def step(self) -> Ended:
        """Steps the environments with the actions; returns the episodes that ended."""
        self.time_step = self.env.step(self._action)
        self.number += self._stride
        return self.episodes.add(self.time_step)


def play(driver: Driver, params: Any) -> Iterator[tuple[Row, Ended]]:
    """Resets and acts endlessly; yields each row and the episodes that ended with it."""
    driver.reset()
    ended: Ended = []
    while True:
        yield driver.act(params), ended
        ended = driver.step()


def episodes_per_env(episodes: int, num_envs: int) -> list[int]:
    """Divides episodes evenly among environments, so that short ones are not favoured."""
    return [len(range(i, episodes, num_envs)) for i in range(num_envs)]


@dataclass
class EpisodeStats:
    """Returns and lengths so far of the running episodes of N environments."""

    returns: np.ndarray
    lengths: np.ndarray

    @classmethod
    def start(cls, num_envs: int) -> "EpisodeStats":
        return cls(np.zeros(num_envs), np.zeros(num_envs, np.int64))

    def add(self, time_step: dm_env.TimeStep) -> Ended:
        """Adds a time step; returns (environment, return, length) of each episode that it ends."""
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
          UserError: it has another number of environments.
        """
        returns, lengths = np.array(state["returns"], float), np.array(state["lengths"], np.int64)
        if not returns.shape == lengths.shape == self.lengths.shape:
            raise UserError(f"it has {len(lengths)} environments, expected {len(self.lengths)}")
        self.returns, self.lengths = returns, lengths

    def forget(self, envs: np.ndarray) -> None:
        """Starts from zero where the mask [N] is True."""
        self.returns = np.where(envs, 0.0, self.returns)
        self.lengths = np.where(envs, 0, self.lengths)


def transition(
    time_step: dm_env.TimeStep,
    action: Mapping[str, Any],
    latent: Any,
    keys: Collection[str] | None = None,
    where: Callable = np.where,
) -> Row:
    """A row of replay: the observation, the action taken after it (zero at LAST), the latent.

    Args:
      time_step: batched, leaves [N, ...].
      action: [N, ...] by key.
      latent: of the policy.
      keys: observations to keep; None keeps all.
      where: np.where, or jnp.where in compiled code.
    """
    last = time_step.step_type == dm_env.StepType.LAST

    def unless_last(a: Any) -> Any:
        return where(last.reshape(-1, *[1] * (a.ndim - 1)), 0, a).astype(a.dtype)

    observation = time_step.observation
    return {
        "observation": {key: observation[key] for key in (observation if keys is None else keys)},
        "action": {key: unless_last(a) for key, a in action.items()},
        "reward": time_step.reward,
        "is_first": time_step.step_type == dm_env.StepType.FIRST,
        "is_last": last,
        "is_terminal": time_step.discount == 0,
        "latent": latent,
    }


def transition_spec(agent: Agent) -> dict[str, Any]:
    """Shapes and dtypes of an agent's `transition` for one environment, as replay needs them."""

    def shapes(specs: Any) -> dict[str, Any]:
        return {key: (spec.shape, spec.dtype) for key, spec in specs.items()}

    flag = ((), np.dtype(bool))
    return {
        "observation": shapes(agent.observations),
        "action": shapes(agent.actions),
        "reward": ((), np.dtype(np.float32)),
        "is_first": flag,
        "is_last": flag,
        "is_terminal": flag,
        "latent": dict(agent.latent),
    }
