"""Replay in device memory for environments on the host, and learning from it."""

import dataclasses
from functools import partial
from typing import Any

import jax
from jax import Array

from dreamer import parallel
from dreamer.agent import agent as agents
from dreamer.agent.agent import Agent, State
from dreamer.config import Config
from dreamer.replay import device, host
from dreamer.run.beginning import Beginning
from dreamer.run.device_memory import DeviceMemory, Memory
from dreamer.run.learner import purpose_key
from dreamer.run.metrics import LateMetrics, Reading


class DeviceStore:
    """The counterpart of `HostStore`: steps go up, latents are there already, and batches are taken
    where they are used.

    Args:
      config: the whole configuration.
      agent: networks.
      devices: to train on.

    Raises:
      UserError: the capacity does not fit, or the environments cannot be spread.
    """

    where = "device memory"

    def __init__(self, config: Config, agent: Agent, devices: list[jax.Device]) -> None:
        self._metrics, self._devices = LateMetrics(), devices
        self._plan = DeviceMemory(config, agent, devices, self._metrics, "replay.where=host")
        first = agent.init(purpose_key(config.seed, "init"))
        self.state: State = parallel.replicate(first, devices)
        self.updates = 0  # gradient updates dispatched so far
        self._memory: Memory
        self._steps = 0  # added by each environment
        self._owed, self._per_call = 0, config.run.updates_per_call
        self._num_envs = config.env.num_envs
        self._length = config.replay.batch_length + 1
        compiled = partial(parallel.compile_shares, devices=devices)
        self._add = compiled(self._put, in_axes=(0, None), out_axes=0, donate=0)
        self._learn = compiled(
            self._updates, in_axes=(None, 0), out_axes=(None, 0, None), donate=(0, 1)
        )

    @property
    def params(self) -> Any:
        """Parameters after all dispatched updates, on the first device."""
        return parallel.unreplicate(self.state.params)

    # --------------------------------------------------------------- compiled, on one device each

    def _put(self, memory: Memory, transition: Any) -> Memory:
        """Adds this device's share of a step of all environments, leaves [N, ...]."""
        count = self._plan.envs_each
        first = parallel.place(self._devices) * count
        share = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, first, count), transition)
        return dataclasses.replace(memory, replay=device.add(memory.replay, share))

    def _updates(self, state: State, memory: Memory) -> tuple[State, Memory, Array]:
        """The updates of one call, and the metrics of each."""

        def body(carry: tuple[State, Memory], _: None) -> tuple[tuple[State, Memory], Array]:
            state, memory, metrics = self._plan.learn(*carry)
            return (state, memory), metrics

        start, count = (state, memory), self._per_call
        (state, memory), metrics = parallel.repeat(body, start, None, count, self._devices)
        return state, memory, metrics

    # --------------------------------------------------------------------------------- on the host

    def start(self, beginning: Beginning) -> None:
        """Makes the replay, and takes what the run begins with."""
        self._memory = self._plan.start(beginning.recording)
        self._steps = beginning.steps(self._num_envs) // self._num_envs
        if beginning.params is not None:
            state = agents.state_of(self._plan.agent, beginning.params)
            self.state = parallel.replicate(state, self._devices)

    def add(self, transition: dict[str, Any]) -> None:
        """Remembers one step of every environment."""
        self._memory = self._add(self._memory, parallel.replicate(transition, self._devices))
        self._steps += 1

    def train(self, owed: int) -> None:
        """Dispatches as many whole calls as are owed, keeping the rest for later."""
        self._owed += owed
        while self._owed >= self._per_call:
            self.state, self._memory, metrics = self._learn(self.state, self._memory)
            self._owed -= self._per_call
            self.updates += self._per_call
            self._metrics.add(metrics)

    def read_metrics(self, wait: bool) -> Reading:
        """Those since the last reading, see `LateMetrics.read`."""
        return self._metrics.read(wait)

    def sequences(self, count: int, seed: tuple[int, ...]) -> dict[str, Any] | None:
        """Replayed sequences of the first device, which change nothing; None while there are
        none."""
        if self._steps < self._length:
            return None
        return self._plan.sequences(self._memory, count, seed)

    def get_counters(self) -> dict[str, int]:
        """Updates done and owed."""
        return {"updates": self.updates, "owed": self._owed}

    def get_arrays(self) -> tuple[dict[str, Any], bool]:
        """As those of `HostStore`."""
        return self._plan.get_arrays(self._memory, self.updates > 0)

    def set_state(
        self, state: State, arrays: dict[str, Any], counters: dict[str, int]
    ) -> list[str]:
        """Restores what any store saved; takes the replay out of `arrays`. Says what was lost."""
        self.state = parallel.replicate(state, self._devices)
        self.updates, self._owed = counters["updates"], counters["owed"]
        self._steps = host.counters_of(arrays["replay"])["steps"]
        self._memory, lost = self._plan.set_state(arrays)
        return lost

    def close(self) -> None:
        """Nothing to end."""
