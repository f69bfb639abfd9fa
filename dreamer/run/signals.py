"""Ctrl-C and SIGTERM as a wish to stop at the next safe point."""

import contextlib
import os
import signal
from types import FrameType, TracebackType
from typing import Any, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """In this context the first SIGINT or SIGTERM sets `requested`; a second acts as usual.

    Ctrl-C is answered at once, for the step under way may take long.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
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
            with contextlib.suppress(
                OSError
            ):  # written directly: a print may be what it interrupts
                os.write(2, b"stopping after this step, then saving; Ctrl-C again stops at once\n")

    def _restore(self) -> None:
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler)
