"""Damaged files, found by their sizes and checksums; and files that cannot be read."""

import contextlib
import errno
import json
import os
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dreamer.errors import UserError, describe
from dreamer.system import files

Seals = dict[str, list[int]]  # size and checksum of every file by its path in a folder

MOST = 2**28  # bytes of a document
_PIECE = 2**22  # bytes read at once


class Damaged(UserError):
    """A checkpoint has a damaged file, or is none at all; `what` names the checkpoint and file."""

    def __init__(self, what: str) -> None:
        self.what = what
        super().__init__(
            f"{what}; name another one, or resume the run, which falls back to the one before"
        )


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns what the libraries raise while they read a checkpoint into a UserError."""
    try:
        yield
    except Damaged:
        raise
    except Exception as error:  # of as many kinds as there are libraries
        reason = describe(error).partition(" [tensorstore")[0][:300]
        if isinstance(error, OSError) and error.strerror:
            reason = f"{error.filename}: {error.strerror}"
        raise UserError(f"the checkpoint {path} cannot be read: {reason}") from error


def seal(path: Path) -> Seals:
    """Size and CRC-32 of every file in a folder; flushes all of them to the disk.

    CRC-32 reads two gigabytes a second, three times what the fastest hash of hashlib does here.

    Raises:
        OSError: a file cannot be read or flushed.
    """
    everything = sorted(path.rglob("*"))
    for place in (path, *everything):
        if place.is_dir():
            files.sync(place)
    return {
        str(file.relative_to(path)): _measure(file, sys.maxsize - 1, sync=True)
        for file in everything
        if file.is_file()
    }


def damage(path: Path, seals: Seals, part: str = "") -> str:
    """The first file that differs from its seal, and how; '' for none.

    Args:
        path: the folder.
        seals: a result of `seal`.
        part: restricts the check to a folder inside.

    Raises:
        OSError: a file exists but cannot be read, or a folder inside is a link that leads out.
    """
    inside = path / part
    for place in (inside, *inside.rglob("*")):
        if not place.is_dir():
            files.refuse_special(place)  # opening a pipe would block
        elif not place.resolve().is_relative_to(path.resolve()):
            raise OSError(errno.EINVAL, "it is a link to a folder elsewhere", str(place))
    for name, sealed in seals.items():
        if not name.startswith(part):
            continue
        try:
            size = (path / name).stat().st_size
            if size != sealed[0]:
                return f"{name} has {size:,} bytes of {sealed[0]:,}"
            if _measure(path / name, sealed[0]) != sealed:
                return f"{name} has changed"
        except (FileNotFoundError, NotADirectoryError):
            return f"{name} is missing"
    return ""


def write_document(path: Path, content: dict[str, Any]) -> None:
    """Writes JSON with its own checksum, atomically.

    Raises:
        OSError: it cannot be written.
    """
    text = json.dumps(content)
    files.write_atomic(path, f'{{"checksum": {zlib.crc32(text.encode())}, "content": {text}}}\n')


def read_document(path: Path) -> dict[str, Any] | None:
    """The content that `write_document` wrote; None if the file has changed since.

    Raises:
        OSError: the file does not exist, cannot be read or is too large.
    """
    try:
        document = json.loads(files.read(path, MOST))
        content: dict[str, Any] = document["content"]
        whole = document["checksum"] == zlib.crc32(json.dumps(content).encode())
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return content if whole else None


def _measure(path: Path, most: int, sync: bool = False) -> list[int]:
    """Size and checksum of a file, of which at most one byte more than `most` is read."""
    checksum = size = 0
    with open(files.open_regular(path), "rb") as file:
        while piece := file.read(min(_PIECE, most + 1 - size)):
            checksum, size = zlib.crc32(piece, checksum), size + len(piece)
        if sync:
            os.fsync(file.fileno())
    return [size, checksum]
