"""Checkpoints that several hosts have in common: each saves its own, all at the same step."""

import contextlib
from typing import Any

import jax
import numpy as np

from dreamer.checkpoint import manager, storage
from dreamer.checkpoint.manager import Checkpointer
from dreamer.checkpoint.storage import Damaged
from dreamer.distributed import hosts, mesh
from dreamer.errors import UserError

Restored = tuple[Any, dict[str, Any] | None, dict[str, Any]]


def restore(checkpoints: Checkpointer, pattern: Any, fresh: bool) -> Restored | None:
    """Restores the newest checkpoint that is whole, on every host; None where there is none yet.

    Args:
      checkpoints: of this host.
      pattern: as of `storage.restore`.
      fresh: whether this host's folder is new.

    Raises:
      UserError: it was saved by another number of hosts, hosts have none in common, or as
        `Checkpointer.restore_newest`.
    """
    if hosts.count() > 1:
        on_host = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), pattern)
        return _agree(checkpoints, on_host, _survey(checkpoints, fresh))
    if checkpoints.latest_step() is None:
        return None
    restored = checkpoints.restore_newest(pattern)
    _refuse_others({restored[2]["hosts"]})
    return restored


def _agree(checkpoints: Checkpointer, pattern: Any, found: list[dict[str, Any]]) -> Restored | None:
    """Restores what all hosts have, of what `_survey` found."""
    shared = set.intersection(*(set(one["steps"]) for one in found))
    lost: dict[int, str] = {}  # of this host, by step
    told = []
    for step in sorted(shared, reverse=True):
        restored: Restored | None = None
        try:
            restored = checkpoints.restore(step, pattern)
        except Damaged as error:
            lost[step] = error.what
        damages = [text for text in hosts.exchange(lost.get(step, "")) if text]
        if restored is not None and not damages:
            for number, what in lost.items():
                checkpoints.set_aside(number, what, f"training goes back to step {step:,}")
            checkpoints.remove_newer(step)  # which some other host has not, or not whole
            return restored
        told += damages
    if told or not _may_start_anew(found):
        what = "; ".join(told) or "the hosts have no checkpoint of the same step"
        raise UserError(
            f"{what}, and there is no other that all hosts have; put back copies of "
            f"{checkpoints.directory} and of those of the other hosts, or start over with another "
            "run.dir"
        )
    for step in manager.steps(checkpoints.directory):
        why = f"{checkpoints.directory / str(step)} is of this host alone"
        checkpoints.set_aside(step, why, "the run starts anew", manager.ASIDE)
    return None


def _survey(checkpoints: Checkpointer, fresh: bool) -> list[dict[str, Any]]:
    """What every host has."""
    newest = checkpoints.latest_step()
    saved_by = None
    if newest is not None:
        with contextlib.suppress(Damaged):  # which is seen again when it is restored
            saved_by = storage.read(checkpoints.directory / str(newest)).meta["hosts"]
    own = {"steps": manager.steps(checkpoints.directory), "hosts": saved_by, "fresh": fresh}
    found = hosts.gather(own)
    _refuse_others({one["hosts"] for one in found} - {None})
    return found


def _refuse_others(saved: set[int]) -> None:
    now = hosts.count()
    for number in saved - {now}:
        raise UserError(
            f"this run was saved by {number} hosts and cannot go on with {now}, for each has its "
            f"own share of replay and environments; start it on {number}, or another run.dir with "
            "its weights by run.init_from"
        )


def _may_start_anew(found: list[dict[str, Any]]) -> bool:
    """Whether nothing was saved, or the run had begun everywhere and ended at its first save, which
    some host does not have. After more of them it is a host that lost its own."""
    saves = [len(one["steps"]) for one in found]
    begun = not any(one["fresh"] for one in found)
    return max(saves) == 0 or (begun and max(saves) == 1 and min(saves) == 0)


def compare(checkpoints: Checkpointer, params: Any, step: int) -> None:
    """Before a save on several hosts: sees that they have learned the same, and which checkpoint
    they have in common, that must be kept.

    Raises:
      UserError: their parameters differ.
    """
    if hosts.count() == 1:
        return
    checkpoints.join()  # what is yet removed after the save before cannot be in common
    own = {
        "params": mesh.fingerprint(params),
        "steps": manager.steps(checkpoints.directory),
    }
    found = hosts.gather(own)
    for number, one in enumerate(found):
        if one["params"] != found[0]["params"]:
            raise UserError(
                f"host {number} and host 0 have other parameters at step {step:,}, which must be "
                "the same; look for a faulty device or other versions of the software there; the "
                "same command resumes the save before"
            )
    shared = set.intersection(*(set(one["steps"]) for one in found))
    checkpoints.shared = max(shared, default=None)
