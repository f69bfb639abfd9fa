"""A save that fails does not end the training: it is tried again."""

import time
from collections.abc import Callable

from dreamer.checkpoint.manager import Checkpointer, SaveError

FIRST, LONGEST = 30.0, 900.0  # seconds until a save that failed is tried again


class Retry:
    """Saves; where that fails, prints why and tries again after a while, which doubles.

    Args:
      checkpoints: where to.
      save: starts a save, with the score of an evaluation if there is one.
      note: prints a line.
      now: seconds.
    """

    def __init__(
        self,
        checkpoints: Checkpointer,
        save: Callable[[float | None], None],
        note: Callable[[str], None],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._checkpoints, self._save, self._note, self._now = checkpoints, save, note, now
        self._wait = 0.0  # from the last failure to the next attempt; 0 when all is well
        self._again = 0.0  # when that is
        self._completed = checkpoints.completed  # before the last failure
        self._noted = ""

    def __call__(self, score: float | None = None) -> None:
        """Saves, if that can be."""
        try:
            self._save(score)
        except SaveError as error:
            self._failed(error)

    def look(self, alone: bool = True) -> None:
        """Notes how the save in the background ended, if it has, and tries again in time.

        Args:
          alone: whether this host may save by itself; else `overdue` is for all hosts to see.
        """
        if not self._checkpoints.busy:
            try:
                self._checkpoints.wait()
            except SaveError as error:
                self._failed(error)
        if self._wait and self._checkpoints.completed > self._completed:
            self._wait, self._noted = 0.0, ""
            self._note("checkpoints can be saved again")
        elif self.overdue and alone:
            self()

    @property
    def overdue(self) -> bool:
        """Whether it is time to try again after a failure, and nothing is being tried."""
        return bool(self._wait) and not self._checkpoints.busy and self._now() >= self._again

    def _failed(self, error: SaveError) -> None:
        self._completed = self._checkpoints.completed
        self._wait = min(2 * self._wait, LONGEST) or FIRST
        self._again = self._now() + self._wait
        if str(error) != self._noted:  # once, unless the reason is another
            self._noted = str(error)
            self._note(f"warning: {error}; training continues, and it is tried again now and then")
