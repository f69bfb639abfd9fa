"""Signals as requests: Ctrl-C, SIGTERM, SIGHUP to save and stop; SIGUSR1 to save and continue."""

import contextlib
import os
import selectors
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NoReturn, Protocol, Self

from dreamer.errors import Ended, ended_by
from dreamer.system import files

SIGNALS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))
SAME = 2.0  # seconds in which two SIGTERMs count as one: of a scheduler, and forwarded by a parent
PATIENCE = 1.0  # seconds that Python has to end after a second Ctrl-C
UNDOING = 5.0  # seconds that a command has to remove incomplete files
SAVE = signal.SIGUSR1 if hasattr(signal, "SIGUSR1") else None
STOPPING = (
    "stopping after this iteration (a compilation under way ends first), then saving; "
    "Ctrl-C again ends at once, without the save"
)


class Display(Protocol):
    """The display of a run on a terminal."""

    def note(self, line: str) -> None:
        """Prints a line on standard error, from any thread."""

    def release(self) -> None:
        """Restores the terminal right before the process ends, from any thread."""


class Count:
    """Distinguishes the first signal from a second one."""

    def __init__(self) -> None:
        self.first: tuple[int, float] | None = None  # number and time

    def second(self, number: int) -> bool:
        """Counts a signal; returns whether it is a second one."""
        if self.first is None:
            self.first = number, time.monotonic()
            return False
        number_before, since = self.first
        both = number == number_before == signal.SIGTERM
        return not both or time.monotonic() - since >= SAME


class StopRequest:
    """A context in which the first of `SIGNALS` sets `requested`. A second one has its usual
    effect, except a SIGTERM within `SAME` seconds of the first.

    Ignored signals stay ignored, such as SIGHUP under nohup.

    Python's handlers do not run while the main thread is in compiled code or compiles. So signals
    are also written into a pipe that a thread reads: it acknowledges Ctrl-C at once, and ends the
    process where that must not wait.

    Args:
      ends_process: for a command: a signal before `begin` ends the process at once, and so does a
        second one.
    """

    def __init__(self, ends_process: bool = False) -> None:
        self.requested = False
        self.saves = 0  # requested so far
        self._ends_process = ends_process
        self._started = not ends_process
        self._count = Count()  # of the handlers
        self._show: Callable[[str], object] = _write  # prints a line
        self._before_end: list[Callable[[], object]] = [_kill_started]
        self._grace: tuple[float, Callable[[], str]] | None = None
        self._pipe: tuple[int, int] | None = None  # while in the context
        self._stops: dict[signal.Signals, Any] = {}  # the previous handlers
        self._saves: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self._pipe = os.pipe()
        os.set_blocking(self._pipe[1], False)
        self._wakeup = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        watch = threading.Thread(
            target=self._watch, args=self._pipe[:1], name="signals", daemon=True
        )
        watch.start()
        _follow_forks(self)
        for number in SIGNALS:
            # Shells ignore SIGINT of a program in the background; it is handled nevertheless.
            if number == signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN:
                self._stops[number] = signal.signal(number, self._note)
        if SAVE is not None:
            self._saves[SAVE] = signal.signal(SAVE, self._note_save)
        return self

    def __exit__(self, *_: object) -> None:
        if self._ends_process:  # everything is saved, and Python may wait for a thread at exit
            self._stops = dict.fromkeys(self._stops, signal.SIG_DFL)
        _put_back(self._stops)
        _put_back(self._saves)
        assert self._pipe is not None
        signal.set_wakeup_fd(self._wakeup)
        os.close(self._pipe[1])  # ends the thread
        self._pipe = None

    def begin(self, display: Display | None = None) -> None:
        """Makes signals requests from now on: there is something to save.

        Args:
          display: prints the acknowledgement; standard error without one.
        """
        self._started = True
        if display is not None:
            self._show = display.note
            self._before_end[1:] = [display.release]

    @contextlib.contextmanager
    def grace(self, seconds: float, last_words: Callable[[], str]) -> Iterator[None]:
        """A context in which the process ends some seconds after a SIGTERM, also an earlier one,
        whatever it does. An incomplete checkpoint is then discarded.

        Args:
          seconds: from the SIGTERM to the end; 0 is no limit.
          last_words: returns the line to print at the end.
        """
        self._grace = (seconds, last_words) if seconds else None
        if self._pipe is not None:
            os.write(self._pipe[1], b"\0")  # the thread computes its deadline
        try:
            yield
        finally:
            self._grace = None

    def _note(self, number: int, frame: FrameType | None) -> None:
        """The handler, in the main thread."""
        if not self._started:
            if files.is_undoing():
                raise Ended(number)
            return  # `_watch` ends the process
        if not self._count.second(number):
            self.requested = True
        elif number == signal.SIGINT or not self._ends_process:
            if self._stops.get(signal.Signals(number)) is signal.SIG_DFL:
                _kill_started()
            _put_back(self._stops)
            signal.raise_signal(number)

    def _note_save(self, number: int, frame: FrameType | None) -> None:
        self.saves += 1

    def _watch(self, pipe: int) -> None:
        """Runs in the thread until the context ends."""
        count = Count()
        second: tuple[float, int] | None = None  # time and signal of the end
        ready = selectors.DefaultSelector()
        ready.register(pipe, selectors.EVENT_READ)
        while True:
            ends = [(*second, "")] if second else []
            if self._grace and count.first and count.first[0] == signal.SIGTERM:
                ends.append((count.first[1] + self._grace[0], signal.SIGTERM, "grace"))
            left = max(0.0, min(ends)[0] - time.monotonic()) if ends else None
            if not ready.select(left):
                _, number, why = min(ends)
                self._end(number, self._grace[1] if why and self._grace else None)
            numbers = os.read(pipe, 4096)
            if not numbers:
                ready.close()
                os.close(pipe)
                return
            for number in numbers:
                if number not in SIGNALS:
                    continue
                if not self._started:
                    if not files.is_undoing():
                        self._end(number)
                    second = second or (time.monotonic() + UNDOING, number)
                elif not count.second(number):
                    self.requested = True
                    if number == signal.SIGINT:
                        self._show(STOPPING)
                elif self._ends_process and not second:
                    patience = PATIENCE if number == signal.SIGINT else 0.0
                    second = time.monotonic() + patience, number

    def _end(self, number: int, last_words: Callable[[], str] | None = None) -> NoReturn:
        """Ends the process whatever it does, and the processes that it has started."""
        # Ends also if the output blocks, as on a stopped terminal.
        timer = threading.Timer(PATIENCE, os._exit, (128 + number,))
        timer.daemon = True
        timer.start()
        for step in self._before_end:
            with contextlib.suppress(Exception):
                step()
        with contextlib.suppress(Exception):
            _write(last_words() if last_words else ended_by(number))
        os._exit(128 + number)


_followed: list[weakref.ref[StopRequest]] = []  # the newest, if there was one


def _follow_forks(request: StopRequest) -> None:
    """Restores the handlers in forked processes, such as those of a vector environment."""
    if not _followed and hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_forget_in_child)
    _followed[:] = [weakref.ref(request)]


def _forget_in_child() -> None:
    request = _followed[0]()
    if request is not None and request._pipe is not None:
        with contextlib.suppress(ValueError):  # forked by another thread than the main one
            signal.set_wakeup_fd(-1)
            _put_back(dict(request._stops) | dict(request._saves))


def _kill_started() -> None:
    """Kills the processes of environments, which would outlive this one if they hang."""
    workers, started = map(sys.modules.get, ("dreamer.envs.workers", "multiprocessing"))
    if workers:  # slow to import
        workers.kill_all()
    elif started:
        for process in started.active_children():
            process.kill()


def _write(line: str) -> None:
    """Prints a line on standard error; not by `print`, which a signal may have interrupted."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            os.write(2, f"{line}\n".encode(errors="replace"))


def _put_back(handlers: dict[signal.Signals, Any]) -> None:
    while handlers:
        number, handler = handlers.popitem()
        signal.signal(number, handler)
