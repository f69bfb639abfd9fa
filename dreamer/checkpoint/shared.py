"""Checkpoints that all hosts have: each host saves its own, all at the same steps."""

import contextlib
from typing import Any

import jax
import numpy as np

from dreamer.checkpoint import manager, storage
from dreamer.checkpoint.integrity import Damaged
from dreamer.checkpoint.manager import Checkpointer
from dreamer.distributed import hosts, mesh
from dreamer.errors import UserError

Restored = tuple[Any, dict[str, Any] | None, dict[str, Any]]


def restore(checkpoints: Checkpointer, pattern: Any, fresh: bool) -> Restored | None:
    """Restores the newest checkpoint that is undamaged on every host; None if there is none yet.

    Newer ones that are damaged are renamed, with a warning for each.

    Args:
      checkpoints: of this host.
      pattern: as in `storage.restore`.
      fresh: whether this host's folder is new.

    Raises:
      UserError: it was saved by another number of hosts, it does not fit or cannot be read, or
        hosts have none in common that is undamaged, which leaves all as they are.
    """
    if hosts.count() > 1:
        pattern = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), pattern)
    found = _survey(checkpoints, fresh)
    own: dict[int, str] = {}  # damages on this host, by step
    damages = []  # on all hosts
    for step in sorted(set.intersection(*(set(one["steps"]) for one in found)), reverse=True):
        restored: Restored | None = None
        try:
            restored = checkpoints.restore(step, pattern)
        except Damaged as error:
            own[step] = error.what
        here = [text for text in hosts.exchange(own.get(step, "")) if text]
        if restored is not None and not here:
            for number, what in own.items():
                checkpoints.set_aside(number, what, f"training rolls back to step {step:,}")
            checkpoints.remove_newer(step)  # missing or damaged on some other host
            return restored
        damages += here
    if damages or not _may_start_over(found):
        what = "; ".join(damages) or "the hosts have no checkpoint of the same step"
        several = hosts.count() > 1
        raise UserError(
            f"{what}, and {checkpoints.directory} has no other one"
            f"{' that all hosts have' if several else ''}; put back "
            f"{'copies on all hosts' if several else 'a copy'}, or start over with another run.dir"
        )
    for step in manager.steps(checkpoints.directory):
        why = f"{checkpoints.directory / str(step)} is on this host alone"
        checkpoints.set_aside(step, why, "the run starts over", manager.ASIDE)
    return None


def _survey(checkpoints: Checkpointer, fresh: bool) -> list[dict[str, Any]]:
    """The checkpoints of every host."""
    steps, saved_by = manager.steps(checkpoints.directory), None
    for step in reversed(steps):
        with contextlib.suppress(Damaged):  # reported when it is restored
            saved_by = storage.read(checkpoints.directory / str(step)).meta["hosts"]
            break
    own = {"steps": steps, "hosts": saved_by, "fresh": fresh}
    found = hosts.gather(own)
    now = hosts.count()
    for number in {one["hosts"] for one in found} - {None, now}:
        raise UserError(
            f"this run was saved by {number} hosts and cannot resume with {now}, for each host has "
            f"its own shard of replay and environments; start it on {number}, or another run.dir "
            "with its weights by run.init_from"
        )
    return found


def _may_start_over(found: list[dict[str, Any]]) -> bool:
    """Whether nothing was saved, or the run ended at its first save, which some host lacks. With
    more saves, a host has lost its own."""
    saves = [len(one["steps"]) for one in found]
    started = not any(one["fresh"] for one in found)
    return max(saves) == 0 or (started and max(saves) == 1 and min(saves) == 0)


def compare(checkpoints: Checkpointer, params: Any, step: int) -> None:
    """Before a save on several hosts: compares their parameters, and marks the newest checkpoint
    that all have, which must be kept.

    Raises:
      UserError: their parameters differ.
    """
    if hosts.count() == 1:
        return
    checkpoints.join()  # what the last save still removes is not in common
    steps = manager.steps(checkpoints.directory)
    found = hosts.gather({"params": mesh.fingerprint(params), "steps": steps})
    for number, one in enumerate(found):
        if one["params"] != found[0]["params"]:
            raise UserError(
                f"host {number} and host 0 have other parameters at step {step:,}, which must be "
                "the same; look for a faulty device or other versions of the software there; the "
                "same command resumes from the last checkpoint"
            )
    checkpoints.shared = max(set.intersection(*(set(one["steps"]) for one in found)), default=None)
