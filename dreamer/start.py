"""Settings of jax that must stand before its first use."""

import ctypes
import os
import re
import subprocess
import sys
from pathlib import Path

import jax

from dreamer.errors import UserError

# What jax calls them, with the CPU beside them for policies.
PLATFORMS = {"gpu": "cuda,cpu", "tpu": "tpu,cpu"}
# By these a user sets the allocator of glibc, and so its settings are numbered in malloc.h.
ALLOCATOR = ("GLIBC_TUNABLES", "MALLOC_ARENA_MAX", "MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_")
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8


def runtime(platform: str, xla_flags: str = "") -> None:
    """Chooses the platform and the compiler's flags, keeps compiled programs between runs and freed
    memory within one, where the user's environment does not say otherwise.

    Args:
      platform: auto, cpu, gpu or tpu.
      xla_flags: put before those of XLA_FLAGS, of which the last wins.

    Raises:
      UserError: the compiler does not know a flag.
    """
    if xla_flags:
        _check(xla_flags)
        os.environ["XLA_FLAGS"] = f"{xla_flags} {os.environ.get('XLA_FLAGS', '')}".strip()
    if platform != "auto":
        jax.config.update("jax_platforms", PLATFORMS.get(platform, platform))
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "dreamer" / "jax"
        jax.config.update("jax_compilation_cache_dir", str(cache))
    if sys.platform == "linux" and not any(name in os.environ for name in ALLOCATOR):
        _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Lets the allocator of the C library hand out again what was freed, instead of returning it.

    XLA allocates the temporary memory of a program anew at every call. On CPU a quarter of an
    update at 1m went by while the system found and cleared it page by page (measured). To be called
    before other threads allocate. `replay.memory.release` returns it where that matters. C
    libraries that have no such settings keep to their own ways.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(M_MMAP_MAX, 0)  # large blocks come from the heap as well,
        library.mallopt(M_ARENA_MAX, 1)  # which the first arena alone can do,
        library.mallopt(M_TRIM_THRESHOLD, -1)  # and the heap never shrinks


def _check(xla_flags: str) -> None:
    """Tries flags in a process of its own, since one that is not known ends the process."""
    found = subprocess.run(
        [sys.executable, "-c", "import jax; jax.devices()"],
        env=os.environ | {"XLA_FLAGS": xla_flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    if found.returncode:
        unknown = re.search(r"Unknown flags? in XLA_FLAGS: (.*)", found.stderr)
        what = f"jax {jax.__version__} does not know {unknown[1]}" if unknown else "cannot be read"
        raise UserError(f"xla_flags={xla_flags}: {what}; correct it, or leave out xla_flags")
