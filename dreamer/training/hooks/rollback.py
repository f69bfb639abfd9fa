"""Rolls a run back to its last good checkpoint when many updates in a row were skipped.

Skipped updates leave the weights as they are, so the cause is in the replay, in the weights since
some update that was still finite, or chance. The run restarts from the newest checkpoint before the
first of them, with other random keys: actions, batches and noise differ. The number of rollbacks is
written into that checkpoint, and is part of the keys, so that a resumed run continues as the
uninterrupted one would.
"""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from dreamer.checkpoint import manager, storage
from dreamer.checkpoint.manager import Checkpointer, SaveError
from dreamer.config import Config
from dreamer.distributed import hosts
from dreamer.errors import UserError
from dreamer.training.callbacks import Callback, Run

COUNT = "rollbacks"  # in the meta of a checkpoint
ADVICE = (
    "look at rewards and observations, or try run.accept_changes=true with "
    "agent.compute_dtype=float32 or a smaller agent.optimizer.learning_rate"
)


class Rollback(Callback):
    """Rolls back after more than `run.max_skipped` skipped updates in a row."""

    def on_start(self, run: Run) -> None:
        # The checkpoint from which these updates came, where it is one that was rolled back to.
        self._tried = run.step if run.rollbacks else None

    def on_step(self, run: Run) -> None:
        reading = run.logging.reading
        if reading is None:
            return
        if not reading.in_a_row:
            run.checkpoints.manager.good = run.checkpoints.manager.latest_step()
        elif reading.in_a_row > run.config.run.max_skipped:
            newest = run.logging.read(wait=True)
            if newest.in_a_row >= reading.in_a_row:  # else one since then was not skipped
                self._roll_back(run, newest.in_a_row, reading.not_finite)

    def _roll_back(self, run: Run, in_a_row: int, not_finite: Sequence[str]) -> NoReturn:
        """Raises RolledBack, or an error with advice that ends the run."""
        settings, times, manager = run.config.run, run.rollbacks + 1, run.checkpoints.manager
        why = (
            f"{in_a_row:,} updates in a row were skipped, more than run.max_skipped="
            f"{settings.max_skipped}; not finite: {', '.join(not_finite)}"
        )
        with contextlib.suppress(SaveError):
            manager.wait()
        step = good(manager.directory, run.updates - in_a_row, self._tried)
        try:
            roll_back(manager, step, times, settings.max_rollbacks, skipped=run.logging.skipped)
        except (Exhausted, SaveError) as end:
            raise type(end)(f"{why}; {end}; {ADVICE}") from end
        run.console.warn(
            f"{why}; rolled back to step {step:,} with other random keys, {times} of "
            f"{settings.max_rollbacks} times"
        )
        raise RolledBack(run.path)


class RolledBack(Exception):
    """The run in this folder must restart from its newest checkpoint."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self.path = path


class Exhausted(UserError):
    """There is no checkpoint to roll back to, or too many rollbacks; on all hosts together."""


def count(directory: Path) -> int:
    """How often the run was rolled back until its newest checkpoint that can be read."""
    for step in reversed(manager.steps(directory)):
        with contextlib.suppress(UserError):  # a damaged one is reported where it is restored
            return int(_meta(directory, step).get(COUNT, 0))
    return 0


def rekeyed(config: Config, times: int) -> Config:
    """The configuration with a seed of its own after each rollback."""
    if not times:
        return config
    seed = np.random.SeedSequence((config.seed, times)).generate_state(1)[0]
    return config.model_copy(update={"seed": int(seed)})


def good(directory: Path, updates: int, tried: int | None = None) -> int | None:
    """The newest checkpoint after at most so many updates, which all hosts have; or None.

    Args:
      directory: of checkpoints.
      updates: how many were done before the first that was skipped.
      tried: the checkpoint from which these updates came, chosen only if there is no other.
    """
    found = []
    for step in manager.steps(directory):
        with contextlib.suppress(UserError):  # a damaged one is not good
            if _meta(directory, step)["learner"]["updates"] <= updates:
                found.append(step)
    shared = set.intersection(*map(set, hosts.gather(found)))
    return max(shared - {tried} or shared, default=None)


def roll_back(
    checkpoints: Checkpointer, step: int | None, times: int, most: int, **changes: Any
) -> None:
    """Makes a checkpoint the newest.

    Args:
      checkpoints: of the run.
      step: the checkpoint to roll back to, if there is one.
      times: number of rollbacks, this one included.
      most: rollbacks allowed.
      changes: other counters of the checkpoint.

    Raises:
      Exhausted: there is no checkpoint, or too many rollbacks.
      SaveError: the folder cannot be written to.
    """
    if step is None:
        raise Exhausted("there is no checkpoint from before them to roll back to")
    if times > most:
        raise Exhausted(f"the run was rolled back {times - 1} times, and run.max_rollbacks={most}")
    meta = _meta(checkpoints.directory, step) | changes | {COUNT: times}
    try:
        checkpoints.amend(step, meta)  # first: a run killed in between only rolls back again
        checkpoints.remove_newer(step)
    except SaveError as error:
        raise SaveError(f"the run cannot roll back: {error}") from error


def _meta(directory: Path, step: int) -> dict[str, Any]:
    return storage.read(directory / str(step)).meta
