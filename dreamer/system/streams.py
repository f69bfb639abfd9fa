"""Standard streams that never end a program: closed, full, without a reader, or ASCII alone."""

import contextlib
import os
import sys
from typing import Any, TextIO

from dreamer.errors import emit


class Forgiving:
    """A text file that drops what cannot be written, and replaces characters that it does not know.

    Args:
      file: None is one that takes nothing, as `sys.stdout` is where a program starts without it.
    """

    def __init__(self, file: TextIO | None) -> None:
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, text: str) -> int:
        emit(text, self._file, end="", flush=False)
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError, ValueError):
                self._file.flush()


def open_missing() -> None:
    """Opens the null device for each standard stream that is closed: the next file that the program
    opens would take its number, and get what libraries write there."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free, which is this one
        if number and getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w", encoding="utf-8", closefd=False))


def drop_unwritten() -> None:
    """Drops what the standard streams could not write: Python would try again at its exit and end
    with status 120."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
