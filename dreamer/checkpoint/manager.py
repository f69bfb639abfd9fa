"""The checkpoints of a run: written in the background, the newest and the best kept.

Layout: `DIRECTORY/STEP/`, see `storage`. Only a complete checkpoint has such a name: it is written
under a temporary name, and renamed again before it is deleted.

Orbax's CheckpointManager could only replace the thread and what is kept (async saves, max_to_keep,
best_fn). It cannot change the meta or score of a saved step, check files and fall back to an older
step, give each host its own folder, or keep the layout of a step, so it would add code, not remove.
"""

import contextlib
import itertools
import os
import re
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dreamer.checkpoint import arrays, folder, schema, storage
from dreamer.config.explain import first_line
from dreamer.errors import UserError, warn
from dreamer.system import files

DAMAGED, ASIDE = ".damaged", ".aside"  # suffixes of what is kept for the user to look at
_TEMPORARY = re.compile(r"[0-9]+((\.[0-9a-f]{16})?\.tmp|\.orbax-checkpoint-tmp.*)")


class SaveError(UserError):
    """A checkpoint could not be written: where and why."""


class Checkpointer:
    """Saves and restores the checkpoints of one run, the only one to write in their folder.

    Args:
        directory: folder of the checkpoints; created if missing.
        keep: number of newest checkpoints to keep, beside the one with the best score.

    Raises:
        UserError: the folder cannot be created or written to.
    """

    def __init__(self, directory: str | Path, keep: int = 2) -> None:
        self.directory = Path(directory).absolute()
        self._keep = keep
        self.completed = 0  # saves so far
        self.shared: int | None = None  # the newest that all hosts have, which is kept too
        self.good: int | None = None  # the one that the run would roll back to, which is kept too
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None  # of the thread
        make(self.directory)
        names = [str(step) for step in steps(self.directory)]
        files.refuse_links(self.directory, *names)
        _remove_temporary(self.directory)
        for name in names:
            files.remove_stale(self.directory / name)

    def save(
        self,
        step: int,
        state: Any,
        replay: dict[str, Any] | None,
        meta: dict[str, Any],
        score: float | None = None,
    ) -> None:
        """Starts to save a checkpoint of a new step, after the previous save has ended.

        Args:
            step: name of the checkpoint; the highest is the newest.
            state: pytree of jax and numpy arrays; may change once the call returns.
            replay: nested dict of numpy arrays that do not change until `wait` returns, or None.
            meta: JSON types; copied. Tuples are restored as lists and keys as strings.
            score: result of an evaluation, higher is better; not finite counts as none.

        Raises:
            SaveError: the previous save has failed. A failure of this one is raised by the next
                call.
        """
        self.wait()
        about = storage.document(state, meta, score)
        copy = jax.tree.map(lambda x: np.array(x), state)  # of numpy leaves too
        write = partial(self._write, step, copy, replay, about)
        self._thread = threading.Thread(target=write, name="checkpoint", daemon=True)
        self._thread.start()

    def amend(self, step: int, meta: dict[str, Any], score: float | None = None) -> None:
        """Replaces parts of the meta of a saved checkpoint, and adds a score; raises like
        `wait`."""
        self.wait()
        with self._explaining():
            storage.amend(self._path(step), meta, score)
        self.completed += 1

    def holds(self, step: int) -> bool:
        """Whether there is a checkpoint of a step; raises like `wait`."""
        with self._explaining():
            return step in steps(self.directory)

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is being written."""
        return self._thread is not None and self._thread.is_alive()

    def wait(self) -> None:
        """Waits until the checkpoint that is being written is complete.

        Raises:
            SaveError: it could not be written and is removed.
        """
        self.join()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def join(self) -> None:
        """Waits until nothing is written or removed any more, without raising its failure."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def remove_newer(self, step: int) -> None:
        """Removes the checkpoints newer than one; raises like `wait`."""
        self.wait()
        with self._explaining():
            self._remove([newer for newer in reversed(steps(self.directory)) if newer > step])

    def latest_step(self) -> int | None:
        """The newest checkpoint, or None."""
        return newest(self.directory)

    def restore(self, step: int, pattern: Any) -> tuple[Any, dict[str, Any] | None, dict[str, Any]]:
        """Restores (state, replay, meta), see `storage.restore`."""
        self.wait()
        return storage.restore(self._path(step), pattern)

    def set_aside(self, step: int, why: str, then: str, suffix: str = DAMAGED) -> None:
        """Renames a checkpoint, and warns why and what happens next; raises like `wait`."""
        names = (f"{step}{suffix}{number or ''}" for number in itertools.count())
        free = next(name for name in names if not os.path.lexists(self.directory / name))
        with self._explaining():
            self._path(step).rename(self.directory / free)
        warn(f"{why}; it is now named {free}, and {then}")

    def _path(self, step: int) -> Path:
        return self.directory / str(step)

    def _remove(self, removed: list[int]) -> None:
        for step in removed:
            self._path(step).rename(self.directory / f"{step}{files.unguessable()}")
        _remove_temporary(self.directory)

    @contextlib.contextmanager
    def _explaining(self) -> Iterator[None]:
        """Turns errors of the file system into a SaveError and removes incomplete checkpoints."""
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            with contextlib.suppress(OSError):
                _remove_temporary(self.directory)
            raise SaveError(
                f"cannot save a checkpoint in {self.directory}: {reason(error)}; "
                "make room there or choose another folder with checkpoint.dir"
            ) from error

    # ------------------------------------------------------------------------ in the background

    def _write(
        self, step: int, state: Any, replay: dict[str, Any] | None, about: schema.Document
    ) -> None:
        temporary = self.directory / f"{step}{files.unguessable()}"
        try:
            # Until the other writes of a failed save have ended.
            with arrays.process_settings(), self._explaining():
                temporary.mkdir()
                storage.write(temporary, state, replay, about)
                temporary.rename(self._path(step))
                files.sync(self.directory)
            self.completed += 1
            self._remove_old()
        except SaveError as error:
            self._error = SaveError(str(error))  # without a traceback, which holds the arrays
        except Exception as error:
            self._error = error

    def _remove_old(self) -> None:
        """Removes old checkpoints; those that cannot be removed now are tried again later."""
        with contextlib.suppress(OSError):
            found = steps(self.directory)
            kept = {*found[-self._keep :], best(self.directory), self.shared, self.good}
            self._remove([step for step in found if step not in kept])


def steps(directory: Path) -> list[int]:
    """The checkpoints in a folder, oldest first."""
    found = (files.number(path.name) for path in directory.glob("*"))
    return sorted(step for step in found if step is not None)


def newest(directory: Path) -> int | None:
    """The newest checkpoint in a folder, or None."""
    return max(steps(directory), default=None)


def best(directory: Path) -> int | None:
    """The checkpoint with the highest score, the newest of equal ones; None if none has a score."""
    scored = []
    for step in steps(directory):
        with contextlib.suppress(UserError):  # damaged, which is reported where it is restored
            score = storage.read(directory / str(step)).score
            if score is not None:
                scored.append((score, step))
    return max(scored)[1] if scored else None


def make(directory: Path) -> None:
    """Creates a folder of checkpoints.

    Raises:
        UserError: it cannot be created or written to.
    """
    with folder.writing("checkpoint.dir", directory):
        directory.mkdir(parents=True, exist_ok=True)
        files.probe(directory)


def reason(error: Exception) -> str:
    """The reason of the operating system; else the first words of the library that writes."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    code = re.search(r"os_error_code='(\d+)'", str(error))  # in the form of tensorstore
    return os.strerror(int(code[1])) if code else first_line(error)[:100]


def _remove_temporary(directory: Path) -> None:
    """Removes incomplete checkpoints; repeatedly, for threads of a failed save still write."""
    for _ in range(20):
        found = [path for path in directory.glob("[0-9]*.*") if _TEMPORARY.fullmatch(path.name)]
        for path in found:
            files.remove(path)
        if not found:
            return
        time.sleep(0.05)
