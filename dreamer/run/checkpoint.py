"""Checkpoints: train state, replay and counters together, written by orbax in the background.

Layout: `DIRECTORY/STEP/{state,replay,meta,metrics}`. A checkpoint is written under a temporary name
and renamed when it is complete.
"""

import contextlib
import json
import logging
import math
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import absl.logging
import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as ocm

from dreamer import parallel
from dreamer.errors import UserError
from dreamer.run import folder

# Orbax tells every step of its work, and prints a traceback of each error that it also raises;
# asyncio prints those of the writes that go on after the first has failed.
absl.logging.set_verbosity(absl.logging.FATAL)
logging.getLogger("asyncio").setLevel(logging.CRITICAL + 1)

_CHUNK_BYTES = 2**24  # compressed and written at once: larger ones cost memory, smaller ones time


class Checkpointer:
    """Saves and restores the checkpoints of one run.

    Args:
        directory: folder of the checkpoints; made if missing.
        keep: newest checkpoints to keep, beside the one with the best score.
        asynchronous: `save` returns when the state is copied and writing goes on in the background.
        read_only: for looking into a run that may be training: makes, cleans and writes nothing.

    Raises:
        UserError: the folder cannot be made or written to.
    """

    def __init__(
        self,
        directory: str | Path,
        keep: int = 1,
        asynchronous: bool = True,
        read_only: bool = False,
    ) -> None:
        self.directory = Path(directory).absolute()
        if not read_only:
            make(self.directory)
        best = ocm.BestN(get_metric_fn=_score, n=1, keep_checkpoints_without_metrics=False)
        options = ocm.CheckpointManagerOptions(
            preservation_policy=ocm.AnyPreservationPolicy([ocm.LatestN(keep), best]),
            best_fn=_score,
            cleanup_tmp_directories=True,
            enable_async_checkpointing=asynchronous,
            read_only=read_only,  # orbax then neither makes the folder nor cleans it
        )
        # The replay is handed over, so it is written without the copy orbax makes of numpy arrays.
        numpy_only = ocp.type_handlers.create_type_handler_registry(
            (np.ndarray, ocp.type_handlers.NumpyHandler(deepcopy_host_arrays=False))
        )
        handlers = {
            "state": ocp.StandardCheckpointHandler(),
            "replay": ocp.PyTreeCheckpointHandler(type_handler_registry=numpy_only),
            "meta": ocp.JsonCheckpointHandler(),
        }
        self._manager = ocm.CheckpointManager(
            self.directory, options=options, item_handlers=handlers
        )

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
            UserError: this checkpoint or the one before it could not be written and is removed.
        """
        with self._explaining_failures():
            document = {"structure": _structure(state), "meta": meta}
            items = {
                "state": ocp.args.StandardSave(state),
                "meta": ocp.args.JsonSave(json.loads(json.dumps(document))),
            }
            if replay is not None:
                chunked = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES), replay)
                items["replay"] = ocp.args.PyTreeSave(replay, save_args=chunked)
            composite = ocp.args.Composite(**items)
            self._manager.save(step, args=composite, metrics=_metrics(score), force=True)

    def amend(self, step: int, meta: dict[str, Any], score: float | None = None) -> None:
        """Replaces the meta of a saved checkpoint, and adds a score; raises like `save`."""
        with self._explaining_failures():
            self._manager.wait_until_finished()
            path = self.directory / str(step)
            document = json.loads((path / "meta" / "metadata").read_text()) | {"meta": meta}
            folder.write_atomic(path / "meta" / "metadata", json.dumps(document))
            metrics = _metrics(score)
            if metrics is not None:
                (path / "metrics").mkdir(exist_ok=True)
                folder.write_atomic(path / "metrics" / "metrics", json.dumps(metrics))
            self._manager.reload()

    def latest_step(self) -> int | None:
        """Returns the newest checkpoint, or None."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """Returns the checkpoint with the highest score, of equals the newest; or None."""
        return self._manager.best_step()

    def restore(
        self, step: int | None, abstract_state: Any
    ) -> tuple[Any, dict[str, Any] | None, dict[str, Any]]:
        """Restores (state, replay, meta); replay is None when it was saved so.

        Args:
            step: which checkpoint; None is the newest.
            abstract_state: pytree like the state. Where it has numpy arrays the result has, and
                elsewhere jax arrays on the leaf's sharding or, if it has none, on the first device,
                wherever they were when saved.

        Raises:
            UserError: no such checkpoint, one of another structure, or one that cannot be read.
        """
        step, meta, items = self._open(step, abstract_state)
        if (self.directory / str(step) / "replay").exists():
            items["replay"] = ocp.args.PyTreeRestore()
        restored = self._read(step, items)
        return restored["state"], restored.get("replay"), meta

    def wait(self) -> None:
        """Returns when the checkpoint being written is complete; raises like `save`."""
        with self._explaining_failures():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits and ends the background threads; raises like `save`."""
        with self._explaining_failures():
            self._manager.close()

    def _open(
        self, step: int | None, abstract_state: Any
    ) -> tuple[int, dict[str, Any], dict[str, Any]]:
        """Returns the step, its meta and how to restore its state, having compared structures."""
        self.wait()
        wanted = "" if step is None else f" of step {step}"
        step = self._manager.latest_step() if step is None else step
        if step is None or step not in self._manager.all_steps():
            raise UserError(
                f"no checkpoint{wanted} in {self.directory}; name the folder of a run that saved it"
            )
        saved = self._read(step, {"meta": ocp.args.JsonRestore()})["meta"]
        _check_structure(saved["structure"], _structure(abstract_state), self.directory / str(step))
        target = jax.tree.map(_target, abstract_state)
        return step, saved["meta"], {"state": ocp.args.StandardRestore(target)}

    def _read(self, step: int, items: dict[str, Any]) -> dict[str, Any]:
        try:
            return dict(self._manager.restore(step, args=ocp.args.Composite(**items)).items())
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).partition("\n")[0]
            raise UserError(
                f"cannot read the checkpoint {self.directory / str(step)}; delete that folder to "
                f"use an older one: {reason}"
            ) from error

    @contextlib.contextmanager
    def _explaining_failures(self) -> Iterator[None]:
        """Turns what the file system refused into a UserError and removes what is half-written."""
        try:
            yield
        except (OSError, ValueError) as error:
            reason = _reason(error)
            if reason is None:
                raise
            _remove_temporary(self.directory)
            self._manager.reload()  # it already forgot what it meant to delete after this save
            raise UserError(
                f"cannot save a checkpoint in {self.directory}: {reason}; "
                "make room there or choose another folder with checkpoint.dir"
            ) from error


def read_meta(path: Path) -> dict[str, Any]:
    """The meta of one checkpoint, given its own folder, wherever it was copied to.

    Raises:
        UserError: the folder is not a checkpoint.
    """
    return _document(path)["meta"]


def read_params(path: Path, abstract_params: Any) -> Any:
    """The parameters alone of one checkpoint, on the first device; the rest is not read.

    Args:
        path: the checkpoint's own folder, wherever it was copied to.
        abstract_params: pytree like them.

    Raises:
        UserError: the folder is not a checkpoint, of other parameters, or cannot be read.
    """
    saved = _document(path)["structure"]
    saved = {key: form for key, form in saved.items() if key.startswith(".params[")}
    wanted = {f".params{key}": form for key, form in _structure(abstract_params).items()}
    _check_structure(saved, wanted, path)
    target = {"params": jax.tree.map(_target, abstract_params)}
    how = ocp.checkpoint_utils.construct_restore_args(target)
    handler = ocp.PyTreeCheckpointHandler()
    try:
        return handler.restore(
            path.absolute() / "state",
            args=ocp.args.PyTreeRestore(target, restore_args=how, partial_restore=True),
        )["params"]
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).partition("\n")[0].partition(" [tensorstore")[0]
        raise UserError(
            f"cannot read the checkpoint {path}; copy it anew, or use another: {reason}"
        ) from error
    finally:
        handler.close()


def _document(path: Path) -> dict[str, Any]:
    file = path / "meta" / "metadata"
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        return {"structure": dict(document["structure"]), "meta": dict(document["meta"])}
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"{path} is not a checkpoint of a dreamer run: {file} is not there or not of its form; "
            "name a run folder, or a numbered folder of its checkpoints"
        ) from None


def _metrics(score: float | None) -> dict[str, float] | None:
    return {"score": float(score)} if score is not None and math.isfinite(score) else None


def _score(metrics: dict[str, float]) -> float:
    return metrics["score"]


def _target(leaf: Any) -> Any:
    """Returns what tells orbax to restore `leaf` as numpy or as a jax array of this process."""
    if isinstance(leaf, np.ndarray):
        return leaf
    sharding = getattr(leaf, "sharding", None) or parallel.first_device()
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _structure(state: Any) -> dict[str, str]:
    """Returns dtype and shape of every leaf by its path."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path): f"{x.dtype}{list(x.shape)}" for path, x in leaves}


def _check_structure(saved: dict[str, str], wanted: dict[str, str], where: Path) -> None:
    """Orbax casts, and tells differences over many lines: refuses the first in one line."""
    for path in [*wanted, *saved]:
        there, here = saved.get(path, "missing"), wanted.get(path, "missing")
        if there != here:
            raise UserError(
                f"the checkpoint {where} does not fit the configuration: {path} is {there} there "
                f"and {here} here; use the configuration it was saved with"
            )


def check(directory: str | Path) -> None:
    """Refuses a folder of checkpoints that cannot be made or written to; leaves no trace.

    Raises:
        UserError: the folder, or the nearest parent there is, cannot be written to.
    """
    directory = Path(directory).absolute()
    with _explaining_refusal(directory):
        folder.probe(folder.nearest(directory))


def make(directory: Path) -> None:
    """Makes a folder of checkpoints.

    Raises:
        UserError: it cannot be made or written to.
    """
    with _explaining_refusal(directory):
        directory.mkdir(parents=True, exist_ok=True)
        folder.probe(directory)


@contextlib.contextmanager
def _explaining_refusal(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write checkpoints to {directory}: {error.strerror}; "
            "choose another folder with checkpoint.dir"
        ) from error


def _reason(error: Exception) -> str | None:
    """Returns why the operating system refused, or None when it did not."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    code = re.search(r"os_error_code='(\d+)'", str(error))  # as tensorstore writes it
    return os.strerror(int(code[1])) if code else None


def _remove_temporary(directory: Path) -> None:
    """Removes half-written checkpoints; again while threads of the failed save still write."""
    for _ in range(20):
        folders = list(directory.glob("*.orbax-checkpoint-tmp*"))
        for path in folders:
            shutil.rmtree(path, ignore_errors=True)
        if not folders:
            return
        time.sleep(0.05)
