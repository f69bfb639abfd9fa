"""A save that fails does not end the training: it is tried again."""

import time
from collections.abc import Callable

from dreamer.run.checkpointer import Checkpointer, SaveError

FIRST, LONGEST = 30.0, 900.0  # seconds until a save that failed is tried again


class Saving:
    """Saves, and when that fails says so and tries again: after a while, which doubles.

    Args:
      checkpoints: where to.
      save: starts a save, with the score of an evaluation if there is one.
      say: shows a line.
      now: seconds.
      alone: whether this host saves when it wants to; else `overdue` says that it does.
    """

    def __init__(
        self,
        checkpoints: Checkpointer,
        save: Callable[[float | None], None],
        say: Callable[[str], None],
        now: Callable[[], float] = time.monotonic,
        alone: bool = True,
    ) -> None:
        self._checkpoints, self._save, self._say, self._now = checkpoints, save, say, now
        self._alone = alone
        self._wait = 0.0  # from the last failure to the next attempt; 0 when all is well
        self._again = 0.0  # when that is
        self._completed = checkpoints.completed  # before the last failure
        self._told = ""

    def __call__(self, score: float | None = None) -> None:
        """Saves, if that can be."""
        try:
            self._save(score)
        except SaveError as error:
            self._failed(error)

    def look(self) -> None:
        """Sees how the save in the background ended, if it has, and tries again in time."""
        if not self._checkpoints.busy:
            try:
                self._checkpoints.wait()
            except SaveError as error:
                self._failed(error)
        if self._wait and self._checkpoints.completed > self._completed:
            self._wait, self._told = 0.0, ""
            self._say("checkpoints can be saved again")
        elif self.overdue and self._alone:
            self()

    @property
    def overdue(self) -> bool:
        """Whether it is time to try again after a failure, and nothing is being tried."""
        return bool(self._wait) and not self._checkpoints.busy and self._now() >= self._again

    def _failed(self, error: SaveError) -> None:
        self._completed = self._checkpoints.completed
        self._wait = min(2 * self._wait, LONGEST) or FIRST
        self._again = self._now() + self._wait
        if str(error) != self._told:  # once, unless the reason is another
            self._told = str(error)
            self._say(f"warning: {error}; training goes on, and it is tried again now and then")
