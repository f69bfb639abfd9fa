"""The run folder: recognised, checked before anything starts, stamped with what made the run."""

import contextlib
import errno
import fcntl
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from dreamer.config.serialization import HEADER, MOST
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
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)  # of a file system
SOURCE = Path(__file__).resolve().parents[2]


def prepare(
    path: str | Path,
    config_yaml: str,
    command: Sequence[str] | None = None,
    ours: bool = False,
) -> Path:
    """Checks the folder, creates it, and writes config.yaml and version.json into it.

    In a folder that already holds a run, both are written anew and version.json keeps the earlier
    starts. On an error nothing new is left behind.

    Args:
        config_yaml: the resolved configuration; a comment line that marks the folder as ours is put
            before it.
        command: the command line to note; the running one when not given.
        ours: the folder is known to be this run's, whatever it still holds.

    Raises:
        UserError: the path is a file, a folder of something else, or cannot be written.
    """
    path = Path(path)
    if not ours:
        check(path)
    fresh = not (path / CONFIG).exists()
    try:
        with files.undone_on_failure(path) if fresh else contextlib.nullcontext():
            # First, for a folder without it is not taken for a run.
            write_atomic(
                path / CONFIG,
                config_yaml if config_yaml.startswith(HEADER) else HEADER + config_yaml,
            )
            write_atomic(path / VERSION, _version_json(path, command))
    except OSError as error:
        raise _not_writable(path, error) from error
    return path


def check(path: str | Path) -> None:
    """Refuses a path that cannot be a run folder; tries writing for real but leaves no trace.

    Raises:
        UserError: the path or a parent is a file, the folder holds something else, or cannot be
            written.
    """
    path = Path(path)
    try:
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
    except OSError as error:
        raise _not_writable(path, error) from error


@contextlib.contextmanager
def locked(path: str | Path) -> Iterator[None]:
    """Makes a folder and keeps every other run out of it; the system unlocks it when this process
    dies. An empty folder keeps no lock, and where it was not there before is removed.

    Raises:
        UserError: another run is in it, or it cannot be locked.
    """
    path = Path(path)
    missing = files.missing_folders(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        descriptor = _lock(path)
    except OSError as error:
        files.remove_empty(missing)
        what = error.strerror or error
        if isinstance(error, BlockingIOError):
            raise UserError(
                f"run folder {path} is in use by a run that goes on; wait for it or stop it, or "
                "choose another folder with run.dir=PATH"
            ) from None
        if error.errno in NO_LOCKS:
            what = f"its file system has no locks ({what})"
        raise UserError(
            f"run folder {path} cannot be locked by {path / LOCK}: {what}; choose a folder on "
            "another disk with run.dir=PATH, or remove what is in its place"
        ) from error
    try:
        yield
    finally:
        _remove_lone(path)
        os.close(descriptor)
        files.remove_empty(missing)


def _lock(path: Path) -> int:
    """The descriptor of the locked file; once more where another run removed it meanwhile."""
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
    """Removes the lock of a folder that holds nothing else."""
    with contextlib.suppress(OSError):
        if os.listdir(path) == [LOCK]:
            (path / LOCK).unlink()


def saved_config(path: str | Path) -> str | None:
    """The text of the configuration that a run saved in this folder, or None when it holds no run.

    Raises:
        UserError: it is there but cannot be read.
    """
    file = Path(path) / CONFIG
    try:
        text = files.read(file, MOST).decode()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or error
        raise UserError(
            f"cannot read {file}: {reason}; choose another folder with run.dir=PATH"
        ) from error
    return text if text.startswith(HEADER) else None


def versions() -> dict[str, str | None]:
    """Installed versions, read without importing anything; None for what is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def git_state(root: Path = SOURCE) -> dict[str, Any] | None:
    """Commit of the checkout at `root` and whether tracked files differ; None for no checkout."""
    # Without this a package installed below some other repository would report that one's commit.
    if not (root / ".git").exists():
        return None
    # Set inside git hooks, where they would point elsewhere.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(
            command, env=environment, check=True, capture_output=True, text=True, timeout=20
        ).stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        return {
            "commit": commit,
            "dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.SubprocessError):
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
    """The starts that are noted in version.json, the oldest first."""
    try:
        last = json.loads(files.read(file, 2**26))
        starts = [*last.pop("earlier", []), last]
        if not all(isinstance(start, dict) for start in starts):
            raise ValueError("a start is no mapping")
    except FileNotFoundError:
        return []
    except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
        warn(f"{file} cannot be read and is written from the start: {describe(error)}")
        return []
    return starts


def _is_ours(path: Path) -> bool:
    """Whether the folder is empty, but for what an interrupted start may leave, or holds a run."""
    foreign = [
        name
        for name in os.listdir(path)
        # Another host may have been here before this one.
        if not (name.startswith(".") and name.endswith(".tmp")) and name not in (HOSTS, LOCK)
    ]
    return not foreign or saved_config(path) is not None


def _not_writable(path: Path, error: OSError) -> UserError:
    return UserError(
        f"run folder {path} cannot be written: {error.strerror or error}; "
        "make room or give it write permission, or choose another one with run.dir=PATH"
    )
