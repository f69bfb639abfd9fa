"""A limit to the time that a run takes for its end after SIGTERM."""

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from dreamer.envs import workers

STATUS = 128 + signal.SIGTERM  # of a process that ended by it


class Grace:
    """In this context the process ends so many seconds after a SIGTERM, whatever is under way.

    A checkpoint that is half-written then is none, see `checkpointer`. The main thread may be deep
    in compiled code, where no handler of Python runs: so the system itself writes the signal into a
    pipe, which a thread reads.

    Args:
      seconds: until the end; 0 is no limit.
      last_words: gives the line to show then.
      since: of `time.monotonic` when a SIGTERM came, if one came before.
    """

    def __init__(
        self, seconds: float, last_words: Callable[[], str], since: float | None = None
    ) -> None:
        self._seconds, self._last_words = seconds, last_words
        self._deadline = None if since is None else since + seconds

    def __enter__(self) -> Self:
        if self._seconds:
            self._read, self._write = os.pipe()
            os.set_blocking(self._write, False)
            self._before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
            threading.Thread(target=self._watch, name="grace", daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._seconds:
            signal.set_wakeup_fd(self._before)
            os.close(self._write)  # which the thread sees

    def _watch(self) -> None:
        while True:
            left = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
            if not select.select([self._read], [], [], left)[0]:
                self._end()
            numbers = os.read(self._read, 4096)
            if not numbers:
                os.close(self._read)
                return
            if signal.SIGTERM in numbers and self._deadline is None:
                self._deadline = time.monotonic() + self._seconds

    def _end(self) -> None:
        with contextlib.suppress(Exception):  # whatever it is, the end comes
            os.write(2, f"{self._last_words()}\n".encode())
            workers.kill_all()  # one that hangs would outlive this process
        os._exit(STATUS)
