"""Environments and replay on the host: act, remember, learn.

One turn steps every environment once. Updates are dispatched before the environments step, so the
device learns while they do; only the next actions, which come from the updated policy, wait for it.
"""

from typing import Any

import dm_env
import jax
import numpy as np

from dreamer.agent import agent as agents
from dreamer.agent.agent import State
from dreamer.config import Config
from dreamer.envs import registry
from dreamer.replay import host, memory
from dreamer.run.clocks import Ratio
from dreamer.run.evaluate import Episodes
from dreamer.run.learner import Learner, purpose_key
from dreamer.run.policy import Policy, transition, transition_spec


class HostLoop:
    """All that acts, remembers and learns in a run; writes no file. `start` or `set_state` first.

    Args:
      config: the whole configuration.
      devices: to train on.
    """

    where = "host"

    def __init__(self, config: Config, devices: list[jax.Device]) -> None:
        settings, num_envs = config.replay, config.env.num_envs
        self._config = config
        self.env = registry.make(config.env, num_envs, config.seed)
        try:
            specs = self.env.observation_spec(), self.env.action_spec()
            self.agent = agents.make_agent(config.agent, *specs)
            self.replay = host.init(
                transition_spec(self.agent),
                settings.capacity,
                num_envs,
                settings.batch_length + 1,
                settings.online,
            )
            self.learner = Learner(
                self.agent, devices, config.seed, settings.batch_size, config.run.updates_per_call
            )
        except BaseException:
            self.env.close()
            raise
        self.policy = Policy(self.agent, num_envs)
        self.policy.reset(purpose_key(config.seed, "act"))
        self.ratio = Ratio(settings.train_ratio / (settings.batch_size * settings.batch_length))
        self.episodes = Episodes.start(num_envs)
        self.step = 0  # environment steps in replay so far
        self.time_step: dm_env.TimeStep

    @property
    def updates(self) -> int:
        """Gradient updates dispatched so far."""
        return self.learner.updates

    @property
    def params(self) -> Any:
        """Parameters after them, on the first device."""
        return self.learner.params

    @property
    def state(self) -> State:
        """What learning changes, for a checkpoint and as the pattern to restore one."""
        return self.learner.state

    def start(self) -> None:
        """Starts the first episodes."""
        self.time_step = self.env.reset()
        self.episodes.add(self.time_step)

    def turn(self) -> list[tuple[float, int]]:
        """Acts, remembers, dispatches the updates owed, and steps the environments meanwhile.

        Returns:
          Return and length of each episode that ended.
        """
        settings = self._config.replay
        action, latent = self.policy(self.params, self.time_step, self.step)
        host.add(self.replay, transition(self.time_step, action, latent))
        self.step += self._config.env.num_envs
        if host.num_items(self.replay) >= settings.batch_size * settings.batch_length:
            self.learner.train(self.replay, self.ratio.updates(self.step))
        self.time_step = self.env.step(action)
        return [(score, length) for _, score, length in self.episodes.add(self.time_step)]

    def drain(self) -> list[tuple[float, int]]:
        """Episodes that ended but were not yet told: none."""
        return []

    def read_metrics(self, wait: bool = False) -> dict[str, float]:
        """Averages since the last reading, see `Learner.read_metrics`."""
        return self.learner.read_metrics(wait)

    def sequences(self, count: int, seed: tuple[int, ...]) -> dict[str, Any] | None:
        """Replayed sequences to look at, see `sequences`."""
        return sequences(self.replay, count, seed)

    def get_counters(self) -> dict[str, Any]:
        """What is needed to go on exactly beside `state` and `get_arrays()`, made of JSON types."""
        return {
            "step": self.step,
            "learner": self.learner.get_counters(),
            "ratio": self.ratio.get_state(),
            "env": self.env.get_state(),
            "episodes": self.episodes.get_state(),
        }

    def get_arrays(self) -> tuple[dict[str, Any], bool]:
        """Replay, pending latents and the policy's memory; and whether the replay is a copy.

        One too large to copy must be written before anything changes it.
        """
        copy = host.nbytes(self.replay) < 0.8 * memory.available()
        arrays = {
            "replay": host.get_state(self.replay, copy),
            "pending": self.learner.fetch_pending(),
            "carry": self.policy.get_state(),
        }
        return arrays, copy

    def set_state(self, state: State, arrays: dict[str, Any], counters: dict[str, Any]) -> str:
        """Restores all three, and says what could not be restored exactly."""
        self.step = counters["step"]
        same_windows = arrays["replay"]["counters"]["length"][0] == self.replay.length
        pending = arrays["pending"] if same_windows else {}
        self.learner.set_state(state, pending, counters["learner"])
        self.policy.set_state(arrays["carry"])
        self.ratio.set_state(counters["ratio"])
        host.set_state(self.replay, arrays.pop("replay"))
        self.episodes.set_state(counters["episodes"])
        restored, self.time_step = self.env.set_state(counters["env"])
        self.episodes.forget(~restored)
        if restored.all():
            return ""
        return f"{np.sum(~restored)} environments could not be restored and start an episode"

    def close(self) -> None:
        """Ends the environments."""
        self.env.close()


def sequences(replay: host.Replay, count: int, seed: tuple[int, ...]) -> dict[str, Any] | None:
    """Replayed sequences, leaves [count, T + 1, ...], which change nothing; None while there are
    none."""
    if not host.num_items(replay):
        return None
    return host.sample(replay, seed, count, online=False)[1]
