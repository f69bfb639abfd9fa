"""Environments written in JAX, replay and updates in one compiled call.

A call is a chunk of cycles, each of steps and updates in the proportion of `replay.train_ratio`.
Nothing passes between host and device but metrics and the returns of ended episodes, read one call
late.
"""

import dataclasses
from collections.abc import Callable
from fractions import Fraction
from functools import cache, partial
from typing import Any

import dm_env
import jax
import jax.numpy as jnp
import numpy as np
from flax import serialization, struct
from jax import Array

from dreamer.agents.interface import Carry
from dreamer.config import Config
from dreamer.datasets.initial import NOTHING, Initial
from dreamer.distributed import hosts, mesh
from dreamer.envs import registry
from dreamer.envs.jax import batched
from dreamer.envs.jax.episodes import EnvState
from dreamer.errors import UserError
from dreamer.logs.metrics import Reading
from dreamer.ops.random import purpose_key
from dreamer.replay import device
from dreamer.rollout.driver import EpisodeStats, transition
from dreamer.rollout.policy import restored_carry
from dreamer.training.device_replay import DeviceReplay, Stored, from_shards, to_shards
from dreamer.training.loop import Episodes, Loop

MOST_STEPS, MOST_UPDATES = 10_000, 1000  # of a cycle, the smallest chunk


@struct.dataclass
class World:
    """Everything that changes on one device except the agent's state; N of its environments."""

    envs: EnvState
    time_step: dm_env.TimeStep
    carry: Carry  # of the policy
    stored: Stored
    score: Array  # float32 [N], rewards of the running episodes so far
    length: Array  # int32 [N], their steps


@dataclasses.dataclass(frozen=True)
class Call:
    """The work of one compiled call: cycles, or steps without updates."""

    cycles: int = 0
    prefill: int = 0


class DeviceLoop(Loop):
    """A loop whose iteration is one compiled chunk, and its own learner. `HostLoop` can resume its
    saves.

    Args:
      config: the whole configuration.
      devices: to train on; environments and replay are spread over them.

    Raises:
      UserError: the environments are not written in JAX, an option is for the host loop, or the
        numbers do not fit together.
    """

    where = "device"
    learner: Any  # itself
    stored = "device memory"

    def __init__(self, config: Config, devices: list[jax.Device]) -> None:
        _refuse_options(config)
        self._env = registry.make_jax(config.env)
        simulator = self._env.simulator
        specs = simulator.observations, simulator.actions
        super().__init__(config, devices, specs, "run.loop=device")
        self.devices, self.learner = devices, self
        self._replay = DeviceReplay(config, self.agent, devices, "run.loop=host")
        self.metrics = self._replay.metrics
        self._steps, self._updates = cycle(config)
        self._cycles = -(-config.run.updates_per_call // self._updates)  # rounded up
        state = self.agent.init(purpose_key(config.seed, "init"))
        self._state: Any = mesh.replicate(state, devices)
        self._world: World
        self._part: Callable[[str], Any] = self._own_part
        self.updates = 0  # gradient updates dispatched so far
        self._episodes: Any = None  # of the call before
        self._program = cache(partial(program, self.compute, devices))
        self._keys = batched.env_keys(config.seed, self._num_envs, config.env.first)
        self._reset = jax.jit(jax.vmap(self._env.reset))

    @property
    def state(self) -> Any:
        """The agent's state, the same on every device."""
        return self._part("state")

    @property
    def params(self) -> Any:
        """Parameters after all dispatched updates, on the first device."""
        return mesh.unreplicate(self.state.params)

    def _own_part(self, name: str) -> Any:
        """The state, or a part of the world, leaves [X, ...]."""
        return self._state if name == "state" else getattr(self._world, name)

    def join(self, part: Callable[[str], Any]) -> tuple[Any, World]:
        """Gives state and world to a group of loops; `part` returns copies of them by name."""
        given = self._state, self._world
        del self._state, self._world
        self._part = part
        return given

    @property
    def number(self) -> np.uint32:
        """The step modulo 2**32, as in `Policy`: compiled code uses it for random draws only."""
        return np.uint32(self.step % 2**32)

    @property
    def _first_update(self) -> int:
        """Environment step of this run from which updates are owed."""
        return self._config.first_update - self.loaded

    # --------------------------------------------------------------- compiled, on one device each

    def compute(self, call: Call, state: Any, world: World, step: Array) -> tuple:
        """Does a call: (state, world, metrics, ended episodes)."""
        if call.cycles:
            return self._chunk(call.cycles, state, world, step)
        return self._prefill(call.prefill, state, world, step)

    def _prefill(self, steps: int, state: Any, world: World, step: Array) -> tuple:
        """Steps without updates."""
        body: Any = partial(self._step, state.params)
        (world, _), episodes = jax.lax.scan(body, (world, step), length=steps)
        return state, world, jnp.zeros(()), episodes

    def _chunk(self, cycles: int, state: Any, world: World, step: Array) -> tuple:
        """Cycles, each of steps and then of the updates owed for them."""

        def body(carry: tuple, _: None) -> tuple[tuple, tuple]:
            state, world, step = carry
            act: Any = partial(self._step, state.params)
            (world, step), episodes = jax.lax.scan(act, (world, step), length=self._steps)
            carry = state, world
            (state, world), metrics = self._repeat(self._update, carry, self._updates)
            return (state, world, step), (metrics, episodes)

        start = (state, world, step)
        carry, (metrics, episodes) = self._repeat(body, start, cycles)
        state, world, _ = carry
        return state, world, metrics.reshape(-1, metrics.shape[-1]), episodes

    def _repeat(self, body: Callable, carry: Any, length: int) -> tuple[Any, Any]:
        """Repeats updates; on CPU an unrolled loop is faster for images only."""
        specs = self._env.simulator.observations.values()
        if any(spec.dtype == np.uint8 for spec in specs):
            return mesh.repeat(body, carry, None, length, self.devices)
        return jax.lax.scan(body, carry, length=length)

    def _step(self, params: Any, carried: tuple[World, Array], _: None = None) -> tuple:
        """Acts, adds to replay and steps the environments."""
        world, step = carried
        now = world.time_step
        key = self._replay.key(world.stored, "act", step * hosts.count())
        first = now.step_type == dm_env.StepType.FIRST
        carry, action, latent = self.agent.act(
            params, world.carry, now.observation, first, key, greedy=False
        )
        row = transition(now, action, latent, self.agent.observations, jnp.where)
        replay = device.add(world.stored.replay, row)
        stored = dataclasses.replace(world.stored, replay=replay)
        envs, time_step = self._env.step_all(world.envs, action)
        first = time_step.step_type == dm_env.StepType.FIRST
        score = jnp.where(first, 0, world.score + time_step.reward)
        length = jnp.where(first, 0, world.length + 1)
        world = World(envs, time_step, carry, stored, score, length)
        ended = time_step.step_type == dm_env.StepType.LAST
        return (world, step + self._num_envs), (ended, score, length)

    def _update(self, carry: tuple[Any, World], _: None = None) -> tuple:
        """One gradient update."""
        state, world = carry
        state, stored, metrics = self._replay.learn(state, world.stored)
        return (state, dataclasses.replace(world, stored=stored)), metrics

    # --------------------------------------------------------------------------------- on the host

    def start(self, initial: Initial = NOTHING) -> None:
        self.loaded = initial.steps(self._num_envs)
        if initial.params is not None:
            self._state = mesh.replicate(self.agent.state_of(initial.params), self.devices)
        envs, time_step = jax.device_get(self._reset(self._keys))
        zeros = np.zeros(self._num_envs, np.float32), np.zeros(self._num_envs, np.int32)
        carry = jax.device_get(self.agent.initial_carry(self._num_envs))
        self._place(envs, time_step, carry, self._replay.start(initial.recording), *zeros)

    def advance(self, until: int) -> Episodes:
        """Dispatches one call; returns the episodes that the one before ended.

        The first call only fills the replay until updates are owed, or until the run ends.
        """
        call = self.next_call(until)
        self._state, self._world, metrics, episodes = self._program(call)(
            self._state, self._world, self.number
        )
        return self.dispatched(call, metrics, episodes)

    def next_call(self, until: int) -> Call:
        """A whole chunk, or one cycle where a chunk would go beyond step `until`."""
        if self.step < self._first_update:
            left = min(self._first_update, self._config.run.steps) - self.step
            return Call(prefill=-(-left // self._num_envs))  # rounded up
        chunk = self._cycles * self._steps * self._num_envs
        return Call(cycles=self._cycles if self.step + chunk <= until else 1)

    def dispatched(self, call: Call, metrics: Array, episodes: Any) -> Episodes:
        """Counts a call that was dispatched, see `advance`."""
        self.step += (call.cycles * self._steps or call.prefill) * self._num_envs
        if call.cycles:
            self.updates += call.cycles * self._updates
            self.metrics.add(metrics)
        ended = self.drain()
        self._episodes = episodes
        return ended

    def drain(self) -> Episodes:
        """Waits for the last call; returns the episodes that it ended."""
        episodes, self._episodes = self._episodes, None
        if episodes is None:
            return []
        ended, score, length = jax.device_get(episodes)  # [X, ..., N]
        return list(zip(score[ended].tolist(), length[ended].tolist(), strict=True))

    def read_metrics(self, wait: bool = False) -> Reading:
        """Metrics since the last reading, see `LateMetrics.read`."""
        return self.metrics.read(wait)

    def sequences(self, count: int, seed: tuple[int, ...]) -> dict[str, Any] | None:
        """As `DeviceReplay.sequences`."""
        return self._replay.sequences(self._part("stored"), count, seed)

    def get_counters(self) -> dict[str, Any]:
        world = self._fetch("score", "length")
        counted = self.step if self.step >= self._first_update else -1
        return {
            "step": self.step,
            "loaded": self.loaded,
            "phase": 0,
            "learner": {"updates": self.updates, "owed": 0},
            "ratio": {"step": counted, "remainder": 0, "denominator": 1},
            "episodes": {
                "returns": world["score"].astype(float).tolist(),
                "lengths": world["length"].tolist(),
            },
        }

    def get_arrays(self) -> tuple[dict[str, Any], bool]:
        arrays, copied = self._replay.get_arrays(self._part("stored"), self.updates > 0)
        world = self._fetch("carry", "envs", "time_step")
        arrays["carry"] = serialization.to_state_dict(world["carry"])
        arrays["env"] = batched.dump(world["envs"], world["time_step"])
        return arrays, copied

    def set_state(self, state: Any, arrays: dict[str, Any], counters: dict[str, Any]) -> str:
        self.step, self.loaded = counters["step"], counters["loaded"]
        self.updates = counters["learner"]["updates"]
        self._state = mesh.replicate(state, self.devices)
        stored, lost = self._replay.set_state(arrays)
        if counters["ratio"]["remainder"] or counters["learner"]["owed"]:
            lost.append("updates half owed")
        loaded = batched.load(arrays.get("env", {}), jax.eval_shape(self._reset, self._keys))
        if lost_episodes := loaded is None:
            lost.append("the episodes under way")
        envs, time_step = loaded or jax.device_get(self._reset(self._keys))
        blank = jax.eval_shape(partial(self.agent.initial_carry, self._num_envs))
        carry = restored_carry(blank, arrays["carry"])
        running = EpisodeStats.start(self._num_envs)
        running.set_state(counters["episodes"])
        running.forget(np.full(self._num_envs, lost_episodes))
        score, length = running.returns.astype(np.float32), running.lengths.astype(np.int32)
        self._place(envs, time_step, carry, stored, score, length)
        return f"not restored: {', '.join(lost)}" if lost else ""

    def close(self) -> None:
        """Ends nothing; the loop is its own learner, which the base class would close."""

    def _place(
        self,
        envs: EnvState,
        time_step: dm_env.TimeStep,
        carry: Carry,
        stored: Stored,
        score: np.ndarray,
        length: np.ndarray,
    ) -> None:
        """Puts the world onto its devices, [N, ...] as [X, N/X, ...], where `stored` is."""
        parts = (envs, time_step, carry, score, length)
        shards = jax.tree.map(partial(to_shards, len(self.devices)), parts)
        envs, time_step, carry, *episodes = mesh.spread(shards, self.devices)
        self._world = World(envs, time_step, carry, stored, *episodes)

    def _fetch(self, *names: str) -> dict[str, Any]:
        """Parts of the world on the host, [X, N/X, ...] as [N, ...]."""
        parts = {name: self._part(name) for name in names}
        return jax.tree.map(from_shards, jax.device_get(parts))


def program(compute: Callable, devices: list[jax.Device], call: Call) -> Callable:
    """Compiles a call of `compute`, as of `DeviceLoop`, on all devices."""
    return mesh.compile_shards(
        partial(compute, call), devices, (None, 0, None), (None, 0, None, 0), donate=(0, 1)
    )


def cycle(config: Config) -> tuple[int, int]:
    """The fewest steps and updates in exactly the proportion of `replay.train_ratio`.

    Raises:
      UserError: they are too many for one cycle.
    """
    replay, num_envs = config.replay, config.env.num_envs
    per_step = Fraction(replay.train_ratio) * num_envs / (replay.batch_size * replay.batch_length)
    exact = per_step.limit_denominator(MOST_STEPS)
    too_long = exact.denominator > 1 and exact.numerator > MOST_UPDATES
    if too_long or exact == 0 or abs(exact / per_step - 1) > Fraction(1, 10**6):
        raise UserError(
            f"replay.train_ratio={replay.train_ratio:g} is {float(per_step):g} updates per step of "
            f"env.num_envs={num_envs} environments, which no cycle of {MOST_STEPS:,} steps and "
            f"{MOST_UPDATES:,} updates fits; choose a rounder or larger ratio, or run.loop=host"
        )
    return exact.denominator, exact.numerator


def _refuse_options(config: Config) -> None:
    """Refuses options of the host loop."""
    refused = {
        "replay.where=host": config.replay.where == "host",
        f"replay.folder={config.replay.folder}": config.replay.folder,
        "replay.prefetch=thread": config.replay.prefetch == "thread",
        f"run.policy_device={config.run.policy_device}": config.run.policy_device != "train",
        f"run.policy_lag={config.run.policy_lag}": config.run.policy_lag,
    }
    for option, given in refused.items():
        if given:
            raise UserError(
                f"{option} is for environments on the host, but in the device loop they and the "
                "replay are on the device; leave it out, or set run.loop=host"
            )
