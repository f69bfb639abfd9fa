"""Environments in actors: receive their rows, add them to replay, learn.

Every actor steps its part of the environments with the policy, on CPU, wherever Ray put it. Its
rows go into the replay as if all environments had stepped together, so a slow actor holds up the
others once they are `ray_actors.IN_FLIGHT` chunks ahead of it, and learning follows the steps that
were received. A dead actor is restarted.
"""

import importlib
import time
from collections.abc import Collection, Sequence
from typing import Any, Protocol

import dm_env
import jax
import numpy as np
from flax import serialization

from dreamer.config import Config
from dreamer.datasets.initial import NOTHING, Initial
from dreamer.distributed import mesh
from dreamer.envs.base import FIRST, LAST, MID, RESTARTED, Restart
from dreamer.envs.faults import Restarts
from dreamer.errors import EnvironmentFault, UserError
from dreamer.rollout.chunks import Chunk, Stream, join
from dreamer.rollout.driver import EpisodeStats, Row
from dreamer.training.interfaces import Episodes
from dreamer.training.learners import agent_and_native_actions, make_learner, refuse_phases
from dreamer.training.schedules import Ratio

PATIENCE = 0.5  # seconds that an iteration waits for actors, before signals are looked at
STARTUP = 120  # seconds more than `env.timeout` until its first chunk: it imports and compiles


class Actors(Protocol):
    """Actors by their numbers, see `RayActors`."""

    def send(self, version: int, weights: Any) -> None: ...

    def start(self, index: int, life: int) -> None: ...

    def receive(self, wanted: Collection[int], seconds: float) -> tuple[int, Any] | None: ...

    def close(self) -> None: ...


class ActorLoop:
    """A `Loop` whose iteration takes the next row of every actor.

    Args:
      config: the whole configuration.
      devices: to train on.

    Raises:
      UserError: Ray is not installed, no cluster answers, or it is too small.
    """

    where = "host"
    phase = 0

    def __init__(self, config: Config, devices: list[jax.Device]) -> None:
        self._config = config
        self.agent, self.native_actions = agent_and_native_actions(config, devices)
        refuse_phases(self.agent, f"run.actors={config.run.actors}")
        self._actors = make_actors(self._for_actors())
        try:
            self.learner = make_learner(config, self.agent, devices)
        except BaseException:
            self._actors.close()
            raise
        self.ratio = Ratio.of(config)
        self.episodes = EpisodeStats.start(config.env.num_envs)
        self.restarts: Sequence[Restart] = ()  # of actors and of environments in them
        self._limit = Restarts(config.env.restarts)
        self.step = 0  # environment steps received so far, all of them put into replay
        self.loaded = 0  # steps that were in replay before
        self._lives = 0  # actors started so far
        self._streams = [Stream() for _ in range(config.run.num_actors)]
        self._waited = [0.0] * config.run.num_actors  # seconds for the next chunk of each
        self._begun = [False] * config.run.num_actors  # whether each has sent one
        self._sent = 0  # updates after which weights were last copied for the actors
        self._copy: Any = None  # of them, not sent yet
        self._behind = 0  # updates since the weights of the newest chunk

    def start(self, initial: Initial = NOTHING) -> None:
        """Starts the first episodes, which `advance` waits for."""
        self.learner.start(initial)
        self.loaded = initial.steps(self._config.env.num_envs)
        self._start_actors()

    def advance(self, until: int) -> Episodes:
        """Adds the next step of every environment and dispatches the updates owed; does nothing
        where an actor lets it wait for long."""
        end = time.monotonic() + PATIENCE
        while waiting := self._waiting():
            if time.monotonic() >= end:
                return []
            try:
                self._receive(waiting)
            except UserError as error:  # an environment cannot be made where an actor was put
                raise EnvironmentFault(str(error)) from error
        row = join([stream.take() for stream in self._streams])
        self.learner.add(row)
        self.step += self._config.env.num_envs
        if self.loaded + self.step >= self._config.first_update:
            before = self.learner.updates
            self.learner.train(self.ratio.updates(self.step))
            if self.learner.updates > before:
                self._send_weights()
        ended = self.episodes.add(_time_step(row))
        return [(score, length) for _, score, length in ended]

    @property
    def gauges(self) -> dict[str, float]:
        """Updates that are missing in the weights of the newest chunk."""
        return {"actors/updates_behind": float(self._behind)}

    def drain(self) -> Episodes:
        return []

    def get_counters(self) -> dict[str, Any]:
        """As those of `HostLoop`, but that no episode can be restored."""
        return {
            "step": self.step,
            "loaded": self.loaded,
            "phase": 0,
            "learner": self.learner.get_counters(),
            "ratio": self.ratio.get_state(),
            "env": {"actors": self._lives, "restarts": [list(one) for one in self.restarts]},
            "episodes": self.episodes.get_state(),
        }

    def get_arrays(self) -> tuple[dict[str, Any], bool]:
        """As those of `HostLoop`, with the memory that acting begins with."""
        arrays, copied = self.learner.get_arrays()
        carry = jax.device_get(self.agent.initial_carry(self._config.env.num_envs))
        return arrays | {"carry": serialization.to_state_dict(carry)}, copied

    def set_state(self, state: Any, arrays: dict[str, Any], counters: dict[str, Any]) -> str:
        """Restores what any loop saved, but for the episodes; says what could not be restored."""
        num_envs = self._config.env.num_envs
        self.step, self.loaded = counters["step"], counters["loaded"]
        lost = self.learner.set_state(state, arrays, counters["learner"])
        self.ratio.set_state(counters["ratio"])
        self.episodes.set_state(counters["episodes"])
        self.episodes.forget(np.ones(num_envs, bool))
        env = counters.get("env", {})
        self.restarts = tuple(Restart(*one) for one in env.get("restarts", ()))
        self._lives = env.get("actors", 0)
        self._start_actors()
        lost.append(f"the episodes under way, {num_envs} environments of actors are restarted")
        return f"not restored: {', '.join(lost)}"

    def close(self) -> None:
        """Ends the actors."""
        self._actors.close()
        self.learner.close()

    # ------------------------------------------------------------------------------------- actors

    def _for_actors(self) -> Config:
        """The configuration with the dtype that the networks have here, whatever the actors run
        on."""
        dtype = {"compute_dtype": str(np.dtype(self.agent.dtype))}
        return self._config.model_copy(
            update={"agent": self._config.agent.model_copy(update=dtype)}
        )

    def _start_actors(self) -> None:
        self._sent = self.learner.updates
        self._actors.send(self._sent, jax.device_get(self._weights()))
        for index in range(len(self._streams)):
            self._start(index)

    def _weights(self) -> dict[str, Any]:
        return {name: self.learner.params[name] for name in self.agent.acting}

    def _start(self, index: int) -> None:
        self._actors.start(index, self._lives)
        self._lives += 1
        self._waited[index], self._begun[index] = 0.0, False

    def _send_weights(self) -> None:
        """Sends weights every `run.weights_every` updates, one update late, so that the device is
        not waited for while it has nothing else to do."""
        if self._copy is not None:
            self._actors.send(self._sent, jax.device_get(self._copy))
            self._copy = None
        if self.learner.updates >= self._sent + self._config.run.weights_every:
            self._copy = mesh.copy_to(self._weights(), mesh.cpu_device())
            self._sent = self.learner.updates

    def _waiting(self) -> list[int]:
        """Actors whose next row is not there."""
        return [index for index, stream in enumerate(self._streams) if not stream.ready]

    def _receive(self, waiting: list[int]) -> None:
        """Waits for a chunk of one of these actors, but not for long; restarts dead ones."""
        begin = time.monotonic()
        received = self._actors.receive(waiting, PATIENCE)
        waited = time.monotonic() - begin
        for index in waiting:
            self._waited[index] += waited
        if received is not None:
            index, answer = received
            if isinstance(answer, EnvironmentFault):
                self._restart(index, answer)
            else:
                self._take(index, answer)
        limit = self._config.env.timeout
        for index in waiting:
            begun = self._begun[index]
            if limit and self._waited[index] > (limit if begun else limit + STARTUP):
                what = f"sent nothing for env.timeout={limit} seconds"
                if not begun:
                    what = f"did not begin within env.timeout={limit} and {STARTUP} seconds more"
                why = "it hangs, or Ray has found no free CPU for it"
                self._restart(index, EnvironmentFault(f"actor {index} {what}: {why}"))

    def _take(self, index: int, chunk: Chunk) -> None:
        self._waited[index], self._begun[index] = 0.0, True
        self._behind = self.learner.updates - chunk.version
        self._streams[index].put(chunk.rows)
        for cause, failed in chunk.restarts:
            self._count(index, f"actor {index}: {cause}", failed)

    def _restart(self, index: int, fault: EnvironmentFault) -> None:
        """Restarts an actor, whose episodes end as truncated."""
        self._streams[index].break_off()
        self._count(index, str(fault), failed=True)
        self._start(index)

    def _count(self, index: int, cause: str, failed: bool) -> None:
        self._limit.works(index)  # may be on another machine next, where it does
        line = self._limit.line(index, cause, self.restarts) if failed else cause + RESTARTED
        first = index * self._config.env.num_envs // len(self._streams)
        self.restarts = *self.restarts, Restart(first, line, failed)


def make_actors(config: Config) -> Actors:
    """Those of `run.actors`.

    Raises:
      UserError: its package is not installed.
    """
    try:
        module = importlib.import_module("dreamer.rollout.ray_actors")
    except ModuleNotFoundError as error:
        raise UserError(
            f"run.actors={config.run.actors} needs the package {error.name}, which is not "
            "installed; pip install 'dreamer[ray]'"
        ) from error
    actors: Actors = module.RayActors(config)
    return actors


def _time_step(row: Row) -> dm_env.TimeStep:
    """What `Episodes` counts of a row."""
    step_type = np.where(row["is_first"], FIRST, np.where(row["is_last"], LAST, MID))
    return dm_env.TimeStep(step_type, row["reward"], None, None)
