"""Strict settings for every test, put into the environment so that subprocesses have them too."""

import os
import sys
import tempfile
from pathlib import Path

DEVICES = 4

if "jax" in sys.modules:
    raise RuntimeError(
        "jax was imported before its settings: start the tests with `python -m pytest`"
    )

STATE = tempfile.TemporaryDirectory()  # of what the user trusts, for these tests alone

# Compiling takes most of the time of the tests. With the older emitters an update of a tiny agent
# compiles in a quarter of the time, without most optimisations in half of that; it runs slower.
# DREAMER_TEST_COMPILER=default compiles as users do.
QUICK = os.environ.get("DREAMER_TEST_COMPILER", "quick") == "quick"
FLAGS = (
    f"--xla_force_host_platform_device_count={DEVICES}",
    *(["--xla_cpu_use_fusion_emitters=false"] if QUICK else []),
)

os.environ.update(
    XDG_STATE_HOME=STATE.name,
    JAX_PLATFORMS=os.environ.get("DREAMER_TEST_PLATFORMS", "cpu"),
    XLA_FLAGS=" ".join([os.environ.get("XLA_FLAGS", ""), *FLAGS]),
    JAX_DISABLE_MOST_OPTIMIZATIONS=str(QUICK),
    JAX_NUMPY_RANK_PROMOTION="raise",
    JAX_COMPILATION_CACHE_DIR=str(Path(__file__).resolve().parent.parent / ".cache" / "jax"),
    JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
    SDL_VIDEODRIVER="dummy",
    SDL_AUDIODRIVER="dummy",
)

import gc  # noqa: E402
from collections.abc import Iterator  # noqa: E402

import jax  # noqa: E402
import pytest  # noqa: E402

# Inspect programs, run them for long, or compare different ones bit for bit.
OPTIMISED = ("test_compiled.py", "test_learning.py", "test_device_loop.py", "test_seeds.py")


@pytest.fixture(autouse=True, scope="module")
def optimisations(request: pytest.FixtureRequest) -> None:
    plain = QUICK and request.path.name not in OPTIMISED
    jax.config.update("jax_disable_most_optimizations", plain)


@pytest.fixture(autouse=True, scope="module")
def no_programs_left_behind() -> Iterator[None]:
    """Frees compiled programs after each file: each has hundreds of memory mappings, of which Linux
    allows a process 65,530, and jaxlib 0.10 crashes at the limit."""
    yield
    jax.clear_caches()
    gc.collect()
