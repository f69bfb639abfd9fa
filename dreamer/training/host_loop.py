"""Environments on the host: act, add to replay, learn, step.

Updates are dispatched before the environments step, so the device learns at the same time. The next
actions wait for it, unless they are computed on another device from the weights of earlier
iterations (`run.policy_device`, `run.policy_lag`).
"""

from collections import deque
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from dreamer.agents.interface import Agent
from dreamer.config import Config
from dreamer.datasets.initial import NOTHING, Initial
from dreamer.distributed import hosts, mesh
from dreamer.envs import registry
from dreamer.envs.base import Restart
from dreamer.errors import UserError
from dreamer.ops.random import purpose_key
from dreamer.replay import tree
from dreamer.rollout.driver import Driver, Ended
from dreamer.rollout.policy import Policy
from dreamer.training.loop import Episodes, Loop, make_learner
from dreamer.training.schedules import Ratio


class HostLoop(Loop):
    """A loop whose iteration steps every environment once.

    Args:
      config: the whole configuration.
      devices: to train on.
    """

    learner: Any  # that of `make_learner`

    def __init__(self, config: Config, devices: list[jax.Device]) -> None:
        self._hosts = hosts.count()
        self._in_jax = registry.is_jax(config.env)  # whose state is made of arrays
        self.env = registry.make(config.env, config.env.num_envs, config.seed)
        try:
            specs = self.env.observation_spec(), self.env.action_spec()
            self.native_actions = getattr(self.env, "native_actions", None)
            option = "training on several hosts" if self._hosts > 1 else ""
            super().__init__(config, devices, specs, option)
            self._weights = ActingWeights(config, self.agent, devices)
            self.learner = make_learner(config, self.agent, devices)
        except BaseException:
            self.env.close()
            raise
        shard = hosts.index(), self._hosts
        self._policy = Policy(self.agent, self._num_envs, device=self._weights.device, shard=shard)
        self._policy.reset(purpose_key(config.seed, "act"))
        stride = self._num_envs * self._hosts
        self.driver = Driver(self.env, self._policy, self.agent.observations, stride)
        self.ratio = Ratio.of(config)
        self._enter(0)

    @property
    def restarts(self) -> Sequence[Restart]:
        return self.env.restarts

    def _enter(self, number: int) -> None:
        """Starts a phase of the agent."""
        self.phase, self._phase = number, self.agent.phases[number]
        if not self.agent.single_phase:
            self.learner.enter(self._phase.train_step)
            self._policy.enter(self._phase.act or self.agent.act)

    def _check_phase(self) -> None:
        """Refuses a phase that can never learn."""
        phase, steps, needed = self._phase, self.loaded + self.step, self._config.first_update
        if phase.train_step and not phase.act and steps < needed:
            raise UserError(
                f"agent.kind={self.agent.config.kind}: phase {phase.name} learns from {steps} "
                f"steps, and updates need {needed}; collect more, or lower replay.batch_size"
            )

    def start(self, initial: Initial = NOTHING) -> None:
        super().start(initial)
        self._check_phase()
        self._weights.add(self.learner.params)
        self.driver.reset()

    def advance(self, until: int) -> Episodes:
        phase, learner = self._phase, self.learner
        if phase.act:
            learner.add(self.driver.act(self._weights.current))
            self.step += self._num_envs
        before = learner.updates
        try:
            self._learn()
        except Exception:  # replay and environments must agree in the save that follows
            if phase.act:
                self.driver.step()
            raise
        if learner.updates > before:
            self._weights.add(learner.params)
        ended = self.driver.step() if phase.act else []
        self._end_iteration(ended)
        return [(score, length) for _, score, length in ended]

    def _learn(self) -> None:
        """Dispatches the updates owed; without acting, one call of updates."""
        if self._phase.train_step and self.loaded + self.step >= self._config.first_update:
            per_call = self._config.run.updates_per_call
            self.learner.train(self.ratio.updates(self.step) if self._phase.act else per_call)

    def _end_iteration(self, ended: Ended) -> None:
        """Evolves the agent where the phase does; starts the next phase after its last step."""
        phase, learner = self._phase, self.learner
        if phase.evolve and ended:
            state, self._policy.carry = phase.evolve(learner.state, self._policy.carry, ended)
            learner.replace(state)
            self._weights.add(learner.params)
        if phase.over(self.step, learner.updates) and self.phase + 1 < len(self.agent.phases):
            self._enter(self.phase + 1)
            self._check_phase()

    def get_counters(self) -> dict[str, Any]:
        episodes = self.driver.episodes.get_state()
        counters = super().get_counters() | {"ratio": self.ratio.get_state(), "episodes": episodes}
        return counters if self._in_jax else counters | {"env": self.env.get_state()}

    def get_arrays(self) -> tuple[dict[str, Any], bool]:
        arrays, copied = super().get_arrays()
        arrays |= {"carry": self._policy.get_state(), "weights": self._weights.get_arrays()}
        return arrays | ({"env": self.env.get_state()} if self._in_jax else {}), copied

    def set_state(self, state: Any, arrays: dict[str, Any], counters: dict[str, Any]) -> str:
        self._enter(counters["phase"])
        note = super().set_state(state, arrays, counters)
        self._check_phase()
        self._policy.set_state(arrays["carry"])
        self._weights.set_arrays(arrays.get("weights", {}), self.learner.params)
        self.ratio.set_state(counters["ratio"])
        saved = (arrays if self._in_jax else counters).get("env", {})
        notes = self._restore_episodes(saved, counters["episodes"])
        return "; ".join(filter(None, [note, *notes]))

    def _restore_episodes(self, saved: dict[str, Any], running: dict[str, list]) -> list[str]:
        """Continues the episodes that were saved; returns notes on those that start instead."""
        driver = self.driver
        driver.number = self.step * self._hosts
        driver.episodes.set_state(running)
        if saved.get("state" if self._in_jax else "episodes"):
            restored, driver.time_step = self.env.set_state(saved)
        else:  # of an `ActorLoop`, whose episodes cannot be restored, or of another suite
            restored, driver.time_step = np.zeros(self._num_envs, bool), self.env.reset()
        driver.episodes.forget(~restored)
        lost = np.sum(~restored)
        notes = [f"{lost} environments could not be restored and start an episode"] if lost else []
        known = 0 if "actors" in saved else len(saved.get("restarts") or ())
        return notes + [restart.line for restart in self.restarts[known:]]

    def close(self) -> None:
        super().close()
        self.env.close()


class ActingWeights:
    """The weights to act with, on their device: those before the last `run.policy_lag` iterations
    with updates.

    Raises:
      UserError: a lag on the device that trains, which computes actions after the updates whatever
        weights they come from.
    """

    def __init__(self, config: Config, agent: Agent, devices: list[jax.Device]) -> None:
        lag, on_cpu = config.run.policy_lag, config.run.policy_device == "cpu"
        if lag and not on_cpu:
            raise UserError(
                f"run.policy_lag={lag} gains nothing on the device that trains, which computes "
                "actions after the updates; add run.policy_device=cpu, or leave it out"
            )
        self.device = mesh.cpu_device() if on_cpu else devices[0]
        # Learning reuses the memory of older weights.
        self._must_copy = lag > 0 or self.device != devices[0]
        self._acting = agent.acting
        self._weights: deque[Any] = deque(maxlen=lag + 1)

    @property
    def current(self) -> Any:
        """Parameters of the networks that acting needs."""
        return self._weights[0]

    def add(self, params: Any) -> None:
        """Takes the newest weights."""
        weights = {name: params[name] for name in self._acting}
        self._weights.append(mesh.copy_to(weights, self.device) if self._must_copy else weights)

    def get_arrays(self) -> dict[str, Any]:
        """The weights older than the newest."""
        older = list(self._weights)[:-1]
        return {str(age): jax.device_get(weights) for age, weights in enumerate(older)}

    def set_arrays(self, saved: dict[str, Any], params: Any) -> None:
        """Restores `get_arrays`, `params` being the newest weights."""
        self._weights.clear()
        own = {name: params[name] for name in self._acting}
        for age in sorted(saved, key=int):
            tree.refuse_others(f"weights.{age}", saved[age], own)
            self._weights.append(mesh.copy_to(saved[age], self.device))
        self.add(params)
