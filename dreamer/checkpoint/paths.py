"""The folders of a run, and whether a configuration may resume the run in them."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from dreamer.checkpoint import folder, manager
from dreamer.config import Config, serialization
from dreamer.errors import UserError
from dreamer.logs.writers import METRICS
from dreamer.system import files

CHECKPOINTS = "checkpoints"
ROOM = 300  # bytes of the longest path inside a run folder


def run_folder(config: Config) -> Path:
    """`run.dir`; if it was not given, composing has made a name of the choices."""
    return expand(config.run.dir, "run.dir")


def checkpoint_folder(config: Config) -> Path:
    """`checkpoint.dir`, or a folder inside the run folder."""
    if config.checkpoint.dir:
        return expand(config.checkpoint.dir, "checkpoint.dir").absolute()
    return run_folder(config).absolute() / CHECKPOINTS


def expand(path: str, key: str) -> Path:
    """The path with `~` as the home folder.

    Raises:
      UserError: the user does not exist, the path is too long, or the library that writes arrays
        cannot write it: not UTF-8, with a control character or backslash, an address.
    """
    try:
        found = Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{key}={path}: {error} write the folder's full path") from None
    whole = str(found.absolute())
    shown, utf8 = (text.encode("utf-8", "backslashreplace").decode() for text in (path, whole))
    if any(character < " " or character == "\x7f" for character in path):
        raise UserError(f"{key}={path!r}: the name has a control character; choose another name")
    if "\\" in whole or any(part.endswith(":") for part in Path(whole).parts):
        raise UserError(
            f"{key}={shown}: the library that saves arrays cannot write names with a backslash, "
            "or with a part that ends in a colon; name a local folder"
        )
    if utf8 != whole:
        raise UserError(
            f"{key}={shown}: {utf8} is not UTF-8, and some libraries cannot write such names; "
            "rename it, or choose another"
        )
    nearest = next(place for place in (found, *found.absolute().parents) if os.path.exists(place))
    limits = [os.pathconf(nearest, f"PC_{name}_MAX") for name in ("NAME", "PATH")]
    longest = max(len(part.encode()) for part in ("", *Path(whole).parts))
    if longest > limits[0] or len(whole.encode()) + ROOM > limits[1]:
        raise UserError(
            f"{key}={shown[:60]}...: the name is too long; each part may have {limits[0]} bytes, "
            f"the whole path {limits[1] - ROOM}; choose a shorter one"
        )
    return found


def checked_run_folder(config: Config) -> Path:
    """The run folder; refuses folders of other runs, and leaves no trace.

    Raises:
      UserError: as `folder.check` and `refuse_changes`, or `checkpoint.dir` cannot be written.
    """
    path, checkpoints = run_folder(config), checkpoint_folder(config)
    folder.check(path)
    refuse_changes(config, path)
    with folder.writing("checkpoint.dir", checkpoints):
        files.probe(files.nearest(checkpoints))
    return path


def refuse_changes(config: Config, path: Path) -> None:
    """Compares a configuration with the one that the folder's run was started with.

    Raises:
      UserError: they differ and `run.accept_changes` is not set.
    """
    saved = None if config.run.accept_changes else folder.config(path)
    changes = [] if saved is None else serialization.differences(saved, config)
    if changes:
        raise UserError(
            f"{path} holds a run with another configuration: {'; '.join(changes)}; "
            f"run.dir={path} alone resumes it as it was; or choose another run.dir, or resume with "
            "the changes by run.accept_changes=true"
        )


def refuse_strange_checkpoints(config: Config, fresh: bool) -> None:
    """Refuses the checkpoints of another run, and a `checkpoint.dir` that has lost those of this
    run, which would start over.

    Raises:
      UserError: a new run finds checkpoints there, or a run with metrics finds none.
    """
    directory, path = checkpoint_folder(config), run_folder(config)
    found = manager.steps(directory)
    if fresh and found:
        raise UserError(
            f"checkpoint.dir={directory} holds the checkpoints of another run, and {path} is new; "
            "choose another folder for one of them"
        )
    metrics = path / METRICS
    logged = metrics.exists() and metrics.stat().st_size > 0
    if config.checkpoint.dir and logged and not (fresh or found):
        raise UserError(
            f"checkpoint.dir={directory} holds no checkpoint of the run in {path}, which would "
            "start over; put the folder back, or start a new run with another run.dir"
        )


@contextlib.contextmanager
def locked_run(config: Config) -> Iterator[bool]:
    """Locks the folders of a run; yields whether the run is new.

    Raises:
      UserError: as `folder.locked` and `refuse_strange_checkpoints`.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(folder.locked(run_folder(config)))
        if config.checkpoint.dir:  # which the lock of the run folder does not cover
            stack.enter_context(folder.locked(checkpoint_folder(config)))
        fresh = folder.saved_config(run_folder(config)) is None
        refuse_strange_checkpoints(config, fresh)
        yield fresh


def refuse_other_kind(offline: bool, config: Config) -> None:
    """Refuses to resume an offline run as one that acts, or the reverse: their counters and arrays
    differ.

    Args:
      offline: whether the checkpoint is of an offline run.
      config: of the run that resumes.

    Raises:
      UserError: they differ.
    """
    if offline != config.run.offline:
        kind = "offline" if offline else "acting"
        raise UserError(
            f"{run_folder(config)} holds the checkpoint of an {kind} run, which cannot resume with "
            f"run.offline={str(config.run.offline).lower()}; start another run.dir with its "
            f"weights by run.init_from={run_folder(config)}"
        )


def refuse_checkpoint_of(owner: str, config: Config) -> None:
    """Refuses to resume what another run saved in the same `checkpoint.dir`.

    Args:
      owner: run folder of the checkpoint.
      config: of the run that resumes. Checkpoints inside the run folder move with it.

    Raises:
      UserError: they differ and `run.accept_changes` is not set.
    """
    ours = str(run_folder(config).absolute())
    if config.checkpoint.dir and owner != ours and not config.run.accept_changes:
        raise UserError(
            f"checkpoint.dir={config.checkpoint.dir} holds checkpoints of {owner}, not of {ours}; "
            "choose another folder, or if the run was moved, resume with run.accept_changes=true"
        )
