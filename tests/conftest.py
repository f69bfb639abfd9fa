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

os.environ.update(
    XDG_STATE_HOME=STATE.name,
    JAX_PLATFORMS=os.environ.get("DREAMER_TEST_PLATFORMS", "cpu"),
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

PLAIN = ("agents", "dreamer", "nets")  # tests that compile many programs to run each a few times


@pytest.fixture(autouse=True, scope="module")
def programs_are_compiled_as_they_are_worth(request: pytest.FixtureRequest) -> None:
    """Those of `PLAIN` without most of the compiler's optimisations, in four fifths of the time."""
    plain = request.path.parent.name in PLAIN
    jax.config.update("jax_disable_most_optimizations", plain)


@pytest.fixture(autouse=True, scope="module")
def no_programs_left_behind() -> Iterator[None]:
    """Compiled programs are let go after each file: every one takes hundreds of memory mappings, of
    which a process may have 65,530 on Linux, and jaxlib 0.10 dies where it gets no more."""
    yield
    jax.clear_caches()
    gc.collect()
