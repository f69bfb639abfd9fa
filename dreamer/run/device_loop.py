"""Environments written in JAX, replay and updates in one compiled call.

A call scans over cycles of turns and updates in the proportion of `replay.train_ratio`. Nothing
passes between host and device but metrics and the returns of ended episodes, read one call late.
"""

import dataclasses
from fractions import Fraction
from functools import partial
from typing import Any

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
from dreamer.envs.jax import batched
from dreamer.envs.jax.episodes import EnvState
from dreamer.errors import UserError
from dreamer.replay import device, host, memory, tree
from dreamer.run.learner import purpose_key
from dreamer.run.metrics import LateMetrics
from dreamer.run.policy import transition, transition_spec

MOST_TURNS = 1000  # of a cycle


@struct.dataclass
class World:
    """All that changes on one device but the state of learning; N of its environments."""

    envs: EnvState
    time_step: dm_env.TimeStep
    carry: Carry  # the policy's memory
    replay: device.Replay
    score: Array  # float32 [N], rewards of the running episodes so far
    length: Array  # int32 [N], their steps
    index: Array  # int32 [B, 2], windows whose latents are still to be written back
    latent: Any  # those latents, leaves [B, T, ...]


class DeviceLoop:
    """The counterpart of `HostLoop`, whose turn is one compiled call; its saves fit either.

    Args:
      config: the whole configuration.
      devices: to train on; environments and replay are spread over them.

    Raises:
      UserError: the environments are not written in JAX, or the numbers do not fit together.
    """

    where = "device"

    def __init__(self, config: Config, devices: list[jax.Device]) -> None:
        self._config, self._devices = config, devices
        self._env = registry.make_jax(config.env)
        simulator = self._env.simulator
        self.agent = agents.make_agent(config.agent, simulator.observations, simulator.actions)
        self._envs_each = _share("env.num_envs", config.env.num_envs, devices)
        self._batch_each = config.replay.batch_size // len(devices)
        _check_memory(config, transition_spec(self.agent), devices)
        self._turns, self._updates = cycle(config)
        self._cycles = -(-config.run.updates_per_call // self._updates)  # rounded up
        seed = config.seed
        self._keys = {name: purpose_key(seed, name) for name in ("act", "train", "replay")}
        init = jax.jit(partial(agents.init, self.agent))
        self.state: State = parallel.replicate(init(purpose_key(seed, "init")), devices)
        self.step = 0  # environment steps in replay so far
        self.updates = 0  # gradient updates dispatched so far
        self._world: World
        self._metrics = LateMetrics()
        self._episodes: Any = None  # of the call before
        self._train = parallel.compile_loop(self._call, devices)
        self._look = jax.jit(self._sequences, static_argnums=2)

    @property
    def params(self) -> Any:
        """Parameters after all dispatched updates, on the first device."""
        return parallel.unreplicate(self.state.params)

    # --------------------------------------------------------------- compiled, on one device each

    def _prefill(self, turns: int, state: State, world: World, step: Array) -> tuple:
        """Turns without updates."""
        body: Any = partial(self._turn, state.params)
        (world, _), episodes = jax.lax.scan(body, (world, step), length=turns)
        return state, world, jnp.zeros(()), episodes

    def _call(self, state: State, world: World, step: Array) -> tuple:
        """Cycles of turns, and of the updates that they owe."""

        def body(carry: tuple, _: None) -> tuple[tuple, tuple]:
            state, world, step = carry
            turn: Any = partial(self._turn, state.params)
            (world, step), episodes = jax.lax.scan(turn, (world, step), length=self._turns)
            learn: Any = self._update
            (state, world), metrics = jax.lax.scan(learn, (state, world), length=self._updates)
            return (state, world, step), (metrics, episodes)

        start = (state, world, step)
        carry, (metrics, episodes) = jax.lax.scan(body, start, length=self._cycles)
        state, world, _ = carry
        return state, world, metrics.mean((0, 1)), episodes

    def _turn(self, params: Any, carry: tuple[World, Array], _: None = None) -> tuple:
        """Acts, remembers and steps the environments."""
        world, step = carry
        seen = world.time_step
        key = self._key("act", step)
        first = seen.step_type == dm_env.StepType.FIRST
        memory, action, latent = agents.act(
            self.agent, params, world.carry, seen.observation, first, key, greedy=False
        )
        replay = device.add(world.replay, transition(seen, action, latent, jnp.where))
        envs, time_step = jax.vmap(self._env.step)(world.envs, action)
        first = time_step.step_type == dm_env.StepType.FIRST
        score = jnp.where(first, 0, world.score + time_step.reward)
        length = jnp.where(first, 0, world.length + 1)
        world = World(*(envs, time_step, memory, replay, score, length), world.index, world.latent)
        ended = time_step.step_type == dm_env.StepType.LAST
        return (world, step + self._config.env.num_envs), (ended, score, length)

    def _update(self, carry: tuple[State, World], _: None = None) -> tuple:
        """One gradient update; its latents are written back after the next batch is taken."""
        state, world = carry
        key = self._key("replay", state.updates)
        replay, batch, index = device.sample(world.replay, key, self._batch_each)
        # Behind the barrier the batch has been read: the rings change in place, without a copy
        # (jax 0.10 makes one on CPU all the same).
        batch, pending = jax.lax.optimization_barrier((batch, (world.index, world.latent)))
        replay = device.update(replay, *pending)
        state, latent, metrics = agents.train_step(
            self.agent, state, batch, self._keys["train"], parallel.AXIS
        )
        world = dataclasses.replace(world, replay=replay, index=index, latent=latent)
        return (state, world), self._metrics.stack(metrics)

    def _sequences(self, replay: device.Replay, seed: Array, count: int) -> Any:
        """Sampled from one device's share, leaves [1, ...], leaving the queue alone."""
        share = jax.tree.map(lambda x: x[0], dataclasses.replace(replay, online=False))
        return device.sample(share, jax.random.key(seed), count)[1]

    def _key(self, purpose: str, number: Array) -> Array:
        """With one device the draws of acting are those of the host loop."""
        key = jax.random.fold_in(self._keys[purpose], number)
        if len(self._devices) == 1:
            return key
        return jax.random.fold_in(key, jax.lax.axis_index(parallel.AXIS))

    # --------------------------------------------------------------------------------- on the host

    def start(self) -> None:
        """Starts the first episodes."""
        keys = batched.env_keys(self._config.seed, self._config.env.num_envs)
        envs, time_step = jax.device_get(jax.jit(jax.vmap(self._env.reset))(keys))
        zeros = np.zeros(len(keys), np.float32), np.zeros(len(keys), np.int32)
        carry = jax.device_get(agents.initial_carry(self.agent, len(keys)))
        self._place(envs, time_step, carry, self._empty(), zeros, None)

    def turn(self) -> list[tuple[float, int]]:
        """Dispatches one call; gives return and length of the episodes that the one before ended.

        The first call only fills the replay until updates are owed, or until the run ends.
        """
        config, step = self._config, np.int32(self.step)
        if self.step < config.first_update:
            left = min(config.first_update, config.run.steps) - self.step
            turns = -(-left // config.env.num_envs)  # rounded up
            fill = parallel.compile_loop(partial(self._prefill, turns), self._devices)
            self.state, self._world, _, episodes = fill(self.state, self._world, step)
            self.step += turns * config.env.num_envs
        else:
            self.state, self._world, metrics, episodes = self._train(self.state, self._world, step)
            self.step += self._cycles * self._turns * config.env.num_envs
            self.updates += self._cycles * self._updates
            self._metrics.add(metrics)
        before, self._episodes = self._episodes, episodes
        return _ended(before)

    def drain(self) -> list[tuple[float, int]]:
        """Waits for the call under way; gives the episodes that it ended."""
        before, self._episodes = self._episodes, None
        return _ended(before)

    def read_metrics(self, wait: bool = False) -> dict[str, float]:
        """Averages since the last reading, see `LateMetrics.read`."""
        return self._metrics.read(wait)

    def sequences(self, count: int, seed: tuple[int, ...]) -> dict[str, Any] | None:
        """Replayed sequences of the first device, see `host_loop.sequences`."""
        if self.step < self._config.first_update:
            return None
        share = parallel.unreplicate(self._world.replay)
        number = np.random.SeedSequence(seed).generate_state(1)[0]
        return jax.device_get(self._look(share, number, count))

    def get_counters(self) -> dict[str, Any]:
        """As those of `HostLoop`."""
        world = self._fetch("envs", "time_step", "score", "length")
        counted = self.step if self.step >= self._config.first_update else -1
        return {
            "step": self.step,
            "learner": {"updates": self.updates, "owed": 0},
            "ratio": {"step": counted, "remainder": 0, "denominator": 1},
            "env": batched.dump(world["envs"], world["time_step"]),
            "episodes": {
                "returns": world["score"].astype(float).tolist(),
                "lengths": world["length"].tolist(),
            },
        }

    def get_arrays(self) -> tuple[dict[str, Any], bool]:
        """As those of `HostLoop`."""
        world = self._fetch("carry", "index", "latent")
        stored = self._fetch_replay()
        copy = host.nbytes(stored) < 0.8 * memory.available()
        pending = {}
        if self.updates:
            owner = np.repeat(np.arange(len(self._devices)), self._batch_each)
            index = world["index"].astype(np.int64)
            index[:, 0] += owner * self._envs_each
            latent = jax.tree.map(lambda x: x[None], dict(world["latent"]))
            pending = {"index": index[None], "latent": latent}
        carry = {"latent": dict(world["carry"].latent), "action": world["carry"].action}
        return {"replay": host.get_state(stored, copy), "pending": pending, "carry": carry}, copy

    def set_state(self, state: State, arrays: dict[str, Any], counters: dict[str, Any]) -> str:
        """Restores what either loop saved; says what could not be restored exactly."""
        num_envs = self._config.env.num_envs
        self.step, self.updates = counters["step"], counters["learner"]["updates"]
        self.state = parallel.replicate(state, self._devices)
        saved = self._empty()
        same_windows = arrays["replay"]["counters"]["length"][0] == saved.length
        pending = self._local(arrays["pending"]) if same_windows else None
        lost = {
            "updates half owed": counters["ratio"]["remainder"] or counters["learner"]["owed"],
            "latents still to be written": arrays["pending"] and pending is None,
        }
        host.set_state(saved, arrays.pop("replay"))
        if saved.served % len(self._devices):
            lost["the place in the online queue"] = True
        keys = batched.env_keys(self._config.seed, num_envs)
        reset = jax.jit(jax.vmap(self._env.reset))
        world = batched.load(counters["env"], jax.eval_shape(reset, keys))
        if world is None:
            lost["the episodes under way"] = True
            world = jax.device_get(reset(keys))
        blank = jax.eval_shape(partial(agents.initial_carry, self.agent, num_envs))
        carry = jax.tree.map(
            lambda x, like: np.asarray(x).astype(like.dtype),
            Carry(arrays["carry"]["latent"], arrays["carry"]["action"]),
            blank,
        )
        running = counters["episodes"]
        sums = (
            np.array(running["returns"], np.float32),
            np.array(running["lengths"], np.int32),
        )
        self._place(world[0], world[1], carry, saved, sums, pending)
        names = [name for name, is_lost in lost.items() if is_lost]
        return f"not restored: {', '.join(names)}" if names else ""

    def close(self) -> None:
        """Nothing to end."""

    def _empty(self) -> host.Replay:
        """A replay on the host, with the same number of slots on every device."""
        settings, num_envs = self._config.replay, self._config.env.num_envs
        return host.init(
            transition_spec(self.agent),
            settings.capacity // num_envs * num_envs,
            num_envs,
            settings.batch_length + 1,
            settings.online,
        )

    def _fetch_replay(self) -> host.Replay:
        """The replay of all devices as one of the host, whose arrays may be those of the device."""
        replay, count = jax.device_get(self._world.replay), len(self._devices)
        rings = {
            path: ring.reshape(-1, *ring.shape[2:])
            for path, ring in tree.flatten(replay.rings).items()
        }
        num_envs, slots = rings["is_first",].shape
        steps, served = int(replay.steps[0]), int(replay.served[0]) * count
        counters = (steps, max(0, steps - slots), served)
        return host.Replay(rings, num_envs, slots, replay.length, replay.online, *counters)

    def _local(self, pending: dict[str, Any]) -> Any:
        """Pending windows [B, 2] and latents by the numbers of environments on their own device,
        or None where they were spread otherwise."""
        if not pending or len(pending["index"]) != 1:
            return None
        index = np.array(pending["index"][0])
        owner = np.repeat(np.arange(len(self._devices)), self._batch_each)
        if len(index) != len(owner) or (index[:, 0] // self._envs_each != owner).any():
            return None
        index[:, 0] %= self._envs_each
        return index, jax.tree.map(lambda x: x[0], pending["latent"])

    def _place(
        self,
        envs: EnvState,
        time_step: dm_env.TimeStep,
        carry: Carry,
        replay: host.Replay,
        running: tuple[np.ndarray, np.ndarray],
        pending: Any,
    ) -> None:
        """Puts the world onto its devices, [N, ...] as [X, N/X, ...]."""
        config, count = self._config, len(self._devices)
        latent_spec = transition_spec(self.agent)["latent"]
        shape = config.replay.batch_size, config.replay.batch_length
        latent = {
            name: np.zeros((*shape, *one), dtype) for name, (one, dtype) in latent_spec.items()
        }
        index = np.full((shape[0], 2), (0, -2 * shape[1]))  # windows long gone: nothing is written
        if pending is not None:
            index, saved = pending
            latent = {name: saved[name].astype(x.dtype) for name, x in latent.items()}
        rings = tree.unflatten(replay.rings)
        steps: Any = np.full(count, replay.steps, np.int32)
        served: Any = np.full(count, replay.served // count, np.int32)

        def shares(x: Any) -> Any:
            return jax.tree.map(lambda y: y.reshape(count, -1, *y.shape[1:]), x)

        each = shares((envs, time_step, carry, rings, *running, index.astype(np.int32), latent))
        envs, time_step, carry, rings, score, length, index, latent = each
        stored = device.Replay(rings, steps, served, replay.length, replay.online)
        world = World(envs, time_step, carry, stored, score, length, index, latent)
        self._world = parallel.spread(world, self._devices)

    def _fetch(self, *names: str) -> dict[str, Any]:
        """Parts of the world on the host, [X, N/X, ...] as [N, ...]."""
        parts = {name: getattr(self._world, name) for name in names}
        return jax.tree.map(
            lambda x: np.asarray(x).reshape(-1, *x.shape[2:]), jax.device_get(parts)
        )


def cycle(config: Config) -> tuple[int, int]:
    """Turns and updates after which the proportion of `replay.train_ratio` is met exactly.

    Raises:
      UserError: there is no such cycle of a bearable length.
    """
    replay, num_envs = config.replay, config.env.num_envs
    per_turn = Fraction(replay.train_ratio) * num_envs / (replay.batch_size * replay.batch_length)
    exact = per_turn.limit_denominator(MOST_TURNS)
    if exact == 0 or abs(exact / per_turn - 1) > Fraction(1, 10**6):
        raise UserError(
            f"replay.train_ratio={replay.train_ratio:g} is {float(per_turn):g} updates per turn of "
            f"env.num_envs={num_envs} environments, which no cycle of {MOST_TURNS} turns meets; "
            "choose a rounder or larger ratio, or run.loop=host"
        )
    return exact.denominator, exact.numerator


def _check_memory(config: Config, spec: dict[str, Any], devices: list[jax.Device]) -> None:
    """Refuses a capacity beyond the devices' memory, which for CPU devices is the host's."""
    usable, capacity = parallel.memory_limit(devices[0]), config.replay.capacity
    if usable is None:
        memory.check_fits(spec, capacity)
    needed = memory.nbytes(spec, capacity) // len(devices)
    if usable is not None and needed > (1 - memory.HEADROOM) * usable:
        largest = int((1 - memory.HEADROOM) * usable / needed * capacity)
        raise UserError(
            f"replay.capacity={capacity} needs {memory.gib(needed)} on each device but it has "
            f"{memory.gib(usable)}; the largest capacity that fits is replay.capacity={largest}, "
            "or set run.loop=host"
        )


def _share(key: str, number: int, devices: list[jax.Device]) -> int:
    if number % len(devices):
        raise UserError(
            f"{key}={number} cannot be spread over {len(devices)} devices; make it a multiple of "
            f"{len(devices)}, or use fewer with devices=N"
        )
    return number // len(devices)


def _ended(episodes: Any) -> list[tuple[float, int]]:
    """Return and length of each episode that ended, from arrays [X, ..., N]."""
    if episodes is None:
        return []
    ended, score, length = jax.device_get(episodes)
    return list(zip(score[ended].tolist(), length[ended].tolist(), strict=True))
