"""Going back to the last good checkpoint, when update after update had to be skipped.

Skipped updates leave the weights as they are, so what is wrong is in the replay, in the weights
since some update that was still finite, or in bad luck. The run begins anew from the newest
checkpoint of before the first of them, with other random keys: it acts, samples and draws noise
otherwise. How often it went back is written into that checkpoint, and is part of the keys, so that
a resumed run goes on as the uninterrupted one would.
"""

import contextlib
from pathlib import Path
from typing import Any

import numpy as np

from dreamer import parallel
from dreamer.config import Config
from dreamer.errors import UserError
from dreamer.run import checkpoint, checkpointer
from dreamer.run.checkpointer import Checkpointer, SaveError

COUNT = "rollbacks"  # in the meta of a checkpoint
ADVICE = (
    "look at rewards and observations, or try run.accept_changes=true with "
    "agent.compute_dtype=float32 or a smaller agent.optimizer.learning_rate"
)


class RolledBack(Exception):
    """The run in this folder must begin anew from its newest checkpoint."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self.path = path


class Exhausted(UserError):
    """There is nothing to go back to, or it was done too often; on all hosts together."""


def count(directory: Path) -> int:
    """How often the run went back until its newest checkpoint that can be read."""
    for step in reversed(checkpointer.steps(directory)):
        with contextlib.suppress(UserError):  # it is damaged, which is told where all of it is read
            return int(_meta(directory, step).get(COUNT, 0))
    return 0


def rekeyed(config: Config, times: int) -> Config:
    """The configuration with a seed of its own after each time that the run went back."""
    if not times:
        return config
    seed = np.random.SeedSequence((config.seed, times)).generate_state(1)[0]
    return config.model_copy(update={"seed": int(seed)})


def good(directory: Path, updates: int, tried: int | None = None) -> int | None:
    """The newest checkpoint after at most so many updates, which all hosts have; or None.

    Args:
      directory: of checkpoints.
      updates: how many were done before the first that was skipped.
      tried: a checkpoint from which the run came to this, which is chosen only if there is no
        older one.
    """
    found = []
    for step in checkpointer.steps(directory):
        with contextlib.suppress(UserError):  # a damaged one is not good
            if _meta(directory, step)["learner"]["updates"] <= updates:
                found.append(step)
    shared = set.intersection(*map(set, parallel.gather(found)))
    return max(shared - {tried} or shared, default=None)


def go_back(
    checkpoints: Checkpointer, step: int | None, times: int, most: int, **changes: Any
) -> None:
    """Makes a checkpoint the newest.

    Args:
      checkpoints: of the run.
      step: the checkpoint to go back to, if there is one.
      times: how often the run went back, this time included.
      most: how often it may.
      changes: other counters of the checkpoint.

    Raises:
      Exhausted: there is no checkpoint, or it would be once too often.
      SaveError: the folder cannot be written to.
    """
    if step is None:
        raise Exhausted("there is no checkpoint of before them to go back to")
    if times > most:
        raise Exhausted(f"the run went back {times - 1} times, and run.max_rollbacks={most}")
    meta = _meta(checkpoints.directory, step) | changes | {COUNT: times}
    try:
        checkpoints.amend(step, meta)  # first: a run killed in between only goes back again
        checkpoints.remove_newer(step)
    except SaveError as error:
        raise SaveError(f"the run cannot go back: {error}") from error


def _meta(directory: Path, step: int) -> dict[str, Any]:
    return checkpoint.read(directory / str(step)).meta
