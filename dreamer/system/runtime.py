"""Settings of jax that must stand before its first use."""

import os
import re
import subprocess
import sys
from pathlib import Path

import jax

from dreamer.errors import UserError, warn
from dreamer.system import allocator

# What jax calls them, with the CPU beside them for policies.
PLATFORMS = {"gpu": "cuda,cpu", "tpu": "tpu,cpu"}


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
        cache = _cache()
        jax.config.update("jax_compilation_cache_dir", str(cache) if cache else None)
    allocator.keep_freed()


def _cache() -> Path | None:
    """The folder of compiled programs: by the XDG specification, for which an empty or relative
    path is not set; None without a home folder."""
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if given.is_absolute():
        return given / "dreamer" / "jax"
    try:
        home = Path.home()
    except RuntimeError as error:
        why = str(error)
    else:
        if home.is_dir():
            return home / ".cache" / "dreamer" / "jax"
        why = f"there is no {home}"
    warn(
        f"compiled programs are not kept, for there is no home folder ({why}); choose a folder by "
        "XDG_CACHE_HOME"
    )
    return None


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
