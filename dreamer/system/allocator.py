"""Settings of glibc's allocator, on Linux, for freed memory; made by the command lines alone.

XLA allocates the temporary memory of a program at every call, and so do its kernels.
"""

import ctypes
import os
import sys
from typing import Any

# Variables by which a user sets or replaces glibc's allocator.
SETTINGS = (
    *("GLIBC_TUNABLES", "MALLOC_ARENA_MAX", "MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_"),
    "LD_PRELOAD",
)
# Numbers of settings in malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
# The allocator searches lists for gaps of this many bytes; smaller ones it finds at once.
LEAST, MOST = 1 << 10, 1 << 26

_library: Any = ctypes.CDLL(None) if sys.platform == "linux" else None
_keeps = False


class _Counts(ctypes.Structure):
    """What glibc's mallinfo2 returns."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks")
        + ("uordblks", "fordblks", "keepcost")
    )


def has(*names: str) -> bool:
    """Whether the C library has these functions of glibc."""
    return all(hasattr(_library, name) for name in names)


def keep_freed() -> None:
    """Lets the allocator reuse freed memory instead of returning it to the system, unless the
    user's environment sets the allocator. Call it before other threads allocate.

    On CPU, page faults of temporary memory took a quarter of an update at 1m (measured).
    """
    global _keeps
    if has("mallopt") and not any(name in os.environ for name in SETTINGS):
        _library.mallopt(M_MMAP_MAX, 0)  # large blocks come from the heap as well,
        _library.mallopt(M_ARENA_MAX, 1)  # which the first arena alone can do,
        _library.mallopt(M_TRIM_THRESHOLD, -1)  # and the heap never shrinks
        _keeps = True


def release() -> None:
    """Returns freed memory to the system; the allocator keeps the addresses."""
    if has("malloc_trim"):
        _library.malloc_trim(ctypes.c_size_t(0))


def set_gaps_aside() -> None:
    """Allocates the gaps that compilation left in the heap for good, after `keep_freed`; else does
    nothing.

    A compiler leaves tens of thousands of gaps of different sizes, whose lists the allocator
    searches at every allocation of a kernel: an update of size nano took a fifth longer in a run
    that compiled than in one that used the cache (measured). The gaps cost addresses, but hardly
    any memory, which is returned first.
    """
    if not _keeps or not has("mallinfo2"):
        return
    _library.malloc.restype = _library.sbrk.restype = ctypes.c_void_p
    _library.mallinfo2.restype = _Counts
    release()
    end = _library.sbrk(ctypes.c_ssize_t(0))
    top = end - _library.mallinfo2().keepcost  # above it, all is free
    size = MOST
    while size >= LEAST:
        block = ctypes.c_void_p(_library.malloc(ctypes.c_size_t(size)))
        if block.value is None or block.value >= top:  # there is no gap of this size
            _library.free(block)
            size = size * 7 // 8
    release()
