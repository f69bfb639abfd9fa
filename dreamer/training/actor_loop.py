"""Environments in actors: receive their rows, add them to replay, learn.

Every actor steps its part of the environments with the policy, on CPU, wherever Ray placed it. Its
rows go into the replay as if all environments had stepped together, so a slow actor delays the
others once they are `ray_actors.IN_FLIGHT` chunks ahead of it, and learning follows the steps that
were received. A dead actor is restarted.
"""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

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
from dreamer.rollout.driver import EpisodeStats
from dreamer.training.loop import Episodes, Loop, make_learner, spaces
from dreamer.training.schedules import Ratio

if TYPE_CHECKING:
    from dreamer.rollout.ray_actors import RayActors

PATIENCE = 0.5  # seconds that an iteration waits for actors, before signals are handled
STARTUP = 120  # seconds more than `env.timeout` until its first chunk: it imports and compiles


class ActorLoop(Loop):
    """A loop whose iteration takes the next row of every actor.

    Args:
      config: the whole configuration.
      devices: to train on.

    Raises:
      UserError: Ray is not installed, no cluster answers, or it is too small.
    """

    restarts: Sequence[Restart] = ()  # of actors and of environments in them

    def __init__(self, config: Config, devices: list[jax.Device]) -> None:
        specs, self.native_actions = spaces(config)
        super().__init__(config, devices, specs, f"run.actors={config.run.actors}")
        # Actors use the dtype that the networks have here, whatever they run on.
        dtype = {"compute_dtype": str(np.dtype(self.agent.dtype))}
        agent = config.agent.model_copy(update=dtype)
        self._actors = make_actors(config.model_copy(update={"agent": agent}))
        try:
            self.learner = make_learner(config, self.agent, devices)
        except BaseException:
            self._actors.close()
            raise
        self.ratio = Ratio.of(config)
        self.episodes = EpisodeStats.start(self._num_envs)
        self.gauges = {"actors/updates_behind": 0.0}  # updates since the weights of the last chunk
        self._limit = Restarts(config.env.restarts)
        self._lives = 0  # actors started so far
        count = config.run.num_actors
        self._streams = [Stream() for _ in range(count)]
        self._waited = [0.0] * count  # seconds for the next chunk of each
        self._started = [False] * count  # whether each has sent one
        self._sent = 0  # updates after which weights were last copied for the actors
        self._copy: Any = None  # weights not sent yet

    def start(self, initial: Initial = NOTHING) -> None:
        """Starts the first episodes, which `advance` waits for."""
        super().start(initial)
        self._start_all()

    def advance(self, until: int) -> Episodes:
        """Adds the next step of every environment and dispatches the updates owed; does nothing
        while an actor takes long."""
        end = time.monotonic() + PATIENCE
        while waiting := [i for i, stream in enumerate(self._streams) if not stream.ready]:
            if time.monotonic() >= end:
                return []
            try:
                self._receive(waiting)
            except UserError as error:  # an environment cannot be made on the actor's machine
                raise EnvironmentFault(str(error)) from error
        row = join([stream.take() for stream in self._streams])
        self.learner.add(row)
        self.step += self._num_envs
        if self.loaded + self.step >= self._config.first_update:
            before = self.learner.updates
            self.learner.train(self.ratio.updates(self.step))
            if self.learner.updates > before:
                self._send_weights()
        step_type = np.where(row["is_first"], FIRST, np.where(row["is_last"], LAST, MID))
        ended = self.episodes.add(dm_env.TimeStep(step_type, row["reward"], None, None))
        return [(score, length) for _, score, length in ended]

    def get_counters(self) -> dict[str, Any]:
        """As those of `HostLoop`, except that no episode can be restored."""
        return super().get_counters() | {
            "ratio": self.ratio.get_state(),
            "env": {"actors": self._lives, "restarts": [list(one) for one in self.restarts]},
            "episodes": self.episodes.get_state(),
        }

    def get_arrays(self) -> tuple[dict[str, Any], bool]:
        """As those of `HostLoop`, with the initial carry."""
        arrays, copied = super().get_arrays()
        carry = jax.device_get(self.agent.initial_carry(self._num_envs))
        return arrays | {"carry": serialization.to_state_dict(carry)}, copied

    def set_state(self, state: Any, arrays: dict[str, Any], counters: dict[str, Any]) -> str:
        """Restores what any loop saved, except the episodes."""
        note = super().set_state(state, arrays, counters)
        self.ratio.set_state(counters["ratio"])
        self.episodes.set_state(counters["episodes"])
        self.episodes.forget(np.ones(self._num_envs, bool))
        env = counters.get("env", {})
        self.restarts = tuple(Restart(*one) for one in env.get("restarts", ()))
        self._lives = env.get("actors", 0)
        self._start_all()
        lost = f"the episodes under way, {self._num_envs} environments of actors are restarted"
        return f"{note}, {lost}" if note else f"not restored: {lost}"

    def close(self) -> None:
        self._actors.close()
        super().close()

    # ------------------------------------------------------------------------------------- actors

    def _weights(self) -> dict[str, Any]:
        params = self.learner.params
        return {name: params[name] for name in self.agent.acting}

    def _start_all(self) -> None:
        self._sent = self.learner.updates
        self._actors.send(self._sent, jax.device_get(self._weights()))
        for index in range(len(self._streams)):
            self._start(index)

    def _start(self, index: int) -> None:
        self._actors.start(index, self._lives)
        self._lives += 1
        self._waited[index], self._started[index] = 0.0, False

    def _send_weights(self) -> None:
        """Sends weights every `run.weights_every` updates, one update late, so that nothing waits
        for the device while it is idle."""
        if self._copy is not None:
            self._actors.send(self._sent, jax.device_get(self._copy))
            self._copy = None
        if self.learner.updates >= self._sent + self._config.run.weights_every:
            self._copy = mesh.copy_to(self._weights(), mesh.cpu_device())
            self._sent = self.learner.updates

    def _receive(self, waiting: list[int]) -> None:
        """Waits for a chunk of one of these actors, but not for long; restarts dead ones."""
        begin = time.monotonic()
        received = self._actors.receive(waiting, PATIENCE)
        waited, limit = time.monotonic() - begin, self._config.env.timeout
        for index in waiting:
            self._waited[index] += waited
        if received is not None:
            self._take(*received)
        for index in waiting:
            started = self._started[index]
            if limit and self._waited[index] > (limit if started else limit + STARTUP):
                what = f"sent nothing for env.timeout={limit} seconds"
                if not started:
                    what = f"did not begin within env.timeout={limit} and {STARTUP} seconds more"
                why = "it hangs, or Ray has found no free CPU for it"
                self._restart(index, EnvironmentFault(f"actor {index} {what}: {why}"))

    def _take(self, index: int, answer: Chunk | EnvironmentFault) -> None:
        """Adds the rows of an actor to its stream; restarts one that died."""
        if isinstance(answer, EnvironmentFault):
            self._restart(index, answer)
            return
        self._waited[index], self._started[index] = 0.0, True
        self.gauges = {"actors/updates_behind": float(self.learner.updates - answer.version)}
        self._streams[index].put(answer.rows)
        for cause, failed in answer.restarts:
            self._count(index, f"actor {index}: {cause}", failed)

    def _restart(self, index: int, fault: EnvironmentFault) -> None:
        """Restarts an actor, whose episodes end as truncated."""
        self._streams[index].break_off()
        self._count(index, str(fault), failed=True)
        self._start(index)

    def _count(self, index: int, cause: str, failed: bool) -> None:
        self._limit.works(index)  # it may run on another machine next
        line = self._limit.line(index, cause, self.restarts) if failed else cause + RESTARTED
        first = index * self._num_envs // len(self._streams)
        self.restarts = *self.restarts, Restart(first, line, failed)


def make_actors(config: Config) -> "RayActors":
    """The actors of `run.actors`.

    Raises:
      UserError: its package is not installed.
    """
    try:
        from dreamer.rollout.ray_actors import RayActors
    except ModuleNotFoundError as error:
        raise UserError(
            f"run.actors={config.run.actors} needs the package {error.name}, which is not "
            "installed; pip install 'dreamer[ray]'"
        ) from error
    return RayActors(config)
