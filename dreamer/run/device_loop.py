"""Environments written in JAX, replay and updates in one compiled call.

A call scans over cycles of turns and updates in the proportion of `replay.train_ratio`. Nothing
passes between host and device but metrics and the returns of ended episodes, read one call late.
"""

import dataclasses
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import cache, partial
from typing import Any, Protocol

import dm_env
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from dreamer import parallel
from dreamer.agent import agent as agents
from dreamer.agent.agent import Carry, State
from dreamer.config import Config
from dreamer.envs import registry
from dreamer.envs.base import Restart
from dreamer.envs.jax import batched
from dreamer.envs.jax.episodes import EnvState
from dreamer.errors import UserError
from dreamer.replay import device, tree
from dreamer.run.beginning import NOTHING, Beginning
from dreamer.run.device_memory import (
    DeviceMemory,
    Memory,
    make_agent,
    merge_shares,
    split_shares,
)
from dreamer.run.evaluate import Episodes
from dreamer.run.learner import purpose_key
from dreamer.run.metrics import LateMetrics, Reading
from dreamer.run.policy import transition

MOST_TURNS, MOST_UPDATES = 10_000, 1000  # of a cycle, which is the least that a call does


@struct.dataclass
class World:
    """All that changes on one device but the state of learning; N of its environments."""

    envs: EnvState
    time_step: dm_env.TimeStep
    carry: Carry  # the policy's memory
    memory: Memory
    score: Array  # float32 [N], rewards of the running episodes so far
    length: Array  # int32 [N], their steps


@dataclasses.dataclass(frozen=True)
class Call:
    """What one compiled call does."""

    turns: int
    updates: int


class Group(Protocol):
    """Loops whose calls are one, and who holds what they would."""

    def state_of(self, loop: "DeviceLoop") -> State: ...

    def part_of(self, loop: "DeviceLoop", name: str) -> Any: ...


class DeviceLoop:
    """The counterpart of `HostLoop`, whose turn is one compiled call; its saves fit either.

    Args:
      config: the whole configuration.
      devices: to train on; environments and replay are spread over them.

    Raises:
      UserError: the environments are not written in JAX, an option is for the host loop, or the
        numbers do not fit together.
    """

    where = "device"
    stored = "device memory"
    restarts: Sequence[Restart] = ()  # nothing fails in compiled code
    native_actions = None  # environments written in JAX take actions as the agent has them

    def __init__(self, config: Config, devices: list[jax.Device]) -> None:
        _refuse_options(config)
        self._config, self.devices = config, devices
        self._env = registry.make_jax(config.env)
        simulator = self._env.simulator
        specs = simulator.observations, simulator.actions
        self.agent = make_agent(config, specs, devices)
        self.metrics = LateMetrics()
        self._memory = DeviceMemory(config, self.agent, devices, self.metrics, "run.loop=host")
        self._turns, self._updates = cycle(config)
        self._cycles = -(-config.run.updates_per_call // self._updates)  # rounded up
        state = self.agent.init(purpose_key(config.seed, "init"))
        self._state: State = parallel.replicate(state, devices)
        self._world: World
        self._group: Group | None = None  # which holds both instead
        self.step = 0  # environment steps so far, all of them put into replay
        self.loaded = 0  # steps that were in replay before
        self.updates = 0  # gradient updates dispatched so far
        self._episodes: Any = None  # of the call before
        self._program = cache(partial(program, self.compute, devices))

    @property
    def state(self) -> State:
        """What learning changes, the same on every device."""
        return self._group.state_of(self) if self._group else self._state

    @property
    def params(self) -> Any:
        """Parameters after all dispatched updates, on the first device."""
        return parallel.unreplicate(self.state.params)

    def _part(self, name: str) -> Any:
        """A part of the world, leaves [X, ...]."""
        return self._group.part_of(self, name) if self._group else getattr(self._world, name)

    def join(self, group: Group) -> tuple[State, World]:
        """Gives all that it holds to a group, and asks the group for it from now on."""
        given = self._state, self._world
        self._group = group
        del self._state, self._world
        return given

    @property
    def number(self) -> np.uint32:
        """The step as compiled code counts it, for draws alone: modulo 2**32, as a `Policy`."""
        return np.uint32(self.step % 2**32)

    @property
    def _first_update(self) -> int:
        """Environment step from which updates are owed."""
        return self._config.first_update - self.loaded

    # --------------------------------------------------------------- compiled, on one device each

    def compute(self, call: Call, state: State, world: World, step: Array) -> tuple:
        """Does a call: (state, world, metrics, ended episodes)."""
        if call.updates:
            return self._cycle(state, world, step)
        return self._prefill(call.turns, state, world, step)

    def _prefill(self, turns: int, state: State, world: World, step: Array) -> tuple:
        """Turns without updates."""
        body: Any = partial(self._turn, state.params)
        (world, _), episodes = jax.lax.scan(body, (world, step), length=turns)
        return state, world, jnp.zeros(()), episodes

    def _cycle(self, state: State, world: World, step: Array) -> tuple:
        """Cycles of turns, and of the updates that they owe."""

        def body(carry: tuple, _: None) -> tuple[tuple, tuple]:
            state, world, step = carry
            turn: Any = partial(self._turn, state.params)
            (world, step), episodes = jax.lax.scan(turn, (world, step), length=self._turns)
            carry = state, world
            (state, world), metrics = self._repeat(self._update, carry, self._updates)
            return (state, world, step), (metrics, episodes)

        start = (state, world, step)
        carry, (metrics, episodes) = self._repeat(body, start, self._cycles)
        state, world, _ = carry
        return state, world, metrics.reshape(-1, metrics.shape[-1]), episodes

    def _repeat(self, body: Callable, carry: Any, length: int) -> tuple[Any, Any]:
        """Repeats what updates; only images make it worth to do without a loop on CPU."""
        specs = self._env.simulator.observations.values()
        if any(spec.dtype == np.uint8 for spec in specs):
            return parallel.repeat(body, carry, None, length, self.devices)
        return jax.lax.scan(body, carry, length=length)

    def _turn(self, params: Any, carried: tuple[World, Array], _: None = None) -> tuple:
        """Acts, remembers and steps the environments."""
        world, step = carried
        seen = world.time_step
        key = self._memory.key(world.memory, "act", step * parallel.hosts())
        first = seen.step_type == dm_env.StepType.FIRST
        carry, action, latent = agents.act(
            self.agent, params, world.carry, seen.observation, first, key, greedy=False
        )
        row = transition(self.agent, seen, action, latent, jnp.where)
        replay = device.add(world.memory.replay, row)
        memory = dataclasses.replace(world.memory, replay=replay)
        envs, time_step = self._env.step_all(world.envs, action)
        first = time_step.step_type == dm_env.StepType.FIRST
        score = jnp.where(first, 0, world.score + time_step.reward)
        length = jnp.where(first, 0, world.length + 1)
        world = World(envs, time_step, carry, memory, score, length)
        ended = time_step.step_type == dm_env.StepType.LAST
        return (world, step + self._config.env.num_envs), (ended, score, length)

    def _update(self, carry: tuple[State, World], _: None = None) -> tuple:
        """One gradient update."""
        state, world = carry
        state, memory, metrics = self._memory.learn(state, world.memory)
        return (state, dataclasses.replace(world, memory=memory)), metrics

    # --------------------------------------------------------------------------------- on the host

    def start(self, beginning: Beginning = NOTHING) -> None:
        """Starts the first episodes."""
        self.loaded = beginning.steps(self._config.env.num_envs)
        if beginning.params is not None:
            state = agents.state_of(self.agent, beginning.params)
            self._state = parallel.replicate(state, self.devices)
        env = self._config.env
        keys = batched.env_keys(self._config.seed, env.num_envs, env.first)
        envs, time_step = jax.device_get(jax.jit(jax.vmap(self._env.reset))(keys))
        zeros = np.zeros(len(keys), np.float32), np.zeros(len(keys), np.int32)
        carry = jax.device_get(agents.initial_carry(self.agent, len(keys)))
        memory = self._memory.start(beginning.recording)
        self._place(envs, time_step, carry, memory, *zeros)

    def turn(self) -> list[tuple[float, int]]:
        """Dispatches one call; gives return and length of the episodes that the one before ended.

        The first call only fills the replay until updates are owed, or until the run ends.
        """
        call = self.next_call()
        self._state, self._world, metrics, episodes = self._program(call)(
            self._state, self._world, self.number
        )
        return self.advance(call, metrics, episodes)

    def next_call(self) -> Call:
        """What comes next."""
        config = self._config
        if self.step >= self._first_update:
            return Call(self._cycles * self._turns, self._cycles * self._updates)
        left = min(self._first_update, config.run.steps) - self.step
        return Call(-(-left // config.env.num_envs), 0)  # rounded up

    def advance(self, call: Call, metrics: Array, episodes: Any) -> list[tuple[float, int]]:
        """Notes that a call was dispatched, see `turn`."""
        self.step += call.turns * self._config.env.num_envs
        if call.updates:
            self.updates += call.updates
            self.metrics.add(metrics)
        before, self._episodes = self._episodes, episodes
        return _ended(before)

    def drain(self) -> list[tuple[float, int]]:
        """Waits for the call under way; gives the episodes that it ended."""
        before, self._episodes = self._episodes, None
        return _ended(before)

    def read_metrics(self, wait: bool = False) -> Reading:
        """Those since the last reading, see `LateMetrics.read`."""
        return self.metrics.read(wait)

    def sequences(self, count: int, seed: tuple[int, ...]) -> dict[str, Any] | None:
        """Replayed sequences of the first device, which change nothing; None while there are
        none."""
        if self.step < self._first_update:
            return None
        return self._memory.sequences(self._part("memory"), count, seed)

    def get_counters(self) -> dict[str, Any]:
        """As those of `HostLoop`."""
        world = self._fetch("score", "length")
        counted = self.step if self.step >= self._first_update else -1
        return {
            "step": self.step,
            "loaded": self.loaded,
            "learner": {"updates": self.updates, "owed": 0},
            "ratio": {"step": counted, "remainder": 0, "denominator": 1},
            "episodes": {
                "returns": world["score"].astype(float).tolist(),
                "lengths": world["length"].tolist(),
            },
        }

    def get_arrays(self) -> tuple[dict[str, Any], bool]:
        """As those of `HostLoop`."""
        arrays, copied = self._memory.get_arrays(self._part("memory"), self.updates > 0)
        world = self._fetch("carry", "envs", "time_step")
        carry = world["carry"]
        arrays["carry"] = {"latent": dict(carry.latent), "action": carry.action}
        arrays["env"] = batched.dump(world["envs"], world["time_step"])
        return arrays, copied

    def set_state(self, state: State, arrays: dict[str, Any], counters: dict[str, Any]) -> str:
        """Restores what either loop saved; says what could not be restored exactly."""
        num_envs = self._config.env.num_envs
        self.step, self.updates = counters["step"], counters["learner"]["updates"]
        self.loaded = counters.get("loaded", 0)
        self._state = parallel.replicate(state, self.devices)
        memory, lost = self._memory.set_state(arrays)
        if counters["ratio"]["remainder"] or counters["learner"]["owed"]:
            lost.append("updates half owed")
        keys = batched.env_keys(self._config.seed, num_envs, self._config.env.first)
        reset = jax.jit(jax.vmap(self._env.reset))
        saved = arrays.get("env") or counters.get("env", {})
        loaded = batched.load(saved, jax.eval_shape(reset, keys))
        lost_episodes = loaded is None
        if loaded is None:
            lost.append("the episodes under way")
            loaded = jax.device_get(reset(keys))
        envs, time_step = loaded
        blank = jax.eval_shape(partial(agents.initial_carry, self.agent, num_envs))
        own = {"latent": dict(blank.latent), "action": blank.action}
        tree.refuse_others("carry", arrays["carry"], own)
        carry = jax.tree.map(
            lambda x, like: np.asarray(x).astype(like.dtype),
            Carry(arrays["carry"]["latent"], arrays["carry"]["action"]),
            blank,
        )
        running = Episodes.start(num_envs)
        running.set_state(counters["episodes"])
        running.forget(np.full(num_envs, lost_episodes))
        score, length = running.returns.astype(np.float32), running.lengths.astype(np.int32)
        self._place(envs, time_step, carry, memory, score, length)
        return f"not restored: {', '.join(lost)}" if lost else ""

    def close(self) -> None:
        """Nothing to end."""

    def _place(
        self,
        envs: EnvState,
        time_step: dm_env.TimeStep,
        carry: Carry,
        memory: Memory,
        score: np.ndarray,
        length: np.ndarray,
    ) -> None:
        """Puts the world onto its devices, [N, ...] as [X, N/X, ...]; `memory` is there already."""
        parts = (envs, time_step, carry, score, length)
        shares = jax.tree.map(partial(split_shares, len(self.devices)), parts)
        envs, time_step, carry, *episodes = parallel.spread(shares, self.devices)
        self._world = World(envs, time_step, carry, memory, *episodes)

    def _fetch(self, *names: str) -> dict[str, Any]:
        """Parts of the world on the host, [X, N/X, ...] as [N, ...]."""
        parts = {name: self._part(name) for name in names}
        return jax.tree.map(merge_shares, jax.device_get(parts))


def program(compute: Callable, devices: list[jax.Device], call: Call) -> Callable:
    """Compiles a call of `compute`, as of `DeviceLoop`, on all devices."""
    return parallel.compile_shares(
        partial(compute, call), devices, (None, 0, None), (None, 0, None, 0), donate=(0, 1)
    )


def cycle(config: Config) -> tuple[int, int]:
    """Turns and updates after which the proportion of `replay.train_ratio` is met exactly.

    Raises:
      UserError: there is no such cycle of a bearable length.
    """
    replay, num_envs = config.replay, config.env.num_envs
    per_turn = Fraction(replay.train_ratio) * num_envs / (replay.batch_size * replay.batch_length)
    exact = per_turn.limit_denominator(MOST_TURNS)
    too_long = exact.denominator > 1 and exact.numerator > MOST_UPDATES
    if too_long or exact == 0 or abs(exact / per_turn - 1) > Fraction(1, 10**6):
        raise UserError(
            f"replay.train_ratio={replay.train_ratio:g} is {float(per_turn):g} updates per turn of "
            f"env.num_envs={num_envs} environments, which no cycle of {MOST_TURNS:,} turns and "
            f"{MOST_UPDATES:,} updates meets; choose a rounder or larger ratio, or run.loop=host"
        )
    return exact.denominator, exact.numerator


def _refuse_options(config: Config) -> None:
    """Refuses what only the host loop does."""
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


def _ended(episodes: Any) -> list[tuple[float, int]]:
    """Return and length of each episode that ended, from arrays [X, ..., N]."""
    if episodes is None:
        return []
    ended, score, length = jax.device_get(episodes)
    return list(zip(score[ended].tolist(), length[ended].tolist(), strict=True))
