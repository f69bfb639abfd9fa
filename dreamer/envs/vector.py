"""BatchedEnv over gymnasium's vector environments, in this process or in one process each.

Legend: N environments.
"""

import contextlib
import functools
import multiprocessing
import os
import signal
import sys
import types
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from multiprocessing import resource_tracker
from typing import Any, Literal, cast

import dm_env
import gymnasium
import numpy as np
from gymnasium import logger
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.vector.async_vector_env import AsyncState

from dreamer.envs.base import FIRST, LAST, MID, Actions, Specs, episode_seed
from dreamer.envs.episodes import Episodes
from dreamer.envs.faults import story
from dreamer.envs.spaces import action_codec, observation_codec
from dreamer.errors import EnvironmentFault, UserError

Workers = Literal["auto", "serial", "process"]
Maker = Callable[..., gymnasium.Env]
# What a terminal, a scheduler or a service manager sends to all processes of a program alike.
SIGNALS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))


class VectorEnv:
    """Adapts gymnasium's vector environments to `BatchedEnv`.

    Args:
      maker: Makes one gymnasium environment; a function that pickles, for it also runs in workers.
      num_envs: N.
      seed: Of the whole batch; the seeds of episodes derive from it.
      workers: serial steps the environments one after the other in this process; process gives
        each its own; auto is process for several environments with images on more than two cores,
        else serial. Images are drawn or emulated, which costs more than the way to a process and
        back; on two cores, processes only take turns (measured: no faster).
      render: Whether `render` returns frames.
      seeded: Whether `maker` takes a `seed`, another for every environment.

    Raises:
      UserError: A space is not supported.
      EnvironmentFault: Later, an environment failed, gave what its spaces do not allow, or its
        process has died. `get_state` then gives a state from which all start new episodes.
    """

    def __init__(
        self,
        maker: Maker,
        num_envs: int,
        seed: int,
        workers: Workers,
        render: bool,
        seeded: bool = False,
    ) -> None:
        self.num_envs = num_envs
        # One in this process first, so that a mistake is refused before any process starts.
        probe = maker(seed=episode_seed(seed, 0, 0)) if seeded else maker()
        try:
            self._observation = observation_codec(probe.observation_space)
            self._action = action_codec(probe.action_space)
            if not self._action.specs:
                raise UserError(
                    f"the action space {probe.action_space} is empty; give it an action"
                )
            self._renders = render and probe.render_mode == "rgb_array"
        finally:
            probe.close()
        slow = any(leaf.dtype == np.uint8 for leaf in self._observation.specs.values())
        worth_it = slow and num_envs > 1 and _cores() > 2
        processes = workers == "process" or (workers == "auto" and worth_it)
        makers: list[Maker] = [
            functools.partial(_make, maker, seed, i, os.getpid(), seeded) for i in range(num_envs)
        ]
        self._vector = _start_processes(makers) if processes else _serial(makers)
        # At the latest at exit, where multiprocessing would wait for the workers.
        self._close = weakref.finalize(self, _close, self._vector)
        self._last: dm_env.TimeStep | None = None
        self._episode = np.full(num_envs, -1)
        self._failed = False

    def observation_spec(self) -> Specs:
        return dict(self._observation.specs)

    def action_spec(self) -> Specs:
        return dict(self._action.specs)

    @property
    def native_actions(self) -> gymnasium.Space:
        """The action space of one environment, in its own units."""
        return self._vector.single_action_space

    def reset(self) -> dm_env.TimeStep:
        observation, _ = self._ask("reset")
        self._failed = False
        return self._keep(self._first(observation), np.ones(self.num_envs, bool))

    def step(self, action: Actions) -> dm_env.TimeStep:
        assert self._last is not None, "call reset first"
        native = self._action.convert(action)
        observation, reward, terminated, truncated, info = self._ask("step", native)
        first = self._last.step_type == LAST
        last = np.logical_or(terminated, truncated)
        terminal = terminated
        if "is_terminal" in info:
            terminal = np.where(info["_is_terminal"], info["is_terminal"], terminated)
        return self._keep(
            dm_env.TimeStep(
                np.where(first, FIRST, np.where(last, LAST, MID)).astype(np.int32),
                reward.astype(np.float32),
                1.0 - terminal.astype(np.float32),
                self._observation.convert(observation),
            ),
            first,
        )

    def render(self) -> np.ndarray | None:
        return np.stack(cast(Any, self._ask("render"))) if self._renders else None

    def get_state(self) -> dict[str, Any]:
        assert self._last is not None, "call reset first"
        if self._failed:
            return unrestorable(self._episode)
        return {
            "episodes": list(self._ask("call", "episode_state")),
            "step_type": self._last.step_type.tolist(),
            "reward": self._last.reward.tolist(),
            "discount": self._last.discount.tolist(),
        }

    def set_state(self, state: Mapping[str, Any]) -> tuple[np.ndarray, dm_env.TimeStep]:
        if len(state["episodes"]) != self.num_envs:
            raise ValueError(
                f"state of {len(state['episodes'])} environments given to {self.num_envs}"
            )
        observation, info = self._ask("reset", options={"restore": state["episodes"]})
        restored = info["restored"].astype(bool)
        self._episode = np.array([one["episode"] for one in state["episodes"]])
        fresh = self._first(observation)
        time_step = dm_env.TimeStep(
            np.where(restored, state["step_type"], fresh.step_type).astype(np.int32),
            np.where(restored, state["reward"], fresh.reward).astype(np.float32),
            np.where(restored, state["discount"], fresh.discount).astype(np.float32),
            fresh.observation,
        )
        return restored, self._keep(time_step, ~restored)

    def close(self) -> None:
        self._close()

    def _ask(self, method: str, *args: Any, **options: Any) -> Any:
        """Calls a method of the vector environment."""
        try:
            return getattr(self._vector, method)(*args, **options)
        except Exception as error:
            self._failed = True
            if isinstance(error, EnvironmentFault):
                raise
            dead = self._dead() if isinstance(error, EOFError | ConnectionError) else ""
            raise EnvironmentFault(
                dead or f"the environments failed with {story(error)}"
            ) from error

    def _dead(self) -> str:
        """Which process is, and of what."""
        for i, process in enumerate(getattr(self._vector, "processes", ())):
            process.join(1)  # its end of the pipe closes a moment before it is dead
            if not process.is_alive():
                return (
                    f"the process of environment {i} died with exit code {process.exitcode} "
                    "(-9 is also how a machine out of memory ends it)"
                )
        return ""

    def _first(self, observation: Any) -> dm_env.TimeStep:
        shape = (self.num_envs,)
        return dm_env.TimeStep(
            np.full(shape, FIRST, np.int32),
            np.zeros(shape, np.float32),
            np.ones(shape, np.float32),
            self._observation.convert(observation),
        )

    def _keep(self, time_step: dm_env.TimeStep, begun: np.ndarray) -> dm_env.TimeStep:
        """Remembers a time step, and where it begins an episode."""
        self._episode = self._episode + begun
        self._last = time_step
        return time_step


def unrestorable(episode: np.ndarray) -> dict[str, Any]:
    """A state, of environments in these episodes, from which `set_state` starts the next ones."""
    return {
        "episodes": [
            {"episode": number, "actions": [], "ended": False, "digest": ""}
            for number in episode.tolist()
        ],
        "step_type": np.full(len(episode), FIRST).tolist(),
        "reward": np.zeros(len(episode)).tolist(),
        "discount": np.ones(len(episode)).tolist(),
    }


class _Processes(AsyncVectorEnv):
    """Says nothing by itself of an error, which is raised."""

    def _raise_if_errors(self, successes: Iterable[bool]) -> None:
        level, logger.min_level = logger.min_level, logger.ERROR + 1
        try:
            super()._raise_if_errors(successes)
        finally:
            logger.min_level = level


# Observations are copied once, when they are converted; gymnasium need not copy them too.
def _serial(makers: list[Maker]) -> SyncVectorEnv:
    return SyncVectorEnv(makers, copy=False, autoreset_mode=AutoresetMode.NEXT_STEP)


def _start_processes(makers: list[Maker]) -> _Processes:
    """Starts one process per environment, from a server that never saw the main program.

    Forking a process that runs jax's threads can deadlock, so processes come from a fork server
    (spawned where there is none). They end by themselves when their pipe to this process closes,
    however it ends.
    """
    available = multiprocessing.get_all_start_methods()
    context = "forkserver" if "forkserver" in available else "spawn"
    if context == "forkserver":
        multiprocessing.get_context(context).set_forkserver_preload([__name__])
    with _hidden_main(), _blocked_signals():
        return _Processes(
            makers, copy=False, context=context, autoreset_mode=AutoresetMode.NEXT_STEP
        )


@contextlib.contextmanager
def _hidden_main() -> Iterator[None]:
    """Hides the main program, which multiprocessing would import, and jax with it, in workers."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextlib.contextmanager
def _blocked_signals() -> Iterator[None]:
    """Blocks signals, which processes started here inherit until `_ignore_signals`.

    This process misses none: another thread takes it, or it waits until the end.
    """
    if sys.platform == "win32":
        yield
        return
    resource_tracker.ensure_running()  # its start, which a process needs, lets signals through
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _ignore_signals() -> None:
    """For workers: the main program decides on them, and still asks its workers for their state.
    Those end when it closes them, and also when it dies, by their pipe."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # drops those that came while starting


def _close(vector: SyncVectorEnv | AsyncVectorEnv) -> None:
    """Closes the environments; kills the workers when one has died or is amid a step."""
    processes = getattr(vector, "processes", [])
    idle = getattr(vector, "_state", AsyncState.DEFAULT) is AsyncState.DEFAULT
    if idle and all(process.is_alive() for process in processes):
        with contextlib.suppress(EOFError, ConnectionError):
            vector.close()
            return
    for process in processes:
        process.kill()
    vars(vector)["_state"] = AsyncState.DEFAULT  # or gymnasium would wait for them
    vector.close_extras(terminate=True)
    vector.closed = True


def _cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _make(maker: Maker, seed: int, index: int, parent: int, seeded: bool) -> gymnasium.Env:
    if os.getpid() != parent:
        _ignore_signals()
    env = maker(seed=episode_seed(seed, index, 0)) if seeded else maker()
    return Episodes(env, seed, index)
