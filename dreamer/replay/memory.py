"""Memory and disk space of a replay: needed and available."""

import math
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from dreamer.errors import UserError
from dreamer.replay import tree
from dreamer.system import allocator, files

# Reserved for parameters, activations, environments and other processes.
HEADROOM = 0.1

# The memory limit of the control group of this process: version 2, then version 1.
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def nbytes(spec: Mapping[str, Any], capacity: int) -> int:
    """Returns the bytes of `capacity` steps; `spec` is a nested dict of (shape, dtype)."""
    leaves = tree.flatten(spec).values()
    return capacity * sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in leaves)


def available() -> int:
    """Returns the free bytes, of the machine and under the control group's limit."""
    allocator.release()
    free: int = psutil.virtual_memory().available
    used: int = psutil.Process().memory_info().rss
    for path in filter(Path.is_file, map(Path, _CGROUP_LIMITS)):
        limit = files.number(path.read_text().strip())
        if limit is not None:  # version 2 writes "max" for no limit
            free = min(free, limit - used)
    return max(0, free)


def check_fits(spec: Mapping[str, Any], capacity: int, replays: int = 1) -> None:
    """Refuses a capacity that does not fit into memory.

    The system commits a ring page by page as it fills, so without this check a run would die hours
    after its start.

    Raises:
        UserError: That many replays of `capacity` steps need more than the available memory less
            `HEADROOM`.
    """
    needed, usable = replays * nbytes(spec, capacity), int(available() * (1 - HEADROOM))
    largest = usable // (replays * nbytes(spec, 1))
    if needed > usable:
        raise UserError(
            f"replay.capacity={capacity} needs {gib(needed)} of memory but only {gib(usable)} can "
            f"be used; the largest capacity that fits is replay.capacity={largest}"
        )


def check_disk(spec: Mapping[str, Any], capacity: int, folder: Path) -> None:
    """Refuses a capacity that does not fit onto the disk of a folder.

    Raises:
        UserError: There is no such folder, or its disk has less space.
    """
    if not folder.is_dir():
        raise UserError(f"replay.folder={folder} is no folder; make it, or choose another")
    needed, free = nbytes(spec, capacity), shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"replay.capacity={capacity} needs {gib(needed)} in replay.folder={folder} but "
            f"{gib(free)} are free there; the largest capacity that fits is "
            f"replay.capacity={free // nbytes(spec, 1)}"
        )


def on_disk(folder: Path, shape: tuple[int, ...], dtype: np.dtype) -> np.memmap:
    """Returns zeros in an unnamed file, allocated at once.

    The space is freed with the array, however the process ends.

    Raises:
        UserError: The folder cannot be written, or its disk is full.
    """
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, math.prod(shape) * dtype.itemsize)
            return np.memmap(file, dtype, "r+", shape=shape)
    except OSError as error:
        raise UserError(f"replay.folder={folder} cannot be used: {error.strerror}") from error


def gib(size: int) -> str:
    """Formats bytes in GiB or MiB."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
