"""Errors in one line: what a user can fix, and what libraries and the system raise.

DREAMER_TRACEBACK=1 prints the traceback before the line.
"""

import contextlib
import difflib
import errno
import os
import re
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TextIO

TRACEBACK = "DREAMER_TRACEBACK"
# Exit statuses: of unexpected errors, of what the user can fix, and of Ctrl-C as in shells.
UNEXPECTED, FIXABLE, INTERRUPTED = 1, 2, 130
FULL = (errno.ENOSPC, errno.EDQUOT)
REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)


class UserError(Exception):
    """An error that the user can fix: what is wrong, where, what is allowed, what to do.

    Always one line without control characters.
    """

    def __str__(self) -> str:
        return printable(" ".join(super().__str__().split()))


class Ended(KeyboardInterrupt):
    """A signal, by its number, ends a command, which first removes incomplete files."""


class EnvironmentFault(UserError):
    """An environment failed, or returned values outside of its spaces."""


def printable(text: str) -> str:
    """Text with control characters escaped, so that a terminal does not act on them."""
    return "".join(x if x.isprintable() else ascii(x)[1:-1] for x in text)


def describe(error: BaseException) -> str:
    """Type and message of an exception in one line; the message alone of a UserError."""
    if isinstance(error, UserError):
        return str(error)
    message = ""
    with contextlib.suppress(Exception):  # `str` of it may fail
        message = " ".join(str(error).split())
    name = type(error).__name__
    return f"{name}: {message}" if message else name


def emit(line: str, stream: TextIO | None, end: str = "\n", flush: bool = True) -> None:
    """Prints a line to a stream that may be closed, full or ASCII only; never raises."""
    if stream is not None:
        encoding = getattr(stream, "encoding", None) or "utf-8"
        encodable = line.encode(encoding, "replace").decode(encoding)
        with contextlib.suppress(OSError, ValueError):  # ValueError: closed
            print(encodable, end=end, file=stream, flush=flush)


def ended_by(number: int) -> str:
    """The message for the end by a signal."""
    return "interrupted" if number == signal.SIGINT else f"ended by {signal.Signals(number).name}"


def warn(line: str) -> None:
    """Prints a warning on standard error."""
    emit(f"warning: {line}", sys.stderr)


def nearest(name: str, choices: Iterable[str]) -> str:
    """Returns '; did you mean X?' for the closest of `choices`, or '' when none is close."""
    by_lower = {choice.lower(): choice for choice in choices}
    match = difflib.get_close_matches(str(name).lower(), by_lower, n=1, cutoff=0.5)
    return f"; did you mean {by_lower[match[0]]}?" if match else ""


def exit_on_user_error(main: Callable[[], int]) -> int:
    """Runs a command; an exception becomes one line on standard error and the exit status.

    Args:
      main: returns the exit status.

    Returns:
      Its status; 1 for an unexpected error, 2 for what the user can fix, 130 after a Ctrl-C that
      did not stop training.
    """
    with _cache_warnings_once():
        try:
            return main()
        except (Exception, KeyboardInterrupt, SystemExit) as error:
            if os.environ.get(TRACEBACK, "0") not in ("", "0"):
                emit("".join(traceback.format_exception(error)).rstrip(), sys.stderr)
            line, status = _explained(error)
            emit(line, sys.stderr)
            return status


def _explained(error: BaseException) -> tuple[str, int]:
    """The line for the exception that ended a command, and the exit status."""
    if isinstance(error, KeyboardInterrupt):
        number = error.args[0] if isinstance(error, Ended) else signal.SIGINT
        return ended_by(number), 128 + number
    if isinstance(error, UserError):
        return f"error: {error}", FIXABLE
    text = describe(error).partition(". (set JAX_PLATFORMS")[0]
    advice = _advice(error, text)
    if advice:
        return f"error: {advice.replace('{}', text)}", FIXABLE
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return f"error: {text}{place}; {TRACEBACK}=1 prints the traceback", UNEXPECTED


def _advice(error: BaseException, text: str) -> str:
    """Advice for a known failure of a library or the system, with {} for its text; else ''."""
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text:
        return (
            "not enough memory: {}; choose a smaller size=, replay.batch_size, "
            "replay.batch_length, agent.returns.imagination, replay.capacity or env.num_envs"
        )
    if "Unable to initialize backend" in text:
        platforms = os.environ.get("JAX_PLATFORMS")
        if platforms:
            return f"JAX_PLATFORMS={platforms}: {{}}; unset it, or write some of cpu, cuda, tpu"
        return "{}; set platform=auto, or pip install 'dreamer[cuda]' or 'dreamer[tpu]'"
    if number in FULL:
        return "{}; make room there, after which the same command resumes a run"
    if number in REFUSED:
        return "{}; give permission to write there, or choose another place"
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"{{}}; pip install {error.name.partition('.')[0]}"
    return ""


@contextlib.contextmanager
def _cache_warnings_once() -> Iterator[None]:
    """Replaces jax's warnings, one per program, about an unusable compilation cache by one line."""
    show, warned = warnings.showwarning, False

    def show_once(message: Any, *rest: Any, **options: Any) -> None:
        nonlocal warned
        found = re.match(
            r"Error (read|writ)ing persistent compilation cache entry for '.*?': (.*)",
            str(message),
            re.DOTALL,
        )
        if not found:
            show(message, *rest, **options)
        elif not warned:
            warned = True
            folder = sys.modules["jax"].config.jax_compilation_cache_dir
            action = "read from" if found[1] == "read" else "written to"
            why = " ".join(found[2].split())[:200]
            warn(
                f"compiled programs cannot be {action} {folder}: {why}; they are compiled again at "
                "every start; delete that folder or choose another by JAX_COMPILATION_CACHE_DIR"
            )

    with warnings.catch_warnings():
        warnings.showwarning = show_once
        yield
