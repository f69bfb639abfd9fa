"""Settings of jax, to make before its first use."""

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax

from dreamer.errors import UserError, warn
from dreamer.system import allocator

# What jax calls them, with the CPU beside them for policies.
PLATFORMS = {"gpu": "cuda,cpu", "tpu": "tpu,cpu"}


def runtime(platform: str, xla_flags: str = "", keep_freed: bool = True) -> None:
    """Chooses the platform and the compiler's flags, and caches compiled programs between runs,
    unless the user's environment sets them.

    Args:
      platform: auto, cpu, gpu or tpu.
      xla_flags: put before those of XLA_FLAGS; the last of equal flags wins.
      keep_freed: whether the allocator keeps freed memory, in a process of our own.

    Raises:
      UserError: an unknown flag.
    """
    if xla_flags:
        _check(xla_flags)
        os.environ["XLA_FLAGS"] = f"{xla_flags} {os.environ.get('XLA_FLAGS', '')}".strip()
    if platform != "auto":
        jax.config.update("jax_platforms", PLATFORMS.get(platform, platform))
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = _cache()
        jax.config.update("jax_compilation_cache_dir", str(cache) if cache else None)
    if keep_freed:
        allocator.keep_freed()


def _cache() -> Path | None:
    """The cache folder by the XDG specification, for which an empty or relative path is unset;
    None without a home folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not cache.is_absolute():
        try:
            cache = Path.home() / ".cache"
            os.stat(f"{cache.parent}/")  # raises unless it is a folder
        except (RuntimeError, OSError) as error:
            warn(f"compiled programs are not cached: no home folder ({error}); set XDG_CACHE_HOME")
            return None
    return cache / "dreamer" / "jax"


def _check(xla_flags: str) -> None:
    """Tries flags in another process, since an unknown one ends the process."""
    found = subprocess.run(
        [sys.executable, "-c", "import jax; jax.devices()"],
        env=os.environ | {"XLA_FLAGS": xla_flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    if found.returncode:
        unknown = re.search(r"Unknown flags? in XLA_FLAGS: (.*)", found.stderr)
        what = f"jax {jax.__version__} does not know {unknown[1]}" if unknown else "invalid value"
        raise UserError(f"xla_flags={xla_flags}: {what}; correct it, or leave out xla_flags")


@contextlib.contextmanager
def temporary() -> Iterator[None]:
    """Restores afterwards what `runtime` changes of the environment and the settings of jax."""
    flags = os.environ.get("XLA_FLAGS")
    names = ("jax_platforms", "jax_compilation_cache_dir")
    before = {name: getattr(jax.config, name) for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        if flags is None:
            os.environ.pop("XLA_FLAGS", None)
        else:
            os.environ["XLA_FLAGS"] = flags
