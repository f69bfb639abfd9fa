"""N environments in workers, of which those that fail are made anew, one by one.

Legend: N environments.
"""

import contextlib
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from dreamer.config.env import EnvBase
from dreamer.envs.base import Restart
from dreamer.envs.episodes import Episodes
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
      config: how many failures are mended, and what counts as one.
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
        self.workers = [self._start(i) for i in range(num_envs)]
        # At the latest at exit, where multiprocessing would wait for the workers.
        self.close = weakref.finalize(self, _close, self.workers)

    def ask(self, calls: Mapping[int, Call], steps: int = 1) -> Answers:
        """As `call`, but for environments that failed: they are made anew, and give None.

        Raises:
          EnvironmentFault: one failed after as many failures as `config` allows.
        """
        answers = self.call(calls, steps)
        for i, answer in answers.items():
            if isinstance(answer, EnvironmentFault):
                self._mend(i, answer)
                answers[i] = None
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
        """Makes those anew whose process has grown too large, which is no failure."""
        limit = self._config.max_memory
        sizes = {i: self.workers[i].memory() for i in which} if limit else {}
        for i, size in sizes.items():
            if size > limit:
                line = f"environment {i} took {size:.2f} GiB, with env.max_memory={limit:g}"
                self._restart(i, f"{line}; made anew", failed=False)

    def _mend(self, index: int, fault: EnvironmentFault) -> None:
        limit = self._config.restarts
        number = 1 + sum(restart.failed for restart in self.restarts)
        if number > limit:
            more = f"; failure {number} of the run, with env.restarts={limit}" if limit else ""
            raise EnvironmentFault(f"{fault}{more}") from fault
        self._restart(index, f"{fault}; made anew, {number} of env.restarts={limit}", failed=True)

    def _restart(self, index: int, line: str, failed: bool) -> None:
        with contextlib.suppress(Exception):  # it may fail to close too
            _close([self.workers[index]])
        self.workers[index] = self._start(index)
        self.restarts.append(Restart(index, line, failed))

    def _start(self, index: int) -> Worker:
        if self._processes:
            return Process(self._make, self._memory, index)
        return Serial(self._make(self._memory, index))


def _close(workers: list[Worker]) -> None:
    for worker in workers:
        worker.leave()
    for worker in workers:
        worker.close()
