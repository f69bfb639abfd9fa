"""Files written whole or not at all, and never through a link that somebody planted."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

TEMPORARY = ".tmp"  # how the names of files that are not complete yet end


@contextlib.contextmanager
def replacing(path: str | Path, mode: int = 0o666) -> Iterator[BinaryIO]:
    """Opens a new file beside `path`, which takes its place when the block ends without an error.

    The new file has a name that cannot be guessed and is created exclusively, so nothing that is
    there already is written to. A link at `path` is replaced itself, not what it points to.

    Args:
      path: of the file; its folder must exist.
      mode: permissions of the new file, reduced by the umask.

    Raises:
      OSError: it cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}{TEMPORARY}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
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
