"""One checkpoint: the folder of a step with train state, replay and counters together.

Layout: `state/` and `replay/`, arrays written by orbax; `checkpoint.json`, all the rest and the
checksums of those, is written last.
"""

import json
import logging
import math
import sys
from pathlib import Path
from typing import Any

import absl.logging
import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint._src.multihost import multihost

from dreamer.checkpoint import integrity, schema
from dreamer.checkpoint.schema import Document
from dreamer.distributed import hosts, mesh
from dreamer.errors import UserError, describe
from dreamer.replay import memory

# Orbax tells every step of its work, and prints a traceback of each error that it also raises;
# asyncio prints those of the writes that go on after the first has failed, and Python those of
# writes that find nobody any more to tell of their end.
absl.logging.set_verbosity(absl.logging.FATAL)
logging.getLogger("asyncio").setLevel(logging.CRITICAL + 1)
_usual_hook = sys.unraisablehook
sys.unraisablehook = lambda found: (
    None if str(found.exc_value) == "Event loop is closed" else _usual_hook(found)
)

DOCUMENT = "checkpoint.json"

_CHUNK_BYTES = 2**24  # compressed and written at once: larger ones cost memory, smaller ones time


class Damaged(UserError):
    """A checkpoint is not what was written: `what` is it, with the first of its files that is not,
    or no checkpoint at all."""

    def __init__(self, what: str) -> None:
        self.what = what
        super().__init__(
            f"{what}; name another one, or resume the run, which goes back to the one before"
        )


def document(state: Any, meta: dict[str, Any], score: float | None = None) -> Document:
    """What is to be written of a checkpoint beside its arrays; a copy.

    Args:
        state: pytree of arrays.
        meta: what JSON can hold. Tuples come back as lists and keys as strings.
        score: higher is better; not finite counts as none.
    """
    counts = score is not None and math.isfinite(score)
    return Document.model_construct(
        structure=_structure(state),
        meta=json.loads(json.dumps(meta)),
        score=score if counts else None,
    )


def write(path: Path, state: Any, replay: dict[str, Any] | None, about: Document) -> None:
    """Writes a checkpoint into a folder that is there and empty.

    Args:
        path: the folder.
        state: pytree of numpy arrays.
        replay: nested dict of numpy arrays, or None.
        about: of the state.

    Raises:
        OSError, ValueError: the operating system refused, see `manager.reason`.
    """
    _write_arrays(path / "state", state)
    if replay is not None:
        _write_arrays(path / "replay", replay)
    _write_document(path, about.model_copy(update={"files": integrity.seal(path)}))


def amend(path: Path, meta: dict[str, Any], score: float | None) -> None:
    """Replaces parts of the meta of a checkpoint, and its score if there is one; raises like
    `write`."""
    old = read(path)
    new = document({}, meta, old.score if score is None else score)
    changes = {"meta": old.meta | new.meta, "score": new.score}
    _write_document(path, old.model_copy(update=changes))


def read(path: Path) -> Document:
    """The document of one checkpoint, given its own folder, wherever it was copied to.

    Raises:
        Damaged: it is not what was written, or the folder is no checkpoint.
        UserError: it cannot be read, is of another format, or says what cannot be.
    """
    try:
        content = integrity.read_document(path / DOCUMENT)
    except FileNotFoundError:
        if (path / "state").is_dir():
            raise Damaged(f"the checkpoint {path} is damaged: {DOCUMENT} is missing") from None
        missing = f"{path} is not a checkpoint of a dreamer run: {DOCUMENT} is missing"
        raise Damaged(missing) from None
    except OSError as error:
        raise _unreadable(path, error) from error
    if content is None:
        raise Damaged(f"the checkpoint {path} is damaged: {DOCUMENT} has changed")
    return _validated(path, content)


def check(path: Path, about: Document, part: str = "") -> None:
    """Compares the files of a checkpoint, or of a part of it, with their checksums.

    Raises:
        Damaged: one has changed or is missing.
        UserError: one cannot be read.
    """
    try:
        found = integrity.damage(path, about.files, part)
    except OSError as error:
        raise _unreadable(path, error) from error
    if found:
        raise Damaged(f"the checkpoint {path} is damaged: {found}")


def restore(path: Path, pattern: Any) -> tuple[Any, dict[str, Any] | None, dict[str, Any]]:
    """A checkpoint as (state, replay, meta), all of it checked; replay is None if saved so.

    Args:
        path: its own folder.
        pattern: pytree like the state. Where it has numpy arrays the result has, and elsewhere jax
            arrays on the leaf's sharding or, if it has none, on the first device, wherever they
            were when saved.

    Raises:
        Damaged: it is not what was written.
        UserError: it is of another structure, or cannot be read.
    """
    about = read(path)
    _check_structure(about.structure, _structure(pattern), path)
    check(path, about)
    state = read_arrays(path, "state", pattern)
    replay = read_arrays(path, "replay") if (path / "replay").exists() else None
    return state, replay, about.meta


def read_params(path: Path, pattern: Any) -> Any:
    """The parameters alone of one checkpoint, on the first device; the rest is not read.

    Args:
        path: the checkpoint's own folder, wherever it was copied to.
        pattern: pytree like them.

    Raises:
        Damaged: they are not what was written.
        UserError: they are others, or cannot be read.
    """
    about = read(path)
    inside = ".params["
    saved = {key: form for key, form in about.structure.items() if key.startswith(inside)}
    wanted = {f".params{key}": form for key, form in _structure(pattern).items()}
    _check_structure(saved, wanted, path)
    check(path, about, "state/")
    return read_arrays(path, "state", {"params": pattern}, partial=True)["params"]


def read_arrays(path: Path, part: str, pattern: Any = None, partial: bool = False) -> Any:
    """Arrays of a checkpoint, whose files are not checked here.

    Args:
        path: the checkpoint's own folder.
        part: state or replay.
        pattern: as that of `restore`; none gives everything in nested dicts of numpy.
        partial: the pattern has only some of the arrays.

    Raises:
        UserError: they cannot be read.
    """
    how: dict[str, Any] = {}
    if pattern is not None:
        target = jax.tree.map(_target, pattern)
        kinds = ocp.checkpoint_utils.construct_restore_args(target)
        how = {"item": target, "restore_args": kinds, "partial_restore": partial}
    _save_alone()
    handler = ocp.PyTreeCheckpointHandler()
    try:
        stored = handler.metadata(path / part).tree
        if pattern is None:
            refuse_huge(stored)
        else:
            _check_shapes(stored, pattern)
        restored = handler.restore(path / part, args=ocp.args.PyTreeRestore(**how))
    except UserError as error:
        raise UserError(f"the checkpoint {path} cannot be read: {error}") from None
    except Exception as error:  # of as many kinds as there are libraries below
        raise _unreadable(path, error) from error
    finally:
        handler.close()
    if pattern is not None:
        _check_structure(_structure(restored), _structure(pattern), path)
    return restored


def refuse_huge(metadata: Any) -> None:
    """Refuses arrays that do not fit into memory: a small file can say that it holds them.

    Raises:
        UserError: so many are in the tree of their metadata.
    """
    arrays = jax.tree.leaves(metadata)
    size = sum(math.prod(x.shape) * np.dtype(x.dtype).itemsize for x in arrays)
    if size > (free := memory.available()):
        raise UserError(
            f"its arrays need {memory.gib(size)} of memory, and {memory.gib(free)} are free; make "
            "room, or name another checkpoint"
        )


def _check_shapes(metadata: Any, pattern: Any) -> None:
    """Refuses arrays of other shapes than those of the pattern, whatever the document says of them:
    they are read whole before they can be compared.

    Raises:
        UserError: there is one.
    """
    stored, wanted = map(ocp.tree.to_flat_dict, (metadata, pattern))
    for name in stored.keys() & wanted.keys():
        there, here = list(stored[name].shape), list(wanted[name].shape)
        if there != here:
            raise UserError(f"{'.'.join(map(str, name))} is {there} there and {here} here")


def _save_alone() -> None:
    """Of several hosts each has checkpoints of its own. Orbax knows only one that all write
    together, numpy arrays on the first alone (0.12.8, also with a `primary_host`); so here every
    process is the first, and waits for no other."""
    if hosts.count() > 1:
        multihost.process_index = lambda: 0
        multihost.should_skip_process_sync = lambda processes=None: True


def _write_arrays(path: Path, arrays: Any) -> None:
    _save_alone()
    # They are handed over, and so written without the copy that orbax makes of numpy arrays.
    plain = ocp.type_handlers.NumpyHandler(deepcopy_host_arrays=False)
    registry = ocp.type_handlers.create_type_handler_registry((np.ndarray, plain))
    handler = ocp.PyTreeCheckpointHandler(type_handler_registry=registry)
    chunked = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES), arrays)
    path.mkdir()
    try:
        handler.save(path, args=ocp.args.PyTreeSave(arrays, save_args=chunked))
        handler.finalize(path)
    finally:
        handler.close()


def _write_document(path: Path, about: Document) -> None:
    integrity.write_document(path / DOCUMENT, dict(vars(about)))


def _validated(path: Path, content: Any) -> Document:
    try:
        return schema.validate(content)
    except schema.Wrong as wrong:
        raise UserError(f"the checkpoint {path} {wrong}") from None


def _unreadable(path: Path, error: Exception) -> UserError:
    if isinstance(error, OSError) and error.strerror:
        return UserError(f"cannot read the checkpoint {path}: {error.filename}: {error.strerror}")
    reason = describe(error).partition(" [tensorstore")[0][:300]
    return UserError(f"cannot read the checkpoint {path}: {reason}")


def _target(leaf: Any) -> Any:
    """Returns what tells orbax to restore `leaf` as numpy or as a jax array of this process."""
    if isinstance(leaf, np.ndarray):
        return leaf
    sharding = getattr(leaf, "sharding", None) or mesh.first_device()
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
