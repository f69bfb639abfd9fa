"""Standard streams, signals and exit status of every command."""

import contextlib
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from dreamer.errors import INTERRUPTED, emit, exit_on_user_error
from dreamer.system.signals import StopRequest
from dreamer.system.streams import Forgiving, drop_unwritten, open_missing


def run(
    main: Callable[[], int], stop: StopRequest | None = None, announced: bool = True
) -> NoReturn:
    """Runs the `main` of a command and exits with its status. Before `StopRequest.begin` a signal
    ends it at once, or after incomplete files are removed; its output may be closed or full.

    Args:
      main: returns the exit status.
      stop: receives the signals; None is a new one.
      announced: prints a line before the slow imports, unless the arguments request a text.
    """
    open_missing()
    try:
        with stop or StopRequest(ends_process=True):
            if announced and not _silent(sys.argv[1:]):
                emit("dreamer: starting", sys.stdout)
            with (
                contextlib.redirect_stdout(Forgiving(sys.stdout)),
                contextlib.redirect_stderr(Forgiving(sys.stderr)),
            ):
                status = exit_on_user_error(main)
    finally:
        drop_unwritten()
    if status == INTERRUPTED:
        os._exit(status)  # does not wait for threads that write a checkpoint
    sys.exit(status)


def _silent(argv: list[str]) -> bool:
    """Whether the command prints nothing, or a text such as the help."""
    flags = {argument for argument in argv if argument.startswith("-") or argument == "help"}
    return "log.progress=none" in argv or bool(flags - {"-m", "--multirun"})
