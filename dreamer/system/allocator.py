"""What the allocator of the C library does with memory that was freed: glibc's, on Linux.

XLA allocates the temporary memory of a program anew at every call, and its kernels theirs.
"""

import ctypes
import os
import sys
from typing import Any

# Variables by which a user sets glibc's allocator, or puts another in its place.
SETTINGS = (
    *("GLIBC_TUNABLES", "MALLOC_ARENA_MAX", "MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_"),
    "LD_PRELOAD",
)
# Numbers of its settings in malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
# Gaps of this many bytes are looked for along lists; smaller ones are found at once.
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
    """Whether the C library has these functions; others than glibc keep to their own ways."""
    return all(hasattr(_library, name) for name in names)


def keep_freed() -> None:
    """Lets the allocator hand out again what was freed, instead of returning it to the system;
    unless the user's environment sets the allocator.

    On CPU a quarter of an update at 1m went by while the system found and cleared the temporary
    memory page by page (measured). To be called before other threads allocate.
    """
    global _keeps
    if has("mallopt") and not any(name in os.environ for name in SETTINGS):
        _library.mallopt(M_MMAP_MAX, 0)  # large blocks come from the heap as well,
        _library.mallopt(M_ARENA_MAX, 1)  # which the first arena alone can do,
        _library.mallopt(M_TRIM_THRESHOLD, -1)  # and the heap never shrinks
        _keeps = True


def release() -> None:
    """Returns to the system what was freed; the allocator keeps the addresses."""
    if has("malloc_trim"):
        _library.malloc_trim(ctypes.c_size_t(0))


def set_gaps_aside() -> None:
    """Takes the gaps that compiling has left in the heap out of use for good, after `keep_freed`.

    A compiler leaves tens of thousands of them, of as many sizes, and the allocator walks along
    lists of them whenever a kernel asks for memory: a run that had to compile took a fifth more
    time per update of size nano than one that found its programs in the cache (measured). What is
    set aside costs addresses, but hardly any memory, which is returned before.
    """
    if not _keeps or not has("mallinfo2"):
        return
    _library.malloc.restype = _library.sbrk.restype = ctypes.c_void_p
    _library.mallinfo2.restype = _Counts
    release()
    end = _library.sbrk(ctypes.c_ssize_t(0))
    top = end - _library.mallinfo2().keepcost  # from here on all is free, and no gap
    size = MOST
    while size >= LEAST:
        block = ctypes.c_void_p(_library.malloc(ctypes.c_size_t(size)))
        if block.value is None or block.value >= top:  # there is no gap of this size
            _library.free(block)
            size = size * 7 // 8
    release()
