"""Where one environment runs: in this process, or in one of its own that may die or hang.

A worker is asked by `send` and answers at `receive`, so that several can be asked at once.
"""

import contextlib
import multiprocessing
import pickle
import signal
import sys
import types
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

import cloudpickle
import psutil
from gymnasium.vector.utils import clear_mpi_env_vars

from dreamer.envs.episodes import Episodes
from dreamer.envs.faults import attempt
from dreamer.envs.slots import Memory
from dreamer.errors import EnvironmentFault

# What a terminal, a scheduler or a service manager sends to all processes of a program alike.
NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
SIGNALS = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
PRELOADED = "dreamer.envs.vector"  # imports all that workers need, but for what they play
CLOSING = 10  # seconds that an environment may take to close


class Worker(Protocol):
    """What runs the `Episodes` of one environment."""

    def send(self, method: str, *arguments: Any) -> None:
        """Asks to call a method of `Episodes`."""
        ...

    def receive(self, clock: Iterator[int] | None = None) -> Any:
        """Waits for what it gives.

        Args:
          clock: gives out the seconds that a process may still wait for, to several in turn; None
            waits for ever.

        Raises:
          EnvironmentFault: it failed, or its process has died, or took longer and was killed.
        """
        ...

    def memory(self) -> float:
        """GiB that its own process takes and what that has started, 0 if it has none."""
        ...

    def leave(self) -> None:
        """Begins to close it, which `close` waits for."""
        ...

    def close(self) -> None:
        """Ends it, whatever it does; may be called twice.

        Raises:
          EnvironmentFault: the environment failed in its close.
        """
        ...


class Serial:
    """A worker in this process, which works when it is asked for the answer."""

    def __init__(self, episodes: Episodes) -> None:
        self.episodes = episodes
        self._call: tuple[Any, ...]

    def send(self, method: str, *arguments: Any) -> None:
        self._call = method, *arguments

    def receive(self, clock: Iterator[int] | None = None) -> Any:
        method, *arguments = self._call
        return getattr(self.episodes, method)(*arguments)

    def memory(self) -> float:
        return 0.0

    def leave(self) -> None:
        pass

    def close(self) -> None:
        self.episodes.close()


class Process:
    """A worker in a process of its own.

    It comes from a server that never saw the main program: forking a process that runs jax's
    threads can deadlock. Where there is no fork server it is spawned. It ends by itself when its
    pipe to this process closes, however this one ends.

    Args:
      make: gives the `Episodes` of an environment; pickles, by cloudpickle if need be.
      memory: what `make` is given, shared by processes.
      index: what `make` is given, the number of the environment.
    """

    def __init__(self, make: Callable[[Memory, int], Episodes], memory: Memory, index: int) -> None:
        context = context_of_workers()
        self._pipe, theirs = context.Pipe()
        self.process = context.Process(
            target=_serve, args=(theirs, cloudpickle.dumps(make), memory, index), daemon=True
        )
        self._name = f"the process of environment {index}"
        self._busy = False
        with clear_mpi_env_vars(), _hidden_main(), _blocked_signals():
            self.process.start()
        theirs.close()

    def send(self, method: str, *arguments: Any) -> None:
        self._busy = True
        with contextlib.suppress(OSError):  # `receive` tells that it is dead
            self._pipe.send((method, *arguments))

    def receive(self, clock: Iterator[int] | None = None) -> Any:
        try:
            # Second by second, so that one in which this process was stopped as well counts once.
            while clock and not self._pipe.poll(1):
                if next(clock, None) is None:
                    kill(self.process)
                    raise EnvironmentFault(f"{self._name} hung for longer than env.timeout allows")
            fine, answer = self._pipe.recv()
        except (EOFError, OSError) as error:
            self.process.join(1)  # its end of the pipe closes a moment before it is dead
            code = self.process.exitcode
            memory = " (as a machine out of memory ends it)" if code == -9 else ""
            raise EnvironmentFault(f"{self._name} died with exit code {code}{memory}") from error
        self._busy = False
        if not fine:
            raise EnvironmentFault(answer)
        return answer

    def memory(self) -> float:
        total = 0
        for process in _family(self.process):
            with contextlib.suppress(psutil.Error):  # it has died since
                total += process.memory_info().rss
        return total / 2**30

    def leave(self) -> None:
        if self._busy:
            kill(self.process)
        else:
            self.send("close")

    def close(self) -> None:
        if self._pipe.closed:
            return
        fine, answer = True, None
        with contextlib.suppress(EOFError, OSError):  # it has died
            if self._pipe.poll(CLOSING):
                fine, answer = self._pipe.recv()
        self.process.join(CLOSING)
        kill(self.process)
        self._pipe.close()
        if not fine:
            raise EnvironmentFault(answer)


def kill(process: BaseProcess) -> None:
    """Kills a process with what it has started, which would outlive it."""
    for one in _family(process):
        with contextlib.suppress(psutil.Error):  # it has died since
            one.kill()
    process.kill()
    process.join(CLOSING)  # in which all die but one that the kernel holds


def kill_all() -> None:
    """Kills what a normal end of this process would end: all that multiprocessing has started as
    daemons, those of the user's own vector environments included."""
    for process in multiprocessing.active_children():
        if process.daemon:
            kill(process)


def _family(process: BaseProcess) -> list[psutil.Process]:
    """It and what it has started, such as a game; none if it has died."""
    try:
        found = psutil.Process(process.pid)
        return [found, *found.children(recursive=True)]
    except psutil.Error:
        return []


def context_of_workers() -> Any:
    """What processes, and the memory that they share with this one, come from."""
    available = multiprocessing.get_all_start_methods()
    if "forkserver" not in available:
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([PRELOADED])
    return context


def _serve(pipe: Connection, make: bytes, memory: Memory, index: int) -> None:
    """What the process of a worker does."""
    _ignore_signals()
    with contextlib.suppress(EOFError, OSError):
        try:
            cannot = f"environment {index} cannot be made:"
            episodes: Episodes = attempt(cannot, lambda: pickle.loads(make)(memory, index))
        except EnvironmentFault as fault:
            pipe.send((False, str(fault)))
            return
        method = ""
        while method != "close":
            try:
                method, *arguments = pipe.recv()
            except (EOFError, OSError):  # the other process has ended
                method, arguments = "close", []
            try:
                answer = True, getattr(episodes, method)(*arguments)
            except EnvironmentFault as fault:
                answer = False, str(fault)
            pipe.send(answer)


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
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        resource_tracker.ensure_running()  # its start, which a process needs, unblocks some
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _ignore_signals() -> None:
    """For workers: the main program decides on them, and closes its workers. Those end also when it
    dies, by their pipe."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # drops those that came while starting
