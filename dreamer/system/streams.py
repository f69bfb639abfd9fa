"""Standard streams that never fail: closed, full, without a reader, or limited to ASCII."""

import contextlib
import os
import sys
from typing import Any, TextIO

from dreamer.errors import emit


class Forgiving:
    """A text file that drops what cannot be written, and replaces characters that it cannot encode.

    Args:
      file: the file; None drops everything, as for a `sys.stdout` that is missing.
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
    """Opens the null device for each closed standard stream: otherwise the next opened file would
    take its number, and receive what libraries write there."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
        if number and getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w", encoding="utf-8", closefd=False))


def drop_unwritten() -> None:
    """Drops what the standard streams could not write: Python would retry at exit, and exit with
    status 120."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
