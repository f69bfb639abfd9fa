"""Strict settings for every test, put into the environment so that subprocesses have them too."""

import os
import sys
from pathlib import Path

DEVICES = 4

if "jax" in sys.modules:
    raise RuntimeError(
        "jax was imported before its settings: start the tests with `python -m pytest`"
    )

os.environ.update(
    JAX_PLATFORMS="cpu",
    XLA_FLAGS=f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={DEVICES}",
    JAX_NUMPY_RANK_PROMOTION="raise",
    JAX_COMPILATION_CACHE_DIR=str(Path(__file__).resolve().parent.parent / ".cache" / "jax"),
    JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0.5",
    SDL_VIDEODRIVER="dummy",
    SDL_AUDIODRIVER="dummy",
)

import gc  # noqa: E402
from collections.abc import Iterator  # noqa: E402

import jax  # noqa: E402
import pytest  # noqa: E402


@pytest.fixture(autouse=True, scope="module")
def no_programs_left_behind() -> Iterator[None]:
    """Compiled programs are let go after each file: every one takes hundreds of memory mappings, of
    which a process may have 65,530 on Linux, and jaxlib 0.10 dies where it gets no more."""
    yield
    jax.clear_caches()
    gc.collect()
