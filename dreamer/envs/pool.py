"""N environments in workers, of which those that fail are restarted, one by one.

Legend: N environments.
"""

import contextlib
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from dreamer.config.env import EnvBase
from dreamer.envs.base import RESTARTED, Restart
from dreamer.envs.episodes import Episodes
from dreamer.envs.faults import Restarts
from dreamer.envs.slots import Memory
from dreamer.envs.workers import Process, Serial, Worker
from dreamer.errors import EnvironmentFault

Call = tuple[Any, ...]  # the name of a method of `Episodes`, and its arguments
Answers = dict[int, Any]  # by environment


class Pool:
    """Workers that are all asked at once.

    Args:
      make: gives the `Episodes` of the environment of this number, in this memory.
      memory: for all observations.
      num_envs: N.
      config: after how many failures they are restarted, and what counts as one.
      processes: whether each has its own.
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
        # At the latest at exit, where multiprocessing would wait for the workers.
        self.close = weakref.finalize(self, _close, self.workers)

    def ask(self, calls: Mapping[int, Call], steps: int = 1) -> Answers:
        """As `call`, but for environments that failed: they are restarted, and give None.

        Raises:
          EnvironmentFault: one failed, and is not restarted, see `Restarts`.
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
        """Calls methods by environment, each for at most so many steps and resets.

        Returns:
          What they gave, or the EnvironmentFault of those that failed.
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
        """Restarts those whose process has grown too large, which is no failure."""
        limit = self._config.max_memory
        sizes = {i: self.workers[i].memory() for i in which} if limit else {}
        for i, size in sizes.items():
            if size > limit:
                line = f"environment {i} took {size:.2f} GiB, with env.max_memory={limit:g}"
                self._restart(i, f"{line}{RESTARTED}", failed=False)

    def _restart(self, index: int, line: str, failed: bool) -> None:
        with contextlib.suppress(EnvironmentFault):  # it may fail to close too
            _close([self.workers[index]])
        self.workers[index] = self._start(index)
        self.restarts.append(Restart(index, line, failed))

    def _start(self, index: int) -> Worker:
        if self._processes:
            return Process(self._make, self._memory, index)
        return Serial(self._make(self._memory, index))


def _close(workers: list[Worker]) -> None:
    """Closes all, then raises the EnvironmentFault of one that failed in it."""
    for worker in workers:
        worker.leave()
    with contextlib.ExitStack() as stack:
        for worker in reversed(workers):
            stack.callback(worker.close)
