"""Settings of jax that must stand before its first use."""

import os
from pathlib import Path

import jax


def runtime(platform: str) -> None:
    """Chooses the platform and keeps compiled programs between runs, where the user's environment
    says.

    Args:
      platform: auto, cpu, gpu or tpu.
    """
    if platform != "auto":
        jax.config.update("jax_platforms", {"gpu": "cuda"}.get(platform, platform))
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "dreamer" / "jax"
        jax.config.update("jax_compilation_cache_dir", str(cache))
