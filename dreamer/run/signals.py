"""Signals as wishes for the next safe point: Ctrl-C, SIGTERM and a closed terminal to stop there,
SIGUSR1 to save and go on."""

import contextlib
import os
import signal
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

from dreamer.envs import workers
from dreamer.run.grace import Grace

SIGNALS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))
SAME = 2.0  # seconds in which SIGTERMs of a scheduler and of a parent that passes it on are one
SAVE = signal.SIGUSR1 if hasattr(signal, "SIGUSR1") else None


class StopRequest:
    """In this context the first of `SIGNALS` sets `requested`; a second acts as usual, but for a
    SIGTERM within `SAME` seconds of the first.

    One that is ignored, as SIGHUP under nohup, stays so. Ctrl-C is answered at once, for the step
    under way may take long.
    """

    def __init__(self) -> None:
        self.requested = False
        self.saves = 0  # asked for so far
        self._terminated: float | None = None  # when, by `time.monotonic`
        self._heard = False  # otherwise signals are left to the program
        self._stops: dict[signal.Signals, Any] = {}  # the handlers before
        self._saves: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        for number in SIGNALS:
            # SIGINT too is ignored where a shell starts a program in the background, but nohup's
            # ignored SIGHUP is a wish of the user.
            if number == signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN:
                self._stops[number] = signal.signal(number, self._note)
        if SAVE is not None:
            self._saves[SAVE] = signal.signal(SAVE, self._note_save)
        self._heard = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _put_back(self._stops)
        _put_back(self._saves)

    def grace(self, seconds: float, last_words: Callable[[], str]) -> Grace:
        """Where a SIGTERM, also one that came before, leaves so many seconds; see `Grace`."""
        return Grace(seconds if self._heard else 0, last_words, self._terminated)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._terminated is not None:
            self._note_again(number, self._terminated)
            return
        if number == signal.SIGTERM:
            self._terminated = time.monotonic()
            usual = self._stops.pop(signal.SIGTERM)
            _put_back(self._stops)
            self._stops[signal.SIGTERM] = usual  # this one only later
        else:
            _put_back(self._stops)
        self.requested = True
        if number == signal.SIGINT:
            # Not by print, which may be what it interrupts.
            with contextlib.suppress(OSError):
                os.write(2, b"stopping after this step, then saving; Ctrl-C again stops at once\n")

    def _note_again(self, number: int, first: float) -> None:
        if time.monotonic() - first >= SAME:
            if self._stops.get(signal.Signals(number)) is signal.SIG_DFL:
                workers.kill_all()  # one that hangs would outlive this process
            _put_back(self._stops)
            signal.raise_signal(number)

    def _note_save(self, number: int, frame: FrameType | None) -> None:
        self.saves += 1


def _put_back(handlers: dict[signal.Signals, Any]) -> None:
    while handlers:
        number, handler = handlers.popitem()
        signal.signal(number, handler)
