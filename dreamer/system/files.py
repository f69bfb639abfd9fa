"""Files and folders: written whole or not at all, and never through a link inside of a folder."""

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

TEMPORARY = ".tmp"  # how the names of what is not complete yet end
_STALE = re.compile(r"\..*\.tmp")
_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)


# ------------------------------------------------------------------------------------------ writing


def unguessable() -> str:
    """The end of a temporary name, which nobody can have put a file under."""
    return f".{secrets.token_hex(8)}{TEMPORARY}"


@contextlib.contextmanager
def replacing(path: str | Path, mode: int = 0o666) -> Iterator[BinaryIO]:
    """Opens a new file beside `path`, which takes its place when the block ends without an error.

    The new file has a name that cannot be guessed and is created exclusively, so nothing that is
    there already is written to. A link at `path` is replaced itself, not what it points to.

    Args:
      path: of the file; its folder must exist.
      mode: permissions of the new file, reduced by the umask.

    Raises:
      OSError: it cannot be written, or is a device or the like.
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
    """Writes a text file whole or not at all, see `replacing`.

    Raises:
      OSError: it cannot be written.
    """
    with replacing(path, mode) as file:
        file.write(text.encode())


def open_regular(path: str | Path, flags: int = os.O_RDONLY) -> int:
    """Opens a regular file; to write, only if no link is in its place.

    Args:
      path: of the file.
      flags: as those of `os.open`.

    Raises:
      OSError: it cannot be opened, or is a link, a folder, a pipe or a device.
    """
    writes = flags & (os.O_WRONLY | os.O_RDWR)
    try:
        # A pipe would otherwise be waited for.
        descriptor = os.open(path, flags | os.O_NONBLOCK | (_NOFOLLOW if writes else 0), 0o666)
    except OSError as error:
        if writes and os.path.islink(path):
            what = "it is a link, and nothing inside of a folder is written through links"
            raise OSError(error.errno, what, str(path)) from None
        raise
    try:
        _refuse_kind(os.fstat(descriptor).st_mode, path)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def refuse_special(path: str | Path) -> None:
    """Refuses what is no regular file, where something is: a device would be replaced by a file.

    Raises:
      OSError: it is a folder, a pipe or a device, or cannot be looked at.
    """
    with contextlib.suppress(FileNotFoundError):
        _refuse_kind(os.stat(path).st_mode, path)


def _refuse_kind(mode: int, path: str | Path) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is a pipe, a socket or a device, not a file", str(path))


def sync(path: Path) -> None:
    """Writes the names in a folder through to the disk.

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
    """The content of a regular file of at most so many bytes.

    Raises:
      OSError: it cannot be read, is no file, or has more.
    """
    with open(open_regular(path), "rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"it has more than {most:,} bytes", str(path))
    return content


def number(name: str) -> int | None:
    """The number that a name is, written in the digits 0 to 9 without zeros before it; or None."""
    return int(name) if re.fullmatch(r"0|[1-9][0-9]{0,99}", name) else None


# ------------------------------------------------------------------------------------------ folders


_undoing = 0  # blocks that remove what they made when they fail


@contextlib.contextmanager
def undoing() -> Iterator[None]:
    """Marks a block that removes what it made when it fails, for which a signal waits."""
    global _undoing
    _undoing += 1
    try:
        yield
    finally:
        _undoing -= 1


def is_undoing() -> bool:
    """Whether something half-made is removed when the main thread fails now."""
    return _undoing > 0


@contextlib.contextmanager
def undone_on_failure(folder: Path) -> Iterator[None]:
    """Makes a folder; where the block fails, what came into it is removed, and so are it and its
    parents if they were not there before.

    Raises:
      OSError: it cannot be made.
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


def missing_folders(folder: Path) -> list[Path]:
    """The folder and its parents, as far as they are not there, the innermost first."""
    folder = folder.absolute()
    return [place for place in (folder, *folder.parents) if not os.path.lexists(place)]


def remove_empty(folders: list[Path]) -> None:
    """Removes folders, the first that is not empty and all after it excepted."""
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


def remove(path: Path) -> None:
    """Removes a file, a link, or a folder with all in it; what cannot be removed stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)  # follows no links
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def remove_stale(folder: Path) -> None:
    """Removes the temporary files of processes that were killed; only for who owns the folder."""
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            if _STALE.fullmatch(name):
                remove(folder / name)


def refuse_links(folder: Path, *inside: str) -> None:
    """Refuses links in place of folders that are written to. What the user named may be a link.

    Raises:
      UserError: one of the paths inside of the folder is a link.
    """
    for name in inside:
        if (folder / name).is_symlink():
            raise UserError(
                f"{folder / name} is a link, and nothing inside of a folder is written through "
                "links; put what it points to in its place"
            )
