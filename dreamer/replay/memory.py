"""How much memory or disk a replay takes and how much there is."""

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

# Kept back for parameters, activations, environments and the rest of the machine.
HEADROOM = 0.1

# The limit of the control group that this process sees as its root: version 2, then version 1.
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def nbytes(spec: Mapping[str, Any], capacity: int) -> int:
    """Returns the bytes of `capacity` steps; `spec` is a nested dict of (shape, dtype)."""
    leaves = tree.flatten(spec).values()
    return capacity * sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in leaves)


def available() -> int:
    """Returns the bytes that are free, in the machine and under the control group's limit."""
    allocator.release()
    free: int = psutil.virtual_memory().available
    used: int = psutil.Process().memory_info().rss
    return max(0, min([free] + [limit - used for limit in _cgroup_limits()]))


def check_fits(spec: Mapping[str, Any], capacity: int, replays: int = 1) -> None:
    """Refuses a capacity that this machine cannot hold.

    A ring is committed page by page as it fills, so without this check a run would die hours after
    its start.

    Raises:
        UserError: so many replays of `capacity` steps need more than the available memory less
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
    """Refuses a capacity that the disk of a folder cannot hold.

    Raises:
        UserError: there is no such folder, or less is free on its disk.
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
    """Zeros in a file without a name, whose space is taken at once and given back when the array
    is no longer used, however the process ends.

    Raises:
        UserError: the folder cannot be written, or its disk is full.
    """
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, math.prod(shape) * dtype.itemsize)
            return np.memmap(file, dtype, "r+", shape=shape)
    except OSError as error:
        raise UserError(f"replay.folder={folder} cannot be used: {error.strerror}") from error


def gib(size: int) -> str:
    """Writes bytes in a unit that people read."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def _cgroup_limits() -> list[int]:
    texts = [Path(name).read_text().strip() for name in _CGROUP_LIMITS if Path(name).is_file()]
    limits = map(files.number, texts)  # None of "max", which version 2 writes for no limit
    return [limit for limit in limits if limit is not None]
