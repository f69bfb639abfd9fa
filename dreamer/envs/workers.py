"""Workers: N environments in this process, or one process each that may die or hang.

`send` starts a call and `receive` waits for it, so that several workers run at the same time. A
`Pool` restarts those that fail, one by one.

Legend: N environments.
"""

import contextlib
import multiprocessing
import pickle
import signal
import sys
import types
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import cloudpickle
import psutil
from gymnasium.vector.utils import clear_mpi_env_vars

from dreamer.config.env import EnvBase
from dreamer.envs.base import RESTARTED, Restart
from dreamer.envs.episodes import Episodes, Memory
from dreamer.envs.faults import Restarts, attempt
from dreamer.errors import EnvironmentFault

# Signals that a terminal, a scheduler or a service manager sends to all processes of a program.
NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
SIGNALS = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
PRELOADED = "dreamer.envs.vector"  # imports all that workers need besides the environment
CLOSING = 10  # seconds that an environment may take to close


class Serial:
    """A worker in this process, with the methods of `Process`; it runs a call in `receive`."""

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
        """Has nothing to do before `close`."""

    def close(self) -> None:
        self.episodes.close()


class Process:
    """A worker in a process of its own.

    A fork server without the main program starts it: forking a process that runs jax's threads can
    deadlock. Without a fork server it is spawned. It ends when its pipe to this process closes,
    however this process ends.

    Args:
      make: Makes the `Episodes` of an environment, from the memory and its number; pickles, by
        cloudpickle if need be.
      memory: Shared by processes.
      index: Number of the environment.
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
        """Starts a call of a method of `Episodes`."""
        self._busy = True
        with contextlib.suppress(OSError):  # `receive` reports that it is dead
            self._pipe.send((method, *arguments))

    def receive(self, clock: Iterator[int] | None = None) -> Any:
        """Waits for the result of the call.

        Args:
          clock: An element for each second that workers may still take, one after the other; None
            is no limit.

        Raises:
          EnvironmentFault: The environment failed, its process died, or it took longer and was
            killed.
        """
        try:
            # Polls by the second, so that a time in which this process was stopped counts once.
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
        """Returns the GiB of its process and of the children of that; 0 in this process."""
        total = 0
        for process in _family(self.process):
            with contextlib.suppress(psutil.Error):  # it has died since
                total += process.memory_info().rss
        return total / 2**30

    def leave(self) -> None:
        """Starts the end that `close` waits for."""
        if self._busy:
            kill(self.process)
        else:
            self.send("close")

    def close(self) -> None:
        """Ends the worker in any case; may be called twice.

        Raises:
          EnvironmentFault: The close of the environment failed.
        """
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


Worker = Serial | Process
Call = tuple[Any, ...]  # the name of a method of `Episodes`, and its arguments
Answers = dict[int, Any]  # by environment


class Pool:
    """Workers that run at the same time.

    Args:
      make: Makes the `Episodes` of an environment, from the memory and its number.
      memory: Of all observations.
      num_envs: N.
      config: Limits of workers.
      processes: Whether each has a process of its own.
    """

    def __init__(
        self,
        make: Callable[[Memory, int], Episodes],
        memory: Memory,
        num_envs: int,
        config: EnvBase,
        processes: bool,
    ) -> None:
        self._make, self._memory, self._config = make, memory, config
        self._processes = processes
        self.restarts: list[Restart] = []
        self._limit = Restarts(config.restarts)
        self.workers = [self._start(i) for i in range(num_envs)]
        # Runs at exit at the latest, where multiprocessing would wait for the workers.
        self.close = weakref.finalize(self, _close, self.workers)

    def ask(self, calls: Mapping[int, Call], steps: int = 1) -> Answers:
        """Calls as `call`, and restarts environments that failed; their answer is None.

        Raises:
          EnvironmentFault: One failed, and is not restarted, see `Restarts`.
        """
        answers = self.call(calls, steps)
        for i, answer in answers.items():
            if isinstance(answer, EnvironmentFault):
                try:
                    line = self._limit.line(i, str(answer), self.restarts)
                except EnvironmentFault as fault:
                    raise fault from answer
                self._restart(i, line, failed=True)
                answers[i] = None
            elif calls[i][0] == "step":
                self._limit.works(i)
        return answers

    def call(self, calls: Mapping[int, Call], steps: int = 1) -> Answers:
        """Calls methods by environment, each of at most so many steps and resets.

        Returns:
          Their results, or the EnvironmentFault of those that failed.
        """
        for i, call in calls.items():
            self.workers[i].send(*call)
        limit = self._config.timeout
        clock = iter(range(limit * steps)) if limit else None
        answers: Answers = {}
        for i in calls:
            try:
                answers[i] = self.workers[i].receive(clock)
            except EnvironmentFault as fault:
                answers[i] = fault
        return answers

    def renew(self, which: Iterable[int]) -> None:
        """Restarts environments above the memory limit, which is no failure."""
        limit = self._config.max_memory
        sizes = {i: self.workers[i].memory() for i in which} if limit else {}
        for i, size in sizes.items():
            if size > limit:
                line = f"environment {i} took {size:.2f} GiB, with env.max_memory={limit:g}"
                self._restart(i, f"{line}{RESTARTED}", failed=False)

    def _restart(self, index: int, line: str, failed: bool) -> None:
        with contextlib.suppress(EnvironmentFault):  # its close may fail too
            _close([self.workers[index]])
        self.workers[index] = self._start(index)
        self.restarts.append(Restart(index, line, failed))

    def _start(self, index: int) -> Worker:
        if self._processes:
            return Process(self._make, self._memory, index)
        return Serial(self._make(self._memory, index))


def _close(workers: list[Worker]) -> None:
    """Closes all, then raises the EnvironmentFault of one whose close failed."""
    for worker in workers:
        worker.leave()
    with contextlib.ExitStack() as stack:
        for worker in reversed(workers):
            stack.callback(worker.close)


def kill(process: BaseProcess) -> None:
    """Kills a process and its children, which would outlive it."""
    for one in _family(process):
        with contextlib.suppress(psutil.Error):  # it has died since
            one.kill()
    process.kill()
    process.join(CLOSING)  # the kernel may keep it for longer


def kill_all() -> None:
    """Kills all daemons of multiprocessing, which a normal exit would end.

    They include those of the user's own vector environments.
    """
    for process in multiprocessing.active_children():
        if process.daemon:
            kill(process)


def _family(process: BaseProcess) -> list[psutil.Process]:
    """The process and its children, such as a game; none if it has died."""
    try:
        found = psutil.Process(process.pid)
        return [found, *found.children(recursive=True)]
    except psutil.Error:
        return []


def context_of_workers() -> Any:
    """The context of multiprocessing for processes and their shared memory."""
    available = multiprocessing.get_all_start_methods()
    if "forkserver" not in available:
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([PRELOADED])
    return context


def _serve(pipe: Connection, make: bytes, memory: Memory, index: int) -> None:
    """Answers the calls of a worker, in its process."""
    # The main program handles signals and closes its workers; if it dies, their pipe ends them.
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # drops those that came while starting
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
            except (EOFError, OSError):  # the main process has ended
                method, arguments = "close", []
            try:
                answer = True, getattr(episodes, method)(*arguments)
            except EnvironmentFault as fault:
                answer = False, str(fault)
            pipe.send(answer)


@contextlib.contextmanager
def _hidden_main() -> Iterator[None]:
    """Hides the main program: multiprocessing would import it, with jax, in workers."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextlib.contextmanager
def _blocked_signals() -> Iterator[None]:
    """Blocks signals; processes started inside inherit that until `_serve` unblocks them.

    This process loses none: another thread receives it, or it is delivered at the end.
    """
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        resource_tracker.ensure_running()  # its start unblocks some
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
