"""Files and folders: written atomically, and never through a link inside a folder."""

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from dreamer.errors import UserError

TEMPORARY = ".tmp"  # ending of the names of incomplete files
_STALE = re.compile(r"\..*\.tmp")
_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)


# ------------------------------------------------------------------------------------------ writing


def unguessable() -> str:
    """An unguessable temporary name, under which nobody can have placed a file."""
    return f".{secrets.token_hex(8)}{TEMPORARY}"


@contextlib.contextmanager
def replacing(path: str | Path, mode: int = 0o666) -> Iterator[BinaryIO]:
    """Opens a new file beside `path`, which replaces it when the block ends without an error.

    The new file has an unguessable name and is created exclusively, so no existing file is written
    to. A link at `path` is replaced itself, not its target.

    Args:
      path: of the file, in an existing folder.
      mode: permissions of the new file, reduced by the umask.

    Raises:
      OSError: it cannot be written, or is no regular file.
    """
    path = Path(path)
    refuse_special(path)
    temporary = path.with_name(unguessable())
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NOFOLLOW
    descriptor = os.open(temporary, flags | getattr(os, "O_BINARY", 0), mode)
    try:
        with open(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync(path.parent)


def write_atomic(path: str | Path, text: str, mode: int = 0o666) -> None:
    """Writes a text file atomically, see `replacing`.

    Raises:
      OSError: it cannot be written.
    """
    with replacing(path, mode) as file:
        file.write(text.encode())


def open_regular(path: str | Path, flags: int = os.O_RDONLY) -> int:
    """Opens a regular file; for writing, only if it is no link.

    Args:
      path: of the file.
      flags: as those of `os.open`.

    Raises:
      OSError: it cannot be opened, or is a link, a folder, a pipe or a device.
    """
    writes = flags & (os.O_WRONLY | os.O_RDWR)
    try:
        # O_NONBLOCK: opening a pipe would block.
        descriptor = os.open(path, flags | os.O_NONBLOCK | (_NOFOLLOW if writes else 0), 0o666)
    except OSError as error:
        if writes and os.path.islink(path):
            what = "it is a link, and nothing inside a folder is written through links"
            raise OSError(error.errno, what, str(path)) from None
        raise
    try:
        _refuse_kind(os.fstat(descriptor).st_mode, path)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def refuse_special(path: str | Path) -> None:
    """Refuses an existing path that is no regular file, such as a device.

    Raises:
      OSError: it is a folder, a pipe or a device, or cannot be inspected.
    """
    with contextlib.suppress(FileNotFoundError):
        _refuse_kind(os.stat(path).st_mode, path)


def _refuse_kind(mode: int, path: str | Path) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is a pipe, a socket or a device, not a file", str(path))


@contextlib.contextmanager
def explaining_refusal(
    what: str | Path, advice: str = "make it writable or choose another"
) -> Iterator[None]:
    """Turns errors of the file system into a UserError.

    Args:
      what: cannot be written: a path, or a phrase with one.
      advice: what to do.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {what}: {error.strerror or error}; {advice}") from error


def check_writable(path: str | Path, folder: bool = False) -> None:
    """Checks that a file, or a folder, can be written; leaves no trace.

    Raises:
      UserError: a file is a folder or a device; or the folder, or the nearest parent that exists,
        cannot be written.
    """
    path = Path(path)
    with explaining_refusal(path):
        if not folder:
            refuse_special(path)
        probe(nearest(path if folder else path.parent))


def sync(path: Path) -> None:
    """Flushes the names in a folder to the disk.

    Raises:
      OSError: they cannot be written.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ------------------------------------------------------------------------------------------ reading


def read(path: str | Path, most: int) -> bytes:
    """The content of a regular file.

    Raises:
      OSError: it cannot be read, is no regular file, or has more than `most` bytes.
    """
    with open(open_regular(path), "rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"it has more than {most:,} bytes", str(path))
    return content


def number(name: str) -> int | None:
    """The number of a name in digits 0 to 9 without leading zeros; None for other names."""
    return int(name) if re.fullmatch(r"0|[1-9][0-9]{0,99}", name) else None


# ------------------------------------------------------------------------------------------ folders


_undoing = 0  # running blocks that remove their files when they fail


@contextlib.contextmanager
def undoing() -> Iterator[None]:
    """Marks a block that removes its files when it fails; a signal waits for that."""
    global _undoing
    _undoing += 1
    try:
        yield
    finally:
        _undoing -= 1


def is_undoing() -> bool:
    """Whether incomplete files would be removed if the main thread failed now."""
    return _undoing > 0


@contextlib.contextmanager
def undone_on_failure(folder: Path) -> Iterator[None]:
    """Creates a folder; if the block fails, removes what was added to it, and the folder and its
    parents if they are new.

    Raises:
      OSError: it cannot be created.
    """
    missing = missing_folders(folder)
    before = set() if missing else set(os.listdir(folder))
    with undoing():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            yield
        except BaseException:
            with contextlib.suppress(OSError):
                for name in set(os.listdir(folder)) - before:
                    remove(folder / name)
            remove_empty(missing)
            raise


def nearest(path: Path) -> Path:
    """The first existing path among the path and its parents."""
    return next(place for place in (path, *path.absolute().parents) if os.path.lexists(place))


def probe(folder: Path) -> None:
    """Writes a megabyte and removes it: permissions do not show a read-only or full disk.

    Raises:
      OSError: it cannot be written.
    """
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(2**20))
        file.flush()


def missing_folders(folder: Path) -> list[Path]:
    """The folder and its parents that do not exist, the innermost first."""
    folder = folder.absolute()
    return [place for place in (folder, *folder.parents) if not os.path.lexists(place)]


def remove_empty(folders: list[Path]) -> None:
    """Removes folders in order, up to the first that is not empty."""
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


def remove(path: Path) -> None:
    """Removes a file, a link, or a folder with its content, as far as possible."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)  # follows no links
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def remove_stale(folder: Path) -> None:
    """Removes temporary files of killed processes; only for the owner of the folder."""
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            if _STALE.fullmatch(name):
                remove(folder / name)


def refuse_links(folder: Path, *inside: str) -> None:
    """Refuses links in place of folders to write to. The folder itself may be a link.

    Raises:
      UserError: one of the paths inside the folder is a link.
    """
    for name in inside:
        if (folder / name).is_symlink():
            raise UserError(
                f"{folder / name} is a link, and nothing inside a folder is written through links; "
                "replace it by its target"
            )
