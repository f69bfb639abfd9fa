"""Lines that a run prints above its display, and warnings on standard error."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from dreamer.config import Config
from dreamer.distributed import hosts
from dreamer.distributed.sync import SingleHost
from dreamer.errors import describe, warn
from dreamer.logs.progress import Progress


class Console:
    """Prints lines of one run. Only the first of several hosts prints; the leader of several runs
    prints for all of them, with the name of the run.

    Args:
      progress: the run's display.
      sync: synchronisation of the hosts.
      name: of the run, a prefix of its lines if there is a leader.
      leader: the console of the run on display.
    """

    def __init__(
        self,
        progress: Progress,
        sync: SingleHost,
        name: str = "",
        leader: "Console | None" = None,
    ) -> None:
        self.progress, self._sync, self._name, self._leader = progress, sync, name, leader
        self._warned: set[tuple[str, type]] = set()  # failures that were reported

    @classmethod
    def open(cls, config: Config, sync: SingleHost, leader: Any, stack: ExitStack) -> "Console":
        """The console of a run, with its display until the stack is closed; `leader` is the run on
        display, if it is another one."""
        leader = leader.console if leader else None
        mode = config.log.progress if sync.first else "none"
        progress = Progress(
            *(mode, config.run.steps, config.log.every_seconds),
            leader=leader.progress if leader else None,
        )
        console = cls(progress, sync, f"seed {config.seed}", leader)
        progress.__enter__()
        stack.callback(console.attempt, "the display fails", progress.__exit__)
        making = f"making environments and weights, seed {config.seed}"
        (leader or console).progress.print(making)
        return console

    def print(self, line: str) -> None:
        """Prints a line above the display; nothing if `log.progress` is none."""
        if not self._sync.first:
            self._sync.send([f"host {hosts.index()}: {line}"])
        elif self._leader:
            self._leader.print(f"{self._name}: {line}")
        else:
            self.attempt("the display fails", self.progress.print, line)

    def note(self, line: str) -> None:
        """Prints a line on standard error, whatever `log.progress` is."""
        if self._leader:
            self._leader.note(f"{self._name}: {line}")
        else:
            self.progress.note(f"host {hosts.index()}: {line}" if hosts.count() > 1 else line)

    def warn(self, line: str) -> None:
        """Prints a warning on standard error, see `note`."""
        self.note(f"warning: {line}")

    def attempt(self, failure: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Calls a function whose failure must not end the run, such as one that only displays. An
        exception becomes a warning, once per type, and the result is None."""
        try:
            return function(*arguments)
        except (Exception, SystemExit) as error:
            if (failure, type(error)) not in self._warned:
                self._warned.add((failure, type(error)))
                warn(f"{failure}: {describe(error)}")
            return None
