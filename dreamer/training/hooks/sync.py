"""Synchronises hosts after an iteration: requests, clocks, lines and episodes."""

from typing import TYPE_CHECKING

from dreamer.training.callbacks import Callback

if TYPE_CHECKING:
    from dreamer.training.trainer import Trainer


class HostSync(Callback):
    """Comes last: what hosts agree on holds from the next iteration on."""

    def on_step(self, run: "Trainer") -> None:
        self._barrier(run)

    def on_end(self, run: "Trainer") -> None:
        self._barrier(run, now=True)

    def _barrier(self, run: "Trainer", now: bool = False) -> None:
        for message in run.sync.barrier(run.updates, run.checkpoints.overdue, now):
            if len(message) == 1:  # a line; others are episodes
                run.console.print(*message)
            else:
                run.notify("on_episode", *message)
