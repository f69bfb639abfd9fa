"""Failed saves: the training continues, and the save is repeated after a while."""

import time
from collections.abc import Callable

from dreamer.checkpoint.manager import Checkpointer, SaveError

FIRST, LONGEST = 30.0, 900.0  # seconds between a failed save and the next attempt


class Retry:
    """Saves; where that fails, prints why and saves again after a delay, which doubles.

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
        self._delay = 0.0  # between the last failure and the next attempt; 0 without a failure
        self._next = 0.0  # time of that attempt
        self._completed = 0  # saves before the last failure
        self._noted = ""

    def __call__(self, score: float | None = None) -> None:
        """Saves, if it can."""
        try:
            self._save(score)
        except SaveError as error:
            self._failed(error)

    def poll(self, alone: bool = True) -> None:
        """Notes how a save in the background ended, and repeats one that failed when it is due.

        Args:
          alone: whether this host may save by itself; else `overdue` is what all hosts agree on.
        """
        if not self._checkpoints.busy:
            try:
                self._checkpoints.wait()
            except SaveError as error:
                self._failed(error)
        if self._delay and self._checkpoints.completed > self._completed:
            self._delay, self._noted = 0.0, ""
            self._note("checkpoints can be saved again")
        elif self.overdue and alone:
            self()

    @property
    def overdue(self) -> bool:
        """Whether it is time to repeat a failed save, and none is under way."""
        return bool(self._delay) and not self._checkpoints.busy and self._now() >= self._next

    def _failed(self, error: SaveError) -> None:
        self._completed = self._checkpoints.completed
        self._delay = min(2 * self._delay, LONGEST) or FIRST
        self._next = self._now() + self._delay
        if str(error) != self._noted:  # once per reason
            self._noted = str(error)
            self._note(f"warning: {error}; training continues, and the save is tried again")
