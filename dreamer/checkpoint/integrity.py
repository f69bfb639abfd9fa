"""Files that are no longer what was written: found by their sizes and checksums."""

import errno
import json
import os
import sys
import zlib
from pathlib import Path
from typing import Any

from dreamer.system import files

Seals = dict[str, list[int]]  # size and checksum of every file by its path in a folder

MOST = 2**28  # bytes of a document
_PIECE = 2**22  # bytes read at once


def seal(path: Path) -> Seals:
    """Size and CRC-32 of every file in a folder, each of which is on the disk from then on.

    CRC-32 reads two gigabytes a second, three times what the fastest hash of hashlib does here.

    Raises:
        OSError: a file cannot be read, or not be written through to the disk.
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
    """The first file that is not as it was sealed, and what is wrong with it; '' for none.

    Args:
        path: the folder.
        seals: what `seal` gave.
        part: a folder inside, when the rest is of no interest.

    Raises:
        OSError: a file is there but cannot be read, or a folder inside is a link that leads out.
    """
    inside = path / part
    for place in (inside, *inside.rglob("*")):
        if not place.is_dir():
            files.refuse_special(place)  # a pipe would be waited for
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
    """Writes JSON with its own checksum, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    text = json.dumps(content)
    files.write_atomic(path, f'{{"checksum": {zlib.crc32(text.encode())}, "content": {text}}}\n')


def read_document(path: Path) -> dict[str, Any] | None:
    """What `write_document` wrote; None if it is not that any more.

    Raises:
        OSError: there is no such file, or it cannot be read or is too large.
    """
    try:
        document = json.loads(files.read(path, MOST))
        content: dict[str, Any] = document["content"]
        whole = document["checksum"] == zlib.crc32(json.dumps(content).encode())
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return content if whole else None


def _measure(path: Path, most: int, sync: bool = False) -> list[int]:
    """Size and checksum of a file, of which at most one byte too many is read."""
    checksum = size = 0
    with open(files.open_regular(path), "rb") as file:
        while piece := file.read(min(_PIECE, most + 1 - size)):
            checksum, size = zlib.crc32(piece, checksum), size + len(piece)
        if sync:
            os.fsync(file.fileno())
    return [size, checksum]
