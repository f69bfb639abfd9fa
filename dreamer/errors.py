"""Errors that a user can cause and mend: one line each, no traceback at the command line."""

import contextlib
import difflib
import os
import sys
from collections.abc import Callable, Iterable
from typing import NoReturn, TextIO

INTERRUPTED = 130  # the exit status that shells expect after Ctrl-C


class UserError(Exception):
    """A mistake in what the user asked for: what was wrong, where, what is allowed, what to do.

    One line, whatever the values in it hold.
    """

    def __str__(self) -> str:
        return " ".join(super().__str__().split())


class EnvironmentFault(UserError):
    """An environment failed, or gave what its spaces do not allow: which, what, and where."""


def describe(error: BaseException) -> str:
    """Type and message of an exception in one line; the type alone where `str` of it fails, the
    message alone of a UserError."""
    if isinstance(error, UserError):
        return str(error)
    try:
        message = " ".join(str(error).split())
    except Exception:
        message = ""
    name = type(error).__name__
    return f"{name}: {message}" if message else name


def emit(line: str, stream: TextIO | None) -> None:
    """Prints a line as far as the stream takes it, which may be closed, full or know only ASCII."""
    if stream is None:
        return
    with contextlib.suppress(OSError, ValueError):  # ValueError: closed
        try:
            print(line, file=stream, flush=True)
        except UnicodeEncodeError:
            encoding = getattr(stream, "encoding", None) or "ascii"
            print(line.encode(encoding, "replace").decode(encoding), file=stream, flush=True)


def warn(line: str) -> None:
    """Prints a warning on standard error."""
    emit(f"warning: {line}", sys.stderr)


def nearest(name: str, choices: Iterable[str]) -> str:
    """Returns '; did you mean X?' for the closest of `choices`, or '' when none is close."""
    by_lower = {choice.lower(): choice for choice in choices}
    match = difflib.get_close_matches(str(name).lower(), by_lower, n=1, cutoff=0.5)
    return f"; did you mean {by_lower[match[0]]}?" if match else ""


def exit_on_user_error(main: Callable[[], int]) -> int:
    """Runs `main`; a UserError becomes one line on standard error and exit status 2, a Ctrl-C that
    `main` did not take for a wish the word and status 130."""
    try:
        return main()
    except KeyboardInterrupt:
        emit("interrupted", sys.stderr)
        return INTERRUPTED
    except UserError as error:
        emit(f"error: {error}", sys.stderr)
        return 2


def exit_at_once_when_interrupted(status: int) -> NoReturn:
    """Exits; after a Ctrl-C without waiting for threads that are writing a checkpoint."""
    if status == INTERRUPTED:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
