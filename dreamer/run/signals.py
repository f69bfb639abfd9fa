"""Ctrl-C, SIGTERM and a closed terminal as a wish to stop at the next safe point."""

import contextlib
import os
import signal
from types import FrameType, TracebackType
from typing import Any, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))


class StopRequest:
    """In this context the first of `SIGNALS` sets `requested`; a second acts as usual.

    One that is ignored, as SIGHUP under nohup, stays so. Ctrl-C is answered at once, for the step
    under way may take long.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        for number in SIGNALS:
            # SIGINT too is ignored where a shell starts a program in the background, but nohup's
            # ignored SIGHUP is a wish of the user.
            if number == signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self._restore()
        if number == signal.SIGINT:
            # Not by print, which may be what it interrupts.
            with contextlib.suppress(OSError):
                os.write(2, b"stopping after this step, then saving; Ctrl-C again stops at once\n")

    def _restore(self) -> None:
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler)
