"""Learns from replay in device memory, for environments on the host."""

import dataclasses
from functools import partial
from typing import Any

import jax
from jax import Array

from dreamer.agents.interface import Agent
from dreamer.config import Config
from dreamer.datasets.initial import Initial
from dreamer.distributed import mesh
from dreamer.logs.metrics import LateMetrics, Reading
from dreamer.ops.random import purpose_key
from dreamer.replay import device, host
from dreamer.training.device_replay import DeviceReplay, Stored


class DeviceLearner:
    """A `Learner` whose replay is on the devices: steps go up, latents are there already, and
    batches are taken where they are used.

    Args:
      config: the whole configuration.
      agent: networks, of one phase.
      devices: to train on.

    Raises:
      UserError: the capacity does not fit, or the environments cannot be spread.
    """

    stored = "device memory"

    def __init__(self, config: Config, agent: Agent, devices: list[jax.Device]) -> None:
        self._agent, self._metrics, self._devices = agent, LateMetrics(), devices
        self._replay = DeviceReplay(config, agent, devices, self._metrics, "replay.where=host")
        self.state: Any = mesh.replicate(agent.init(purpose_key(config.seed, "init")), devices)
        self.updates = 0
        self._stored: Stored
        self._steps = 0  # added by each environment
        self._owed, self._per_call = 0, config.run.updates_per_call
        self._num_envs = config.env.num_envs
        self._length = config.replay.batch_length + 1
        compiled = partial(mesh.compile_shares, devices=devices)
        self._add = compiled(self._put, in_axes=(0, None), out_axes=0, donate=0)
        self._learn = compiled(
            self._updates, in_axes=(None, 0), out_axes=(None, 0, None), donate=(0, 1)
        )

    @property
    def params(self) -> Any:
        """Parameters after all dispatched updates, on the first device."""
        return mesh.unreplicate(self.state.params)

    # --------------------------------------------------------------- compiled, on one device each

    def _put(self, stored: Stored, row: Any) -> Stored:
        """Adds this device's shard of a step of all environments, leaves [N, ...]."""
        count = self._replay.envs_each
        first = mesh.place(self._devices) * count
        shard = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, first, count), row)
        return dataclasses.replace(stored, replay=device.add(stored.replay, shard))

    def _updates(self, state: Any, stored: Stored) -> tuple[Any, Stored, Array]:
        """The updates of one call, and the metrics of each."""

        def body(carry: tuple[Any, Stored], _: None) -> tuple[tuple[Any, Stored], Array]:
            state, stored, metrics = self._replay.learn(*carry)
            return (state, stored), metrics

        start, count = (state, stored), self._per_call
        (state, stored), metrics = mesh.repeat(body, start, None, count, self._devices)
        return state, stored, metrics

    # --------------------------------------------------------------------------------- on the host

    def start(self, initial: Initial) -> None:
        """Makes the replay; takes the initial data and weights of the run."""
        self._stored = self._replay.start(initial.recording)
        self._steps = initial.steps(self._num_envs) // self._num_envs
        if initial.params is not None:
            self.state = mesh.replicate(self._agent.state_of(initial.params), self._devices)

    def add(self, row: dict[str, Any]) -> None:
        """Adds one step of every environment to the replay."""
        self._stored = self._add(self._stored, mesh.replicate(row, self._devices))
        self._steps += 1

    def train(self, owed: int) -> None:
        """Dispatches as many whole calls as are owed, keeping the rest for later."""
        self._owed += owed
        while self._owed >= self._per_call:
            self.state, self._stored, metrics = self._learn(self.state, self._stored)
            self._owed -= self._per_call
            self.updates += self._per_call
            self._metrics.add(metrics)

    def read_metrics(self, wait: bool = False) -> Reading:
        """Those since the last reading, see `LateMetrics.read`."""
        return self._metrics.read(wait)

    def sequences(self, count: int, seed: tuple[int, ...]) -> dict[str, Any] | None:
        """Replayed sequences of the first device, which change nothing; None while there are
        none."""
        if self._steps < self._length:
            return None
        return self._replay.sequences(self._stored, count, seed)

    def get_counters(self) -> dict[str, int]:
        """Updates done and owed."""
        return {"updates": self.updates, "owed": self._owed}

    def get_arrays(self) -> tuple[dict[str, Any], bool]:
        """As those of `HostLearner`."""
        return self._replay.get_arrays(self._stored, self.updates > 0)

    def set_state(self, state: Any, arrays: dict[str, Any], counters: dict[str, int]) -> list[str]:
        """Restores what any learner saved; takes the replay out of `arrays`. Returns what was
        lost."""
        self.state = mesh.replicate(state, self._devices)
        self.updates, self._owed = counters["updates"], counters["owed"]
        self._steps = host.counters_of(arrays["replay"])["steps"]
        self._stored, lost = self._replay.set_state(arrays)
        return lost

    def close(self) -> None:
        """Nothing to end."""
