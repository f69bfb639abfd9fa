"""Environments on the host: act, remember, learn.

One turn steps every environment once. Updates are dispatched before the environments step, so the
device learns while they do. The next actions wait for it, unless they are computed on another
device from the weights of turns before (`run.policy_device`, `run.policy_lag`).
"""

from collections import deque
from collections.abc import Sequence
from typing import Any

import dm_env
import jax
import numpy as np

from dreamer import parallel
from dreamer.agent.agent import Agent, State
from dreamer.config import Config
from dreamer.envs import registry
from dreamer.envs.base import Restart
from dreamer.errors import UserError
from dreamer.replay import tree
from dreamer.run.beginning import NOTHING, Beginning
from dreamer.run.clocks import Ratio
from dreamer.run.device_memory import make_agent
from dreamer.run.evaluate import Episodes
from dreamer.run.learner import purpose_key
from dreamer.run.policy import PARTS, Policy, transition
from dreamer.run.store_loop import StoreLoop, make_store


class HostLoop(StoreLoop):
    """All that acts, remembers and learns in a run; writes no file. `start` or `set_state` first.

    Args:
      config: the whole configuration.
      devices: to train on.
    """

    def __init__(self, config: Config, devices: list[jax.Device]) -> None:
        self._config, self._hosts = config, parallel.hosts()
        self._in_jax = registry.is_jax(config.env)  # whose state is made of arrays
        self.env = registry.make(config.env, config.env.num_envs, config.seed)
        try:
            specs = self.env.observation_spec(), self.env.action_spec()
            self.native_actions = getattr(self.env, "native_actions", None)
            self.agent = make_agent(config, specs, devices)
            self._actor = Actor(config, self.agent, devices)
            self.store = make_store(config, self.agent, devices)
        except BaseException:
            self.env.close()
            raise
        per_update = config.replay.batch_size * config.replay.batch_length
        self.ratio = Ratio(config.replay.train_ratio / per_update)
        self.episodes = Episodes.start(config.env.num_envs)
        self.step = 0  # environment steps so far, all of them put into replay
        self.loaded = 0  # steps that were in replay before
        self.time_step: dm_env.TimeStep

    @property
    def restarts(self) -> Sequence[Restart]:
        """Environments made anew in this run, see `BatchedEnv`."""
        return self.env.restarts

    def start(self, beginning: Beginning = NOTHING) -> None:
        """Starts the first episodes."""
        self.store.start(beginning)
        self.loaded = beginning.steps(self._config.env.num_envs)
        self._actor.learned(self.params)
        self.time_step = self.env.reset()
        self.episodes.add(self.time_step)

    def turn(self) -> list[tuple[float, int]]:
        """Acts, remembers, dispatches the updates owed, and steps the environments meanwhile.

        Returns:
          Return and length of each episode that ended.

        Raises:
          EnvironmentFault: environments failed too often. What came before the step stands and can
            be saved; the environments then start new episodes.
        """
        action, latent = self._actor(self.time_step, self.step * self._hosts)
        self.store.add(transition(self.agent, self.time_step, action, latent))
        self.step += self._config.env.num_envs
        if self.loaded + self.step >= self._config.first_update:
            before = self.updates
            try:
                self.store.train(self.ratio.updates(self.step))
            except Exception:  # what can be saved then is whole: the environments stepped too
                self._act(action)
                raise
            if self.updates > before:
                self._actor.learned(self.params)
        return self._act(action)

    def _act(self, action: Any) -> list[tuple[float, int]]:
        self.time_step = self.env.step(action)
        return [(score, length) for _, score, length in self.episodes.add(self.time_step)]

    def get_counters(self) -> dict[str, Any]:
        """What is needed to go on exactly beside `state` and `get_arrays()`, made of JSON types."""
        counters = {
            "step": self.step,
            "loaded": self.loaded,
            "learner": self.store.get_counters(),
            "ratio": self.ratio.get_state(),
            "episodes": self.episodes.get_state(),
        }
        return counters if self._in_jax else counters | {"env": self.env.get_state()}

    def get_arrays(self) -> tuple[dict[str, Any], bool]:
        """Replay, latents still to be written back, what acting remembers, and environments
        written in JAX; and whether the replay is a copy. One too large to copy must be written
        before anything changes it."""
        arrays, copied = self.store.get_arrays()
        envs = {"env": self.env.get_state()} if self._in_jax else {}
        return arrays | self._actor.get_arrays() | envs, copied

    def set_state(self, state: State, arrays: dict[str, Any], counters: dict[str, Any]) -> str:
        """Restores all three, and says what could not be restored exactly."""
        self.step, self.loaded = counters["step"], counters.get("loaded", 0)
        lost = self.store.set_state(state, arrays, counters["learner"])
        self._actor.set_state(arrays, self.params)
        self.ratio.set_state(counters["ratio"])
        self.episodes.set_state(counters["episodes"])
        saved = arrays.get("env") or counters.get("env", {})
        if saved.get("state" if self._in_jax else "episodes"):
            restored, self.time_step = self.env.set_state(saved)
        else:  # of an `ActorLoop`, in which no episode can be restored, or of another suite
            restored, self.time_step = np.zeros(self._config.env.num_envs, bool), self.env.reset()
        self.episodes.forget(~restored)
        notes = [f"not restored: {', '.join(lost)}"] if lost else []
        if not restored.all():
            number = np.sum(~restored)
            notes.append(f"{number} environments could not be restored and start an episode")
        known = 0 if "actors" in saved else len(saved.get("restarts") or ())
        notes += [restart.line for restart in self.restarts[known:]]
        return "; ".join(notes)

    def close(self) -> None:
        """Ends the environments."""
        self.store.close()
        self.env.close()


class Actor:
    """The policy with the weights of `run.policy_lag` turns with updates ago, on its own device.

    Raises:
      UserError: a lag on the device that trains, where actions are computed after the updates
        whatever weights they come from.
    """

    def __init__(self, config: Config, agent: Agent, devices: list[jax.Device]) -> None:
        if config.run.policy_lag and config.run.policy_device == "train":
            raise UserError(
                f"run.policy_lag={config.run.policy_lag} gains nothing on the device that trains, "
                "which computes actions after the updates; add run.policy_device=cpu, or leave it "
                "out"
            )
        lag, on_cpu = config.run.policy_lag, config.run.policy_device == "cpu"
        self._device = parallel.cpu_device() if on_cpu else devices[0]
        # Learning takes the memory of weights that it has left behind.
        self._must_copy = lag > 0 or self._device != devices[0]
        self._weights: deque[Any] = deque(maxlen=lag + 1)
        share = parallel.host(), parallel.hosts()
        self._policy = Policy(agent, config.env.num_envs, device=self._device, share=share)
        self._policy.reset(purpose_key(config.seed, "act"))

    def __call__(self, time_step: dm_env.TimeStep, step: int) -> tuple[Any, Any]:
        """Actions [N, ...] by key, and the latents, see `Policy`."""
        return self._policy(self._weights[0], time_step, step)

    def learned(self, params: Any) -> None:
        """Takes the weights after the updates of a turn."""
        weights = {name: params[name] for name in PARTS}
        if self._must_copy:
            weights = parallel.copy_to(weights, self._device)
        self._weights.append(weights)

    def get_arrays(self) -> dict[str, Any]:
        """The policy's memory, and the weights older than the newest."""
        older = list(self._weights)[:-1]
        return {
            "carry": self._policy.get_state(),
            "weights": {str(age): jax.device_get(weights) for age, weights in enumerate(older)},
        }

    def set_state(self, arrays: dict[str, Any], params: Any) -> None:
        """Restores `get_arrays`, `params` being the newest weights."""
        self._policy.set_state(arrays["carry"])
        saved = arrays.get("weights", {})
        self._weights.clear()
        for age in sorted(saved, key=int):
            own = {name: params[name] for name in PARTS}
            tree.refuse_others(f"weights.{age}", saved[age], own)
            self._weights.append(parallel.copy_to(saved[age], self._device))
        self.learned(params)
