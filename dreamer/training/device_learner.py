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
from dreamer.replay import device
from dreamer.training.device_replay import DeviceReplay, Stored
from dreamer.training.learner import Learner


class DeviceLearner(Learner):
    """A learner whose replay is on the devices: rows are sent there, latents are there already, and
    batches are sampled where they are used.

    Args:
      config: the whole configuration.
      agent: networks, of one phase.
      devices: to train on.

    Raises:
      UserError: the capacity does not fit, or the environments cannot be spread.
    """

    stored = "device memory"

    def __init__(self, config: Config, agent: Agent, devices: list[jax.Device]) -> None:
        self._replay = DeviceReplay(config, agent, devices, "replay.where=host")
        super().__init__(config, agent, devices)
        self.metrics = self._replay.metrics
        self._stored: Stored
        compiled = partial(mesh.compile_shards, devices=devices)
        self._add = compiled(self._put, in_axes=(0, None), out_axes=0, donate=0)
        self._learn = compiled(
            self._updates, in_axes=(None, 0), out_axes=(None, 0, None), donate=(0, 1)
        )

    # --------------------------------------------------------------- compiled, on one device each

    def _put(self, stored: Stored, row: Any) -> Stored:
        """Adds this device's shard of a step of all environments, leaves [N, ...]."""
        count = self._replay.envs_each
        first = mesh.place(self.devices) * count
        shard = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, first, count), row)
        return dataclasses.replace(stored, replay=device.add(stored.replay, shard))

    def _updates(self, state: Any, stored: Stored) -> tuple[Any, Stored, Array]:
        """The updates of one call, and the metrics of each."""

        def body(carry: tuple[Any, Stored], _: None) -> tuple[tuple[Any, Stored], Array]:
            state, stored, metrics = self._replay.learn(*carry)
            return (state, stored), metrics

        start, count = (state, stored), self._per_call
        (state, stored), metrics = mesh.repeat(body, start, None, count, self.devices)
        return state, stored, metrics

    # --------------------------------------------------------------------------------- on the host

    def start(self, initial: Initial) -> None:
        self._stored = self._replay.start(initial.recording)
        super().start(initial)

    def add(self, row: dict[str, Any]) -> None:
        self._stored = self._add(self._stored, mesh.replicate(row, self.devices))

    def _dispatch(self) -> None:
        self.state, self._stored, metrics = self._learn(self.state, self._stored)
        self._count(metrics)

    def sequences(self, count: int, seed: tuple[int, ...]) -> dict[str, Any] | None:
        return self._replay.sequences(self._stored, count, seed)

    def get_arrays(self) -> tuple[dict[str, Any], bool]:
        return self._replay.get_arrays(self._stored, self.updates > 0)

    def set_state(self, state: Any, arrays: dict[str, Any], counters: dict[str, int]) -> list[str]:
        lost = super().set_state(state, arrays, counters)
        self._stored, lost_replay = self._replay.set_state(arrays)
        return lost + lost_replay
