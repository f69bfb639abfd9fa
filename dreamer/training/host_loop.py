"""Environments on the host: act, add to replay, learn, step.

Updates are dispatched before the environments step, so the device learns while they do. The next
actions wait for it, unless they are computed on another device from the weights of earlier
iterations (`run.policy_device`, `run.policy_lag`).
"""

from collections import deque
from collections.abc import Mapping, Sequence
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
from dreamer.rollout.driver import Driver
from dreamer.rollout.policy import Policy
from dreamer.training.interfaces import Episodes
from dreamer.training.learners import agent_that_fits, make_learner, refuse_phases
from dreamer.training.schedules import Ratio


class HostLoop:
    """A `Loop` whose iteration steps every environment once.

    Args:
      config: the whole configuration.
      devices: to train on.
    """

    where = "host"
    gauges: Mapping[str, float] = {}

    def __init__(self, config: Config, devices: list[jax.Device]) -> None:
        self._config, self._hosts = config, hosts.count()
        self._in_jax = registry.is_jax(config.env)  # whose state is made of arrays
        num_envs = config.env.num_envs
        self.env = registry.make(config.env, num_envs, config.seed)
        try:
            specs = self.env.observation_spec(), self.env.action_spec()
            self.native_actions = getattr(self.env, "native_actions", None)
            self.agent = agent_that_fits(config, specs, devices)
            refuse_phases(self.agent, "training on several hosts", self._hosts > 1)
            self._weights = ActingWeights(config, self.agent, devices)
            self.learner: Any = make_learner(config, self.agent, devices)
        except BaseException:
            self.env.close()
            raise
        share = hosts.index(), self._hosts
        self._policy = Policy(self.agent, num_envs, device=self._weights.device, share=share)
        self._policy.reset(purpose_key(config.seed, "act"))
        observations, stride = self.agent.observations, num_envs * self._hosts
        self.driver = Driver(self.env, self._policy, observations, stride)
        self.ratio = Ratio.of(config)
        self.step = self.loaded = 0
        self._enter(0)

    @property
    def restarts(self) -> Sequence[Restart]:
        return self.env.restarts

    def _enter(self, number: int) -> None:
        """Begins a phase of the agent."""
        self.phase, phase = number, self.agent.phases[number]
        if not self.agent.single_phase:
            self.learner.enter(phase.train_step)
            self._policy.enter(phase.act or self.agent.act)

    def _check_phase(self) -> None:
        """Refuses a phase that can never learn."""
        phase = self.agent.phases[self.phase]
        steps, needed = self.loaded + self.step, self._config.first_update
        if phase.train_step and not phase.act and steps < needed:
            raise UserError(
                f"agent.kind={self.agent.config.kind}: phase {phase.name} learns from {steps} "
                f"steps, and updates need {needed}; collect more, or lower replay.batch_size"
            )

    def start(self, initial: Initial = NOTHING) -> None:
        self.learner.start(initial)
        self.loaded = initial.steps(self._config.env.num_envs)
        self._check_phase()
        self._weights.add(self.learner.params)
        self.driver.reset()

    def advance(self, until: int) -> Episodes:
        phase, learner = self.agent.phases[self.phase], self.learner
        if phase.act:
            learner.add(self.driver.act(self._weights.current))
            self.step += self._config.env.num_envs
        before = learner.updates
        try:
            if phase.train_step and self.loaded + self.step >= self._config.first_update:
                per_call = self._config.run.updates_per_call
                learner.train(self.ratio.updates(self.step) if phase.act else per_call)
        except Exception:  # replay and environments agree when they are saved then
            if phase.act:
                self.driver.step()
            raise
        if learner.updates > before:
            self._weights.add(learner.params)
        ended = self.driver.step() if phase.act else []
        if phase.evolve and ended:
            state, self._policy.carry = phase.evolve(learner.state, self._policy.carry, ended)
            learner.replace(state)
            self._weights.add(learner.params)
        if phase.over(self.step, learner.updates) and self.phase + 1 < len(self.agent.phases):
            self._enter(self.phase + 1)
            self._check_phase()
        return [(score, length) for _, score, length in ended]

    def drain(self) -> Episodes:
        return []

    def get_counters(self) -> dict[str, Any]:
        counters = {
            "step": self.step,
            "loaded": self.loaded,
            "phase": self.phase,
            "learner": self.learner.get_counters(),
            "ratio": self.ratio.get_state(),
            "episodes": self.driver.episodes.get_state(),
        }
        return counters if self._in_jax else counters | {"env": self.env.get_state()}

    def get_arrays(self) -> tuple[dict[str, Any], bool]:
        arrays, copied = self.learner.get_arrays()
        arrays |= {"carry": self._policy.get_state(), "weights": self._weights.get_arrays()}
        return arrays | ({"env": self.env.get_state()} if self._in_jax else {}), copied

    def set_state(self, state: Any, arrays: dict[str, Any], counters: dict[str, Any]) -> str:
        self.step, self.loaded = counters["step"], counters["loaded"]
        self._enter(counters["phase"])
        self._check_phase()
        lost = self.learner.set_state(state, arrays, counters["learner"])
        self._policy.set_state(arrays["carry"])
        self._weights.set_arrays(arrays.get("weights", {}), self.learner.params)
        self.ratio.set_state(counters["ratio"])
        notes = [f"not restored: {', '.join(lost)}"] if lost else []
        saved = (arrays if self._in_jax else counters).get("env", {})
        return "; ".join(notes + self._restore_episodes(saved, counters["episodes"]))

    def _restore_episodes(self, saved: dict[str, Any], running: dict[str, list]) -> list[str]:
        """Continues the episodes that were saved; returns lines on those that start instead."""
        driver = self.driver
        driver.number = self.step * self._hosts
        driver.episodes.set_state(running)
        if saved.get("state" if self._in_jax else "episodes"):
            restored, driver.time_step = self.env.set_state(saved)
        else:  # of an `ActorLoop`, in which no episode can be restored, or of another suite
            restored, driver.time_step = np.zeros(len(running["returns"]), bool), self.env.reset()
        driver.episodes.forget(~restored)
        notes = []
        if not restored.all():
            number = np.sum(~restored)
            notes.append(f"{number} environments could not be restored and start an episode")
        known = 0 if "actors" in saved else len(saved.get("restarts") or ())
        return notes + [restart.line for restart in self.restarts[known:]]

    def close(self) -> None:
        self.learner.close()
        self.env.close()


class ActingWeights:
    """The weights to act with, on their device: those before the last `run.policy_lag` iterations
    with updates.

    Raises:
      UserError: a lag on the device that trains, where actions are computed after the updates
        whatever weights they come from.
    """

    def __init__(self, config: Config, agent: Agent, devices: list[jax.Device]) -> None:
        lag, on_cpu = config.run.policy_lag, config.run.policy_device == "cpu"
        if lag and not on_cpu:
            raise UserError(
                f"run.policy_lag={lag} gains nothing on the device that trains, which computes "
                "actions after the updates; add run.policy_device=cpu, or leave it out"
            )
        self.device = mesh.cpu_device() if on_cpu else devices[0]
        # Learning takes the memory of weights that it has left behind.
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
