"""Where a run keeps its files, and whether a folder may be resumed with a configuration."""

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
ROOM = 300  # bytes of the longest path inside of a run folder


def run_folder(config: Config) -> Path:
    """`run.dir`, which composing fills with a name made of the choices when it is not given."""
    return expand(config.run.dir, "run.dir")


def checkpoint_folder(config: Config) -> Path:
    """`checkpoint.dir`, or a folder inside the run folder."""
    if config.checkpoint.dir:
        return expand(config.checkpoint.dir, "checkpoint.dir").absolute()
    return run_folder(config).absolute() / CHECKPOINTS


def expand(path: str, key: str) -> Path:
    """The path with `~` as the home folder.

    Raises:
      UserError: it is that of a user who does not exist, is too long, or what the library that
        writes arrays cannot write: not UTF-8, with a control character or backslash, an address.
    """
    try:
        found = Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{key}={path}: {error} write the folder's full path") from None
    whole = str(found.absolute())
    shown = path.encode("utf-8", "backslashreplace").decode()
    if any(character < " " or character == "\x7f" for character in path):
        raise UserError(f"{key}={path!r}: the name has a control character; choose another name")
    if "\\" in whole or any(part.endswith(":") for part in Path(whole).parts):
        raise UserError(
            f"{key}={shown}: a backslash, or a part that ends in a colon as those of addresses do, "
            "cannot be written by the library that saves arrays; name a folder of this machine"
        )
    try:
        size = len(whole.encode())
    except UnicodeEncodeError:
        there = whole.encode("utf-8", "backslashreplace").decode()
        raise UserError(
            f"{key}={shown}: {there} is not UTF-8, and such names cannot be written by all "
            "libraries that are used; rename it, or choose another"
        ) from None
    nearest = next(place for place in (found, *found.absolute().parents) if os.path.exists(place))
    limits = [os.pathconf(nearest, f"PC_{name}_MAX") for name in ("NAME", "PATH")]
    longest = max(len(part.encode()) for part in ("", *Path(whole).parts))
    if longest > limits[0] or size + ROOM > limits[1]:
        raise UserError(
            f"{key}={shown[:60]}...: the name is too long; each part may have {limits[0]} bytes, "
            f"the whole path {limits[1] - ROOM}; choose a shorter one"
        )
    return found


def checked_run_folder(config: Config) -> Path:
    """The run folder; refuses folders that are not for this run, and leaves no trace.

    Raises:
      UserError: as `folder.check`, `refuse_changes` and `manager.check`.
    """
    folder.check(run_folder(config))
    refuse_changes(config, run_folder(config))
    manager.check(checkpoint_folder(config))
    return run_folder(config)


def refuse_changes(config: Config, path: Path) -> None:
    """Compares with the configuration that the folder's run was started with.

    Raises:
      UserError: if they differ and `run.accept_changes` is not set.
    """
    saved = folder.saved_config(path)
    if saved is None or config.run.accept_changes:
        return
    changes = serialization.differences(
        serialization.from_yaml(saved, str(path / folder.CONFIG)), config
    )
    if changes:
        raise UserError(
            f"{path} holds a run with another configuration: {'; '.join(changes)}; "
            f"run.dir={path} alone resumes it as it was; or choose another run.dir, or resume with "
            "the changes by run.accept_changes=true"
        )


def refuse_strange_checkpoints(config: Config, fresh: bool) -> None:
    """Keeps a new run from taking over what another one saved in `checkpoint.dir`, and an old one
    from starting over because that folder is not where it was.

    Raises:
      UserError: a fresh run finds checkpoints there, or one that has logged already finds none.
    """
    directory, path = checkpoint_folder(config), run_folder(config)
    found = holds_checkpoints(directory)
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


def holds_checkpoints(directory: Path) -> bool:
    """Whether a run saved something in this folder."""
    return any(files.number(entry.name) is not None for entry in directory.glob("*"))


def refuse_other_kind(offline: bool, config: Config) -> None:
    """Keeps an offline run from going on as one that acts, and the other way round: what they count
    and save is not the same.

    Args:
      offline: whether the checkpoint is of an offline run.
      config: of the run that resumes.

    Raises:
      UserError: they differ.
    """
    if offline != config.run.offline:
        kind = "offline" if offline else "acting"
        raise UserError(
            f"{run_folder(config)} holds the checkpoint of an {kind} run, which cannot go on with "
            f"run.offline={str(config.run.offline).lower()}; start another run.dir with its "
            f"weights by run.init_from={run_folder(config)}"
        )


def refuse_checkpoint_of(owner: str, config: Config) -> None:
    """Keeps a run from resuming what another one saved in the same `checkpoint.dir`.

    Args:
      owner: run folder of the checkpoint.
      config: of the run that resumes; inside its own folder it may have moved.

    Raises:
      UserError: they differ and `run.accept_changes` is not set.
    """
    ours = str(run_folder(config).absolute())
    if config.checkpoint.dir and owner != ours and not config.run.accept_changes:
        raise UserError(
            f"checkpoint.dir={config.checkpoint.dir} holds checkpoints of {owner}, not of {ours}; "
            "choose another folder, or if the run was moved, resume with run.accept_changes=true"
        )
