"""One checkpoint: the folder of a step with train state, replay and counters.

Layout: `state/` and `replay/` are arrays written by orbax. `checkpoint.json` has everything else,
with the checksums of their files, and is written last.
"""

import json
import math
from pathlib import Path
from typing import Any

from dreamer.checkpoint import arrays, integrity, schema
from dreamer.checkpoint.integrity import Damaged, reading
from dreamer.checkpoint.schema import Document
from dreamer.errors import UserError

DOCUMENT = "checkpoint.json"


def document(state: Any, meta: dict[str, Any], score: float | None = None) -> Document:
    """The document of a checkpoint, before its files are written; a copy.

    Args:
        state: pytree of arrays.
        meta: JSON types. Tuples are restored as lists and keys as strings.
        score: higher is better; a score that is not finite counts as none.
    """
    counts = score is not None and math.isfinite(score)
    return Document.model_construct(
        structure=arrays.structure(state),
        meta=json.loads(json.dumps(meta)),
        score=score if counts else None,
    )


def write(path: Path, state: Any, replay: dict[str, Any] | None, about: Document) -> None:
    """Writes a checkpoint into an empty folder.

    Args:
        path: the folder.
        state: pytree of numpy arrays.
        replay: nested dict of numpy arrays, or None.
        about: the document of the state.

    Raises:
        OSError, ValueError: it cannot be written, see `manager.reason`.
    """
    arrays.write(path / "state", state)
    if replay is not None:
        arrays.write(path / "replay", replay)
    _write_document(path, about, files=integrity.seal(path))


def amend(path: Path, meta: dict[str, Any], score: float | None) -> None:
    """Replaces parts of the meta of a checkpoint, and its score if one is given; raises like
    `write`."""
    old = read(path)
    new = document({}, meta, old.score if score is None else score)
    _write_document(path, old, meta=old.meta | new.meta, score=new.score)


def read(path: Path) -> Document:
    """The document of one checkpoint.

    Args:
        path: the checkpoint's own folder, which may be a copy.

    Raises:
        Damaged: the document has changed, or the folder is no checkpoint.
        UserError: it cannot be read, has another format, or has values that are not allowed.
    """
    with reading(path):
        try:
            content = integrity.read_document(path / DOCUMENT)
        except FileNotFoundError:
            what = f"{path} is not a checkpoint of a dreamer run"
            if (path / "state").is_dir():
                what = f"the checkpoint {path} is damaged"
            raise Damaged(f"{what}: {DOCUMENT} is missing") from None
    if content is None:
        raise Damaged(f"the checkpoint {path} is damaged: {DOCUMENT} has changed")
    return schema.validate(content, f"the checkpoint {path}")


def check(path: Path, about: Document, part: str = "") -> None:
    """Compares the files of a checkpoint, or of a part of it, with their checksums.

    Raises:
        Damaged: a file has changed or is missing.
        UserError: a file cannot be read.
    """
    with reading(path):
        found = integrity.damage(path, about.files, part)
    if found:
        raise Damaged(f"the checkpoint {path} is damaged: {found}")


def restore(path: Path, pattern: Any) -> tuple[Any, dict[str, Any] | None, dict[str, Any]]:
    """A whole checkpoint as (state, replay, meta), after all files are checked.

    Args:
        path: the checkpoint's own folder.
        pattern: pytree like the state, see `arrays.read_like`.

    Returns:
        The state; the replay, or None if none was saved; the meta.

    Raises:
        Damaged: it is not as it was written.
        UserError: its structure differs from the pattern, or it cannot be read.
    """
    about = read(path)
    _refuse_others(path, about.structure, arrays.structure(pattern))
    check(path, about)
    with reading(path):
        state = arrays.read_like(path / "state", pattern)
        replay = arrays.read(path / "replay") if (path / "replay").exists() else None
    return state, replay, about.meta


def read_params(path: Path, pattern: Any) -> Any:
    """The parameters of one checkpoint; nothing else of it is read.

    Args:
        path: the checkpoint's own folder, which may be a copy.
        pattern: pytree like the parameters, see `arrays.read_like`.

    Raises:
        Damaged: they are not as they were written.
        UserError: they differ from the pattern, or cannot be read.
    """
    about = read(path)
    saved = {key: form for key, form in about.structure.items() if key.startswith(".params[")}
    _refuse_others(path, saved, {f".params{k}": v for k, v in arrays.structure(pattern).items()})
    return read_networks(path, pattern, about)


def read_networks(path: Path, pattern: dict[str, Any], about: Document) -> dict[str, Any]:
    """The parameters of those networks that a pattern has; raises like `read_params`."""
    check(path, about, "state/")
    with reading(path):
        found: dict[str, Any] = arrays.read_like(path / "state", {"params": pattern})["params"]
    return found


def _write_document(path: Path, about: Document, **changes: Any) -> None:
    integrity.write_document(path / DOCUMENT, vars(about) | changes)


def _refuse_others(path: Path, saved: dict[str, str], here: dict[str, str]) -> None:
    if found := arrays.difference(saved, here):
        raise UserError(
            f"the checkpoint {path} does not fit the configuration: {found}; use the "
            "configuration it was saved with"
        )
