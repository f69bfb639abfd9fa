"""The run folder: checked, locked, and described by config.yaml and version.json."""

import contextlib
import errno
import fcntl
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from dreamer.config import Config
from dreamer.config.serialization import HEADER, MOST, from_yaml
from dreamer.distributed.shard import HOSTS
from dreamer.errors import UserError, describe, warn
from dreamer.system import files
from dreamer.system.files import write_atomic

CONFIG = "config.yaml"
VERSION = "version.json"
LOCK = ".lock"
PACKAGES = (
    "dreamer",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "gymnasium",
    "ale-py",
)
# Errors of file systems without locks.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)
SOURCE = Path(__file__).resolve().parents[2]


def prepare(
    path: str | Path,
    config_yaml: str,
    command: Sequence[str] | None = None,
    ours: bool = False,
) -> Path:
    """Checks the folder, creates it, and writes config.yaml and version.json into it.

    In the folder of a run, both are replaced and version.json keeps the earlier starts. An error
    leaves nothing new behind.

    Args:
        path: the folder.
        config_yaml: the resolved configuration; gets a first line that marks the folder as ours.
        command: the command line to record; the running one by default.
        ours: skips the check of a folder that is known to be this run's.

    Raises:
        UserError: the path is a file, a folder of something else, or cannot be written.
    """
    path = Path(path)
    if not ours:
        check(path)
    fresh = not (path / CONFIG).exists()
    text = config_yaml if config_yaml.startswith(HEADER) else HEADER + config_yaml
    undoing = files.undone_on_failure(path) if fresh else contextlib.nullcontext()
    with writing("run.dir", path), undoing:
        write_atomic(path / CONFIG, text)  # first, for it marks the folder as ours
        write_atomic(path / VERSION, _version_json(path, command))
    return path


def check(path: str | Path) -> None:
    """Refuses a path that cannot be a run folder; tries to write there, but leaves no trace.

    Raises:
        UserError: the path or a parent is a file, the folder holds something else, or cannot be
            written.
    """
    path = Path(path)
    with writing("run.dir", path):
        existing = files.nearest(path)
        if not existing.is_dir():
            raise UserError(
                f"run folder {path}: {existing} is not a folder; choose another with run.dir=PATH"
            )
        if existing == path and not _is_ours(path):
            raise UserError(
                f"run folder {path} holds files but no {CONFIG} of a dreamer run; "
                "give an empty or new folder, or that of a run to resume, with run.dir=PATH"
            )
        files.probe(existing)


@contextlib.contextmanager
def writing(key: str, path: Path) -> Iterator[None]:
    """Turns errors of the file system into a UserError about the folder that a key names."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{key}={path} cannot be written: {error.strerror or error}; free space or give write "
            f"permission there, or choose another folder with {key}=PATH"
        ) from error


@contextlib.contextmanager
def locked(path: str | Path) -> Iterator[None]:
    """Creates a folder and keeps other runs out of it; the lock ends with this process.

    A folder that stays empty keeps no lock file, and is removed if it is new.

    Raises:
        UserError: another run is in it, or it cannot be locked.
    """
    path = Path(path)
    with contextlib.ExitStack() as stack:
        stack.callback(files.remove_empty, files.missing_folders(path))
        try:
            path.mkdir(parents=True, exist_ok=True)
            stack.callback(os.close, _lock(path))
        except BlockingIOError:
            raise UserError(
                f"run folder {path} is in use by a run; wait for it or stop it, or choose another "
                "folder with run.dir=PATH"
            ) from None
        except OSError as error:
            what = error.strerror or error
            if error.errno in NO_LOCKS:
                what = f"its file system has no locks ({what})"
            raise UserError(
                f"run folder {path} cannot be locked by {path / LOCK}: {what}; choose a folder on "
                "another disk with run.dir=PATH, or remove what blocks this file"
            ) from error
        stack.callback(_remove_lone, path)
        yield


def _lock(path: Path) -> int:
    """The descriptor of the locked file; tries again if another run has removed it meanwhile."""
    while True:
        descriptor = files.open_regular(path / LOCK, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.lstat(path / LOCK)):
                    return descriptor
        except OSError as error:
            if not isinstance(error, BlockingIOError):
                _remove_lone(path)
            os.close(descriptor)
            raise
        os.close(descriptor)


def _remove_lone(path: Path) -> None:
    """Removes the lock file of a folder that holds nothing else."""
    with contextlib.suppress(OSError):
        if os.listdir(path) == [LOCK]:
            (path / LOCK).unlink()


def config(path: Path) -> Config | None:
    """The configuration that a run saved in this folder; None if it holds no run.

    Raises:
        UserError: it exists but cannot be read.
    """
    text = saved_config(path)
    return None if text is None else from_yaml(text, str(path / CONFIG))


def saved_config(path: str | Path) -> str | None:
    """The text of the configuration that a run saved in this folder; None if it holds no run.

    Raises:
        UserError: it exists but cannot be read.
    """
    file = Path(path) / CONFIG
    try:
        text = files.read(file, MOST).decode()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{file} cannot be read: {getattr(error, 'strerror', None) or error}; choose another "
            "folder with run.dir=PATH"
        ) from error
    return text if text.startswith(HEADER) else None


def versions() -> dict[str, str | None]:
    """Installed versions, read without imports; None for packages that are not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def git_state(root: Path = SOURCE) -> dict[str, Any] | None:
    """Commit of the checkout at `root` and whether tracked files differ; None for no checkout."""
    # A package installed below another repository would otherwise report that one's commit.
    if not (root / ".git").exists():
        return None
    # Git hooks set variables that would point elsewhere.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    options = ["status", "--porcelain=v2", "--branch", "--untracked-files=no"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        found = subprocess.run(
            ["git", "-C", str(root), *options],
            env=environment,
            check=True,
            capture_output=True,
            text=True,
            timeout=20,
        ).stdout
        if commit := re.search(r"^# branch.oid ([0-9a-f]+)$", found, re.M):
            return {"commit": commit[1], "dirty": re.search("^[^#]", found, re.M) is not None}
    return None


def _version_json(path: Path, command: Sequence[str] | None) -> str:
    entry: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(command if command is not None else ["python", *sys.orig_argv[1:]]),
        "git": git_state(),
        "versions": versions(),
    }
    return json.dumps({**entry, "earlier": _starts(path / VERSION)}, indent=2) + "\n"


def _starts(file: Path) -> list[dict[str, Any]]:
    """The starts that version.json records, the oldest first."""
    try:
        last = json.loads(files.read(file, 2**26))
        starts = [*last.pop("earlier", []), last]
        if not all(isinstance(start, dict) for start in starts):
            raise ValueError("a start is not a mapping")
    except FileNotFoundError:
        return []
    except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
        warn(f"{file} cannot be read and is replaced: {describe(error)}")
        return []
    return starts


def _is_ours(path: Path) -> bool:
    """Whether the folder holds a run, or nothing but the files of an interrupted start."""
    foreign = [
        name
        for name in os.listdir(path)
        # Another host may have started before this one.
        if not (name.startswith(".") and name.endswith(".tmp")) and name not in (HOSTS, LOCK)
    ]
    return not foreign or saved_config(path) is not None
