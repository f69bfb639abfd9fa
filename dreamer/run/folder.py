"""The run folder: recognised, checked before anything starts, stamped with what made the run."""

import contextlib
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import filelock

from dreamer.compose import HEADER
from dreamer.errors import UserError
from dreamer.files import write_atomic

CONFIG = "config.yaml"
VERSION = "version.json"
LOCK = ".lock"
HOSTS = "hosts"  # the folder with those of all hosts but the first
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
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    fresh = not (path / CONFIG).exists()
    try:
        path.mkdir(parents=True, exist_ok=True)
        # The mark of ownership comes last: a folder without it is not taken for a run.
        write_atomic(path / VERSION, _version_json(path, command))
        write_atomic(
            path / CONFIG, config_yaml if config_yaml.startswith(HEADER) else HEADER + config_yaml
        )
    except OSError as error:
        with contextlib.suppress(OSError):
            if fresh:
                (path / VERSION).unlink(missing_ok=True)
            for folder in missing:
                folder.rmdir()
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
        existing = nearest(path)
        if not existing.is_dir():
            raise UserError(
                f"run folder {path}: {existing} is not a folder; choose another with run.dir=PATH"
            )
        if existing == path and not _is_ours(path):
            raise UserError(
                f"run folder {path} holds files but no {CONFIG} of a dreamer run; "
                "give an empty or new folder, or that of a run to resume, with run.dir=PATH"
            )
        probe(existing)
    except OSError as error:
        raise _not_writable(path, error) from error


def nearest(path: Path) -> Path:
    """The path itself or the first of its parents that exists."""
    return next(place for place in (path, *path.absolute().parents) if os.path.lexists(place))


def probe(folder: Path) -> None:
    """Writes a megabyte and removes it: permissions do not tell of a read-only or full disk.

    Raises:
        OSError: it cannot be written.
    """
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(2**20))
        file.flush()


@contextlib.contextmanager
def locked(path: str | Path) -> Iterator[None]:
    """Keeps every other run out of a folder; the system unlocks it when this process dies.

    Raises:
        UserError: another run is in it.
    """
    lock = filelock.FileLock(Path(path) / LOCK, blocking=False)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise UserError(
            f"run folder {path} is in use by a run that goes on; wait for it or stop it, or choose "
            "another folder with run.dir=PATH"
        ) from None
    try:
        yield
    finally:
        lock.release()


def saved_config(path: str | Path) -> str | None:
    """The text of the configuration that a run saved in this folder, or None when it holds no run.

    Raises:
        UserError: it is there but cannot be read.
    """
    file = Path(path) / CONFIG
    try:
        text = file.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"cannot read {file}: {error}; choose another folder with run.dir=PATH"
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
    earlier: list[Any] = []
    with contextlib.suppress(FileNotFoundError, ValueError, AttributeError):
        last = json.loads((path / VERSION).read_text(encoding="utf-8"))
        earlier = [*last.pop("earlier", []), last]
    return json.dumps({**entry, "earlier": earlier}, indent=2) + "\n"


def _is_ours(path: Path) -> bool:
    """Whether the folder is empty, but for what an interrupted write may leave, or holds a run."""
    foreign = [
        name
        for name in os.listdir(path)
        # Another host may have been here before this one.
        if not (name.startswith(".") and name.endswith(".tmp")) and name != HOSTS
    ]
    return not foreign or saved_config(path) is not None


def _not_writable(path: Path, error: OSError) -> UserError:
    return UserError(
        f"run folder {path} cannot be written: {error.strerror or error}; "
        "make room or give it write permission, or choose another one with run.dir=PATH"
    )
