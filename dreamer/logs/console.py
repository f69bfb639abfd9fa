"""The lines of a run: above its display, and warnings on standard error."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from dreamer.config import Config
from dreamer.distributed import hosts
from dreamer.distributed.sync import SingleHost
from dreamer.errors import describe, warn
from dreamer.logs.progress import Progress


class Console:
    """Prints lines of one run, and has its display until the stack is closed. Only the first of
    several hosts prints; the leader of several runs prints for all of them, with the name of the
    run.

    Args:
      config: of the run.
      sync: synchronisation of the hosts.
      leader: the console of the run on display, if it is another one.
      stack: closes the display.
    """

    def __init__(
        self, config: Config, sync: SingleHost, leader: "Console | None", stack: ExitStack
    ) -> None:
        self._sync, self._leader, self._name = sync, leader, f"seed {config.seed}"
        self._warned: set[tuple[str, type]] = set()  # failures that were reported
        self.progress: Progress = Progress(
            config.log.progress if sync.first else "none",
            *(config.run.steps, config.log.every_seconds),
            leader=leader.progress if leader else None,
        )
        self.progress.__enter__()
        stack.callback(self.attempt, "the display fails", self.progress.__exit__)
        making = f"making environments and weights, seed {config.seed}"
        (leader or self).progress.print(making)

    def print(self, line: str) -> None:
        """Prints a line above the display; nothing if `log.progress` is none."""
        if not self._sync.first:
            self._sync.to_first([[f"host {hosts.index()}: {line}"]])
        elif self._leader:
            self._leader.print(f"{self._name}: {line}")
        else:
            self.attempt("the display fails", self.progress.print, line)

    def note(self, line: str) -> None:
        """Prints a line on standard error, with any `log.progress`."""
        if self._leader:
            self._leader.note(f"{self._name}: {line}")
        else:
            self.progress.note(f"host {hosts.index()}: {line}" if hosts.count() > 1 else line)

    def warn(self, line: str) -> None:
        """Prints a warning on standard error, see `note`."""
        self.note(f"warning: {line}")

    def attempt(self, failure: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Calls a function whose failure must not end the run, such as one of the display. Returns
        None if it fails, and warns once per type of exception."""
        try:
            return function(*arguments)
        except (Exception, SystemExit) as error:
            if (failure, type(error)) not in self._warned:
                self._warned.add((failure, type(error)))
                warn(f"{failure}: {describe(error)}")
            return None
