"""Errors in one line: what a user can fix, and what libraries and the system raise.

DREAMER_TRACEBACK=1 shows the whole trace before the line.
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
# Exit statuses: of what is not expected, of what the user can fix, and that of shells after Ctrl-C.
UNEXPECTED, FIXABLE, INTERRUPTED = 1, 2, 130
FULL = (errno.ENOSPC, errno.EDQUOT)
REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)


class UserError(Exception):
    """A mistake of the user: what is wrong, where, what is allowed, what to do.

    One line, whatever the values in it hold.
    """

    def __str__(self) -> str:
        return printable(" ".join(super().__str__().split()))


class Ended(KeyboardInterrupt):
    """A signal ends a command, which first removes what is half-made."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


class EnvironmentFault(UserError):
    """An environment failed, or gave what its spaces do not allow: which, what, and where."""


def printable(text: str) -> str:
    """Text of others without what a terminal would act on, which is written as its code."""
    return "".join(x if x.isprintable() else ascii(x)[1:-1] for x in text)


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


def emit(line: str, stream: TextIO | None, end: str = "\n", flush: bool = True) -> None:
    """Prints a line as far as the stream takes it, which may be closed, full or know only ASCII."""
    if stream is None:
        return
    with contextlib.suppress(OSError, ValueError):  # ValueError: closed
        try:
            print(line, end=end, file=stream, flush=flush)
        except UnicodeEncodeError:
            encoding = getattr(stream, "encoding", None) or "ascii"
            line = line.encode(encoding, "replace").decode(encoding)
            print(line, end=end, file=stream, flush=flush)


def ended_by(number: int) -> str:
    """The word for the end by a signal."""
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
    """Runs a command. What ends it early becomes one line on standard error and the exit status.

    Args:
      main: gives the exit status.

    Returns:
      Its status; 1 for what is not expected, 2 for what the user can fix, 130 after a Ctrl-C that
      did not stop training.
    """
    with _cache_warned_of_once():
        try:
            status = main()
        except (Exception, KeyboardInterrupt, SystemExit) as error:
            if os.environ.get(TRACEBACK, "0") not in ("", "0"):
                emit("".join(traceback.format_exception(error)).rstrip(), sys.stderr)
            line, status = _explained(error)
            emit(line, sys.stderr)
    return status


def _explained(error: BaseException) -> tuple[str, int]:
    """The line for what ended a command, and the exit status."""
    if isinstance(error, KeyboardInterrupt):
        number = getattr(error, "number", signal.SIGINT)
        return ended_by(number), 128 + number
    if isinstance(error, UserError):
        return f"error: {error}", FIXABLE
    text = describe(error).partition(". (set JAX_PLATFORMS")[0]
    advice = _advice(error, text)
    if advice:
        return f"error: {advice.replace('{}', text)}", FIXABLE
    return f"error: {text}{_place(error)}; {TRACEBACK}=1 shows the whole trace", UNEXPECTED


def _advice(error: BaseException, text: str) -> str:
    """What a known failure of a library or the system means, with {} for its text; else ''."""
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
    if isinstance(error, OSError) and error.errno in FULL:
        return "{}; make room there, after which the same command resumes a run"
    if isinstance(error, OSError) and error.errno in REFUSED:
        return "{}; give permission to write there, or choose another place"
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"{{}}; pip install {error.name.partition('.')[0]}"
    return ""


def _place(error: BaseException) -> str:
    """Where an exception was raised."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    return f" ({trace.tb_frame.f_code.co_filename}:{trace.tb_lineno})" if trace else ""


@contextlib.contextmanager
def _cache_warned_of_once() -> Iterator[None]:
    """One line of ours for what jax warns of at every program that it cannot read from its cache of
    compiled programs, or write there."""
    with warnings.catch_warnings():
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
                what = "cannot be read from" if found[1] == "read" else "cannot be kept in"
                why = " ".join(found[2].split())[:200]
                warn(
                    f"compiled programs {what} {folder}: {why}; they are compiled again at every "
                    "start; delete that folder or choose another by JAX_COMPILATION_CACHE_DIR"
                )

        warnings.showwarning = show_once
        yield
