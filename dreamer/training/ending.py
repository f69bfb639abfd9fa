"""The one place where a run is saved whatever ends it."""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from dreamer.errors import UserError, describe, emit
from dreamer.training.hooks.rollback import RolledBack

if TYPE_CHECKING:
    from dreamer.training.trainer import Trainer


@contextlib.contextmanager
def saved_first(runs: Sequence["Trainer"]) -> Iterator[None]:
    """Whatever ends the training inside, every run is saved first, once, as far as it learned.

    A second Ctrl-C alone ends it at once. What ended it is raised, with what is saved.

    Args:
      runs: to save; more may come while they train.

    Raises:
      UserError: what was raised inside; or `sys.exit` was called, by no callback.
    """
    try:
        yield
    except RolledBack as back:
        for run in runs:
            if run.path != back.path:
                run.console.print(run.checkpoints.keep(back))
        raise
    except BaseException as cause:
        failed = any(run.callbacks.failed for run in runs)
        again = any(run.stop.requested for run in runs)
        if isinstance(cause, KeyboardInterrupt) and again:
            raise
        for run in runs:
            run.callbacks.silence()
        kept = "; ".join([line for run in runs if (line := run.checkpoints.keep(cause))])
        saved = f"; {kept}, and the same command resumes" if kept else ""
        if isinstance(cause, UserError):
            cause.args = (f"{cause}{saved}",)
        elif isinstance(cause, SystemExit) and not failed:
            called = f"sys.exit({cause.code!r}) was called while the run trained, by no callback"
            raise UserError(f"{called}{saved}") from cause
        else:
            emit(f"training ended with {describe(cause)}{saved}", sys.stderr)
        raise
