"""The checkpoints of a run: written in the background, the newest and the best kept.

Layout: `DIRECTORY/STEP/`, see `checkpoint`. A folder has this name only while all of it is there:
it is written under a temporary name, and renamed again before it is deleted.
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

from dreamer.checkpoint import storage
from dreamer.checkpoint.schema import Document
from dreamer.checkpoint.storage import Damaged
from dreamer.config.explain import first_line
from dreamer.errors import UserError, warn
from dreamer.system import files

DAMAGED, ASIDE = ".damaged", ".aside"  # of what is kept for the user, and is no checkpoint


class SaveError(UserError):
    """A checkpoint could not be written: where and why."""


class Checkpointer:
    """Saves and restores the checkpoints of one run, which alone may write in their folder.

    Args:
        directory: folder of the checkpoints; made if missing.
        keep: newest checkpoints to keep, beside the one with the best score.

    Raises:
        UserError: the folder cannot be made or written to.
    """

    def __init__(self, directory: str | Path, keep: int = 2) -> None:
        self.directory = Path(directory).absolute()
        self._keep = keep
        self.completed = 0  # saves so far
        self.shared: int | None = None  # the newest that all hosts have, which is kept too
        self.good: int | None = None  # the one that the run would go back to, likewise
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None  # that ended it
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
        """Saves a checkpoint of a new step, after waiting for the one before.

        Args:
            step: names the checkpoint; the highest is the newest.
            state: pytree of jax and numpy arrays; may change once the call returns.
            replay: nested dict of numpy arrays that do not change until `wait` returns, or None.
            meta: what JSON can hold; copied. Tuples come back as lists and keys as strings.
            score: result of an evaluation, higher is better; not finite counts as none.

        Raises:
            SaveError: the one before could not be written. Of this one the next call tells.
        """
        self.wait()
        about = storage.document(state, meta, score)
        copy = jax.tree.map(lambda x: np.array(x), state)  # leaves of numpy too
        write = partial(self._write, step, copy, replay, about)
        self._thread = threading.Thread(target=write, name="checkpoint", daemon=True)
        self._thread.start()

    def amend(self, step: int, meta: dict[str, Any], score: float | None = None) -> None:
        """Replaces the meta of a saved checkpoint, and adds a score; raises like `wait`."""
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
        """Returns when the checkpoint being written is complete.

        Raises:
            SaveError: it could not be written and is removed.
        """
        self.join()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def join(self) -> None:
        """Returns when nothing is written or removed any more; `wait` tells how that went."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def close(self) -> None:
        """Waits; raises like `wait`."""
        self.wait()

    def remove_newer(self, step: int) -> None:
        """Removes the checkpoints newer than one; raises like `wait`."""
        self.wait()
        with self._explaining():
            for newer in reversed(steps(self.directory)):
                if newer > step:
                    self._path(newer).rename(self._temporary(newer))
            _remove_temporary(self.directory)

    def latest_step(self) -> int | None:
        """Returns the newest checkpoint, or None."""
        return newest(self.directory)

    def best_step(self) -> int | None:
        """Returns the checkpoint with the highest score, of equals the newest; or None."""
        return best(self.directory)

    def restore(self, step: int, pattern: Any) -> tuple[Any, dict[str, Any] | None, dict[str, Any]]:
        """Restores (state, replay, meta), see `storage.restore`."""
        self.wait()
        return storage.restore(self._path(step), pattern)

    def restore_newest(self, pattern: Any) -> tuple[Any, dict[str, Any] | None, dict[str, Any]]:
        """Restores the newest that is whole, as `storage.restore`.

        Newer ones, which are damaged, are renamed, and a line of standard error tells of each.

        Raises:
            UserError: there is none, all are damaged, which leaves them as they are, or the newest
                that is whole does not fit or cannot be read.
        """
        self.wait()
        damaged: dict[int, Damaged] = {}
        for step in reversed(steps(self.directory)):
            try:
                restored = self.restore(step, pattern)
            except Damaged as error:
                damaged[step] = error
                continue
            for number, found in damaged.items():
                self.set_aside(number, found.what, f"training goes back to step {step:,}")
            return restored
        what = "; ".join([each.what for each in damaged.values()]) or "there is no checkpoint"
        raise UserError(
            f"{what}, and no other is in {self.directory}; put back a copy of one, or start over "
            "with another run.dir"
        )

    def _path(self, step: int) -> Path:
        return self.directory / str(step)

    def _temporary(self, step: int) -> Path:
        return self.directory / f"{step}{files.unguessable()}"

    def set_aside(self, step: int, why: str, then: str, suffix: str = DAMAGED) -> None:
        """Renames a checkpoint, and warns why and of what comes then; raises like `wait`."""
        names = (f"{step}{suffix}{number or ''}" for number in itertools.count())
        free = next(name for name in names if not os.path.lexists(self.directory / name))
        with self._explaining():
            self._path(step).rename(self.directory / free)
        warn(f"{why}; it is now named {free}, and {then}")

    # ------------------------------------------------------------------------ in the background

    def _write(self, step: int, state: Any, replay: dict[str, Any] | None, about: Document) -> None:
        temporary = self._temporary(step)
        try:
            with self._explaining():
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
        """What cannot be removed now is tried again after the next save."""
        with contextlib.suppress(OSError):
            there = steps(self.directory)
            kept = {*there[-self._keep :], best(self.directory), self.shared, self.good}
            for step in there:
                if step not in kept:
                    self._path(step).rename(self._temporary(step))
            _remove_temporary(self.directory)

    @contextlib.contextmanager
    def _explaining(self) -> Iterator[None]:
        """Turns what the file system refused into a SaveError and removes what is half-written."""
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            with contextlib.suppress(OSError):
                _remove_temporary(self.directory)
            raise SaveError(
                f"cannot save a checkpoint in {self.directory}: {reason(error)}; "
                "make room there or choose another folder with checkpoint.dir"
            ) from error


def steps(directory: Path) -> list[int]:
    """The checkpoints in a folder, the oldest first."""
    found = (files.number(path.name) for path in directory.glob("*"))
    return sorted(step for step in found if step is not None)


def newest(directory: Path) -> int | None:
    """The newest checkpoint in a folder, or None."""
    return max(steps(directory), default=None)


def best(directory: Path) -> int | None:
    """The checkpoint with the highest score, of equals the newest; None if none has a score."""
    scores = {step: _score(directory / str(step)) for step in steps(directory)}
    scored = [(score, step) for step, score in scores.items() if score is not None]
    return max(scored)[1] if scored else None


def _score(path: Path) -> float | None:
    try:
        return storage.read(path).score
    except UserError:  # a damaged one is nobody's best; who reads it is told
        return None


def check(directory: str | Path) -> None:
    """Refuses a folder of checkpoints that cannot be made or written to; leaves no trace.

    Raises:
        UserError: the folder, or the nearest parent there is, cannot be written to.
    """
    directory = Path(directory).absolute()
    with _explaining_refusal(directory):
        files.probe(files.nearest(directory))


def make(directory: Path) -> None:
    """Makes a folder of checkpoints.

    Raises:
        UserError: it cannot be made or written to.
    """
    with _explaining_refusal(directory):
        directory.mkdir(parents=True, exist_ok=True)
        files.probe(directory)


@contextlib.contextmanager
def _explaining_refusal(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write checkpoints to {directory}: {error.strerror}; "
            "choose another folder with checkpoint.dir"
        ) from error


def reason(error: Exception) -> str:
    """Returns why the operating system refused; else the beginning of what the library that writes
    has to say, which has many words for files that somebody removes while it writes them."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    code = re.search(r"os_error_code='(\d+)'", str(error))  # as tensorstore writes it
    return os.strerror(int(code[1])) if code else first_line(error)[:100]


def _remove_temporary(directory: Path) -> None:
    """Removes what is half-written or half-deleted; again while threads of a failed save write."""
    for _ in range(20):
        folders = [path for path in directory.glob("[0-9]*.*") if _is_temporary(path.name)]
        for path in folders:
            files.remove(path)
        if not folders:
            return
        time.sleep(0.05)


def _is_temporary(name: str) -> bool:
    end = r"((\.[0-9a-f]{16})?\.tmp|\.orbax-checkpoint-tmp.*)"
    return re.fullmatch(rf"[0-9]+{end}", name) is not None
