"""Synchronisation of what all hosts do at the same iteration: stop, save, log.

Signals reach one host, and clocks differ. So all hosts synchronise about twice a second: any host
may request to stop or to save, and clocks are those of the first. A single host does not wait.
"""

import time
from collections.abc import Callable
from typing import Any

from dreamer.distributed import hosts
from dreamer.system.signals import StopRequest

PERIOD = 0.5  # seconds between two barriers, about
WITHOUT_UPDATES, MOST = 20, 1000  # iterations between them, at most

Clock = Callable[[], bool]


class SingleHost:
    """One host: requests apply at once.

    Args:
      request: of signals and callbacks.
    """

    first = True
    save_requested = False  # by a host, as of the last barrier

    def __init__(self, request: StopRequest) -> None:
        self._request = request

    @property
    def stop(self) -> bool:
        """Whether to stop after this iteration."""
        return self._request.requested

    @property
    def saves(self) -> int:
        """Requested by signals so far."""
        return self._request.saves

    def clock(self, clock: Clock) -> Clock:
        """A clock that fires on all hosts when that of the first does."""
        return clock

    def barrier(self, updates: int, save: bool = False, now: bool = False) -> list[Any]:
        """Synchronises `stop`, `saves`, `save_requested` and clocks; called after every iteration.

        Args:
          updates: done so far.
          save: whether this host requests that all save.
          now: synchronises at this call; the same on all hosts.

        Returns:
          The messages of all hosts, on the first.
        """
        return []

    def to_first(self, messages: list[Any]) -> list[Any]:
        """Sends messages of JSON types to the first host, which receives them at the next barrier;
        returns those to handle here."""
        return messages

    def broadcast(self, compute: Callable[[], Any]) -> Any:
        """The value that the first host computes, of JSON types, on all hosts."""
        return compute()


class MultiHost(SingleHost):
    """One of several hosts."""

    def __init__(self, request: StopRequest, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__(request)
        self.first = hosts.index() == 0
        self._stop, self._saves = False, 0
        self._clocks: list[Clock] = []
        self._fired: list[bool] = []
        self._messages: list[Any] = []
        self._now = now
        # Iterations between barriers, and until the next one.
        self._last, self._planned, self._left = now(), 1, 1

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

    def barrier(self, updates: int, save: bool = False, now: bool = False) -> list[Any]:
        self._fired, self.save_requested, self._left = [], False, self._left - 1
        if self._left > 0 and not now:
            return []
        messages, self._messages = self._messages, []
        own = {
            "stop": self._request.requested,
            "saves": self._request.saves,
            "save": save,
            "clocks": [clock() for clock in self._clocks] if self.first else [],
            "next": self._plan(updates),
            "messages": messages,
        }
        found = hosts.gather(own)
        self._stop = self._stop or any(one["stop"] for one in found)
        self._saves = sum(one["saves"] for one in found)
        self.save_requested = any(one["save"] for one in found)
        self._fired = found[0]["clocks"]
        self._left = self._planned = found[0]["next"]
        return [message for one in found for message in one["messages"]] if self.first else []

    def to_first(self, messages: list[Any]) -> list[Any]:
        if self.first:
            return messages
        self._messages += messages
        return []

    def broadcast(self, compute: Callable[[], Any]) -> Any:
        return hosts.gather(compute() if self.first else None)[0]

    def _plan(self, updates: int) -> int:
        """Iterations until the next barrier, from the duration of those since the last."""
        now = self._now()
        each, self._last = max(1e-6, (now - self._last) / self._planned), now
        most = min(2 * self._planned, MOST if updates else WITHOUT_UPDATES)
        return max(1, min(most, int(PERIOD / each)))


def make(request: StopRequest) -> SingleHost:
    """The synchronisation of this process."""
    return MultiHost(request) if hosts.count() > 1 else SingleHost(request)
