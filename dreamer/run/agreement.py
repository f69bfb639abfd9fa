"""What several hosts must do at the same turn: stop, save, log.

Signals come to one host, and clocks are never the same. So now and then all hosts meet: any may ask
to stop or to save, the clocks are those of the first. A host alone asks nobody.
"""

import time
from collections.abc import Callable
from typing import Any

from dreamer import parallel
from dreamer.run.signals import StopRequest

PERIOD = 0.5  # seconds between two meetings, about
WITHOUT_UPDATES, MOST = 20, 1000  # turns between them, at most

Clock = Callable[[], bool]


class Alone:
    """One host: everything is as it is asked for.

    Args:
      request: of signals and callbacks.
    """

    first = True
    wanted = False  # by a host that all save now, as the hosts said when they last met

    def __init__(self, request: StopRequest) -> None:
        self._request = request

    @property
    def stop(self) -> bool:
        """Whether to stop after this turn."""
        return self._request.requested

    @property
    def saves(self) -> int:
        """Asked for so far."""
        return self._request.saves

    def clock(self, clock: Clock) -> Clock:
        """Fires on all hosts when the first's does."""
        return clock

    def meet(self, updates: int, save: bool = False, now: bool = False) -> list[Any]:
        """After every turn: makes `stop`, `saves`, `wanted` and clocks those of all hosts.

        Args:
          updates: done so far.
          save: whether this host wants all to save.
          now: whether they meet in any case, as they all know.

        Returns:
          What other hosts had to `post`, on the first.
        """
        return []

    def post(self, letter: Any) -> None:
        """Leaves what JSON can hold for the first host, to be had when they meet."""
        raise AssertionError("there is no other host")

    def told(self, compute: Callable[[], Any]) -> Any:
        """What the first host computes, which JSON can hold, on all."""
        return compute()


class Several(Alone):
    """Of several hosts this one."""

    def __init__(self, request: StopRequest, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__(request)
        self.first = parallel.host() == 0
        self._stop, self._saves = False, 0
        self._clocks: list[Clock] = []
        self._fired: list[bool] = []
        self._letters: list[Any] = []
        self._now = now
        self._last, self._planned, self._left = now(), 1, 1  # turns between meetings and until one

    @property
    def stop(self) -> bool:
        return self._stop

    @property
    def saves(self) -> int:
        return self._saves

    def clock(self, clock: Clock) -> Clock:
        number = len(self._clocks)
        self._clocks.append(clock)
        return lambda: number < len(self._fired) and self._fired[number]

    def meet(self, updates: int, save: bool = False, now: bool = False) -> list[Any]:
        self._fired, self.wanted, self._left = [], False, self._left - 1
        if self._left > 0 and not now:
            return []
        letters, self._letters = self._letters, []
        says = {
            "stop": self._request.requested,
            "saves": self._request.saves,
            "save": save,
            "clocks": [clock() for clock in self._clocks] if self.first else [],
            "next": self._plan(updates),
            "letters": letters,
        }
        heard = parallel.gather(says)
        self._stop = self._stop or any(one["stop"] for one in heard)
        self._saves = sum(one["saves"] for one in heard)
        self.wanted = any(one["save"] for one in heard)
        self._fired = heard[0]["clocks"]
        self._left = self._planned = heard[0]["next"]
        return [letter for one in heard for letter in one["letters"]] if self.first else []

    def post(self, letter: Any) -> None:
        self._letters.append(letter)

    def told(self, compute: Callable[[], Any]) -> Any:
        return parallel.gather(compute() if self.first else None)[0]

    def _plan(self, updates: int) -> int:
        """Turns until the next meeting, by how long those since the last took."""
        now = self._now()
        each, self._last = max(1e-6, (now - self._last) / self._planned), now
        most = min(2 * self._planned, MOST if updates else WITHOUT_UPDATES)
        return max(1, min(most, int(PERIOD / each)))


def make(request: StopRequest) -> Alone:
    """That of this host."""
    return Several(request) if parallel.hosts() > 1 else Alone(request)
