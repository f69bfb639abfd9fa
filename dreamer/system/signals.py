"""Signals as requests for the next safe point: Ctrl-C, SIGTERM and a closed terminal to stop there,
SIGUSR1 to save and continue."""

import contextlib
import os
import selectors
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any, NoReturn, Protocol, Self

from dreamer.errors import Ended, ended_by
from dreamer.system import files

SIGNALS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))
SAME = 2.0  # seconds in which SIGTERMs of a scheduler and of a parent that passes it on are one
PATIENCE = 1.0  # seconds that Python may take to end after a second Ctrl-C
UNDOING = 5.0  # seconds that a command may take to remove what is half-made
SAVE = signal.SIGUSR1 if hasattr(signal, "SIGUSR1") else None
STOPPING = (
    "stopping after this iteration (a compilation under way ends first), then saving; "
    "Ctrl-C again ends at once, without the save"
)


class Display(Protocol):
    """What a terminal shows of a run."""

    def note(self, line: str) -> None:
        """Prints a line on standard error, from any thread."""
        ...

    def release(self) -> None:
        """Gives the terminal back, from any thread, right before the process ends."""
        ...


class Count:
    """Which signal is the first, and which of those after it count as a second."""

    def __init__(self) -> None:
        self.first: tuple[int, float] | None = None  # number and time

    def second(self, number: int) -> bool:
        """Notes a signal; whether it is a second one."""
        if self.first is None:
            self.first = number, time.monotonic()
            return False
        number_before, since = self.first
        both = number == number_before == signal.SIGTERM
        return not both or time.monotonic() - since >= SAME


class StopRequest:
    """In this context the first of `SIGNALS` sets `requested`; a second acts as usual, but for a
    SIGTERM within `SAME` seconds of the first.

    One that is ignored, as SIGHUP under nohup, stays so.

    No handler of Python runs while the main thread is deep in compiled code or compiles. So the
    system itself writes signals into a pipe as well, which a thread reads: it acknowledges Ctrl-C
    at once, and ends the process where that must not wait.

    Args:
      ends_process: that of a command. A first signal before `begin` ends the process at once, as
        does a second one.
    """

    def __init__(self, ends_process: bool = False) -> None:
        self.requested = False
        self.saves = 0  # requested so far
        self._ends_process = ends_process
        self._begun = not ends_process
        self._count = Count()  # of the handlers
        self._display: Display | None = None
        self._grace: tuple[float, Callable[[], str]] | None = None
        self._pipe: tuple[int, int] | None = None  # while in the context
        self._stops: dict[signal.Signals, Any] = {}  # the handlers before
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
            # SIGINT too is ignored where a shell starts a program in the background, but nohup's
            # ignored SIGHUP is what the user requests.
            if number == signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN:
                self._stops[number] = signal.signal(number, self._note)
        if SAVE is not None:
            self._saves[SAVE] = signal.signal(SAVE, self._note_save)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._ends_process:  # all is saved, and the exit of Python may wait for a thread
            self._stops = dict.fromkeys(self._stops, signal.SIG_DFL)
        _put_back(self._stops)
        _put_back(self._saves)
        assert self._pipe is not None
        signal.set_wakeup_fd(self._wakeup)
        os.close(self._pipe[1])  # which the thread sees
        self._pipe = None

    def begin(self, display: Display | None = None) -> None:
        """From here on signals are requests: there is something to save.

        Args:
          display: shows the acknowledgement; standard error without one.
        """
        self._display, self._begun = display, True

    @contextlib.contextmanager
    def grace(self, seconds: float, last_words: Callable[[], str]) -> Iterator[None]:
        """In this context the process ends so many seconds after a SIGTERM, also one that came
        before, whatever is under way. A checkpoint that is half-written then is none.

        Args:
          seconds: until the end; 0 is no limit.
          last_words: gives the line to print then.
        """
        self._grace = (seconds, last_words) if seconds else None
        if self._pipe is not None:
            os.write(self._pipe[1], b"\0")  # the thread looks at its deadlines
        try:
            yield
        finally:
            self._grace = None

    def _note(self, number: int, frame: FrameType | None) -> None:
        """The handler, in the main thread."""
        if not self._begun:
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
        """What the thread does until the context ends."""
        count = Count()
        second: tuple[float, int] | None = None  # when the process ends, by which signal
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
                if not self._begun:
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

    def _show(self, line: str) -> None:
        if self._display is not None:
            self._display.note(line)
        else:
            _write(line)

    def _end(self, number: int, last_words: Callable[[], str] | None = None) -> NoReturn:
        """Ends the process whatever it does, with the processes that it has started."""
        # Whatever it is, the end comes: also where a terminal that is stopped takes no word.
        timer = threading.Timer(PATIENCE, os._exit, (128 + number,))
        timer.daemon = True
        timer.start()
        for step in (_kill_started, self._release):
            with contextlib.suppress(Exception):
                step()
        with contextlib.suppress(Exception):
            _write(last_words() if last_words else ended_by(number))
        os._exit(128 + number)

    def _release(self) -> None:
        if self._display is not None:
            self._display.release()


_followed: list[weakref.ref[StopRequest]] = []  # the newest, once a process that forks has one


def _follow_forks(request: StopRequest) -> None:
    """Lets forked processes, such as those of a vector environment, answer signals as they did
    before: in them none is a request to this one."""
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
    """Kills the processes of environments: one that hangs would outlive this one."""
    workers, started = map(sys.modules.get, ("dreamer.envs.workers", "multiprocessing"))
    if workers:  # slow to import
        workers.kill_all()
    elif started:
        for process in started.active_children():
            process.kill()


def _write(line: str) -> None:
    """Not by print, which may be what a signal interrupts."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            os.write(2, f"{line}\n".encode(errors="replace"))


def _put_back(handlers: dict[signal.Signals, Any]) -> None:
    while handlers:
        number, handler = handlers.popitem()
        signal.signal(number, handler)
