"""Freed memory is reused, and gaps in the heap are not searched; in commands alone."""

import os
import subprocess
import sys

import pytest

from dreamer.system import allocator

pytestmark = pytest.mark.skipif(
    not allocator.has("mallopt", "mallinfo2"), reason="needs the allocator of glibc 2.33 or newer"
)
SETTINGS = pytest.mark.parametrize("theirs", [{}, {"MALLOC_ARENA_MAX": "2"}])

FAULTS = """
import resource, sys
from dreamer.system import allocator
if sys.argv[1:] != ["library"]:
    allocator.keep_freed()
import dreamer, jax, jax.numpy as jnp
program = jax.jit(lambda: jnp.zeros(2**23) + 1)
found = [0]
for _ in range(12):  # the first ones find their place
    program().block_until_ready()  # 32 MiB
    found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(min(after - before for before, after in zip(found, found[1:])))
"""

GAPS = """
import ctypes, psutil
from dreamer.system import allocator
allocator.keep_freed()
library = ctypes.CDLL(None)
library.malloc.restype = library.sbrk.restype = ctypes.c_void_p
blocks = [library.malloc(3000 + 16 * i) for i in range(4000)]
for block in blocks:
    ctypes.memset(ctypes.c_void_p(block), 1, 3000)
for block in blocks[::2]:
    library.free(ctypes.c_void_p(block))
before, end = psutil.Process().memory_info().rss, library.sbrk(0)
allocator.set_gaps_aside()
grown = psutil.Process().memory_info().rss - before
filled = sum(library.malloc(3000 + 16 * i) < end for i in range(0, 4000, 40))
print(filled, grown)
"""


def run(script: str, theirs: dict[str, str], *arguments: str) -> list[int]:
    """The numbers that a script prints in a process of its own, with these settings."""
    mine = {k: v for k, v in os.environ.items() if k not in allocator.SETTINGS} | theirs
    command = [sys.executable, "-c", script, *arguments]
    found = subprocess.run(command, env=mine, capture_output=True, text=True, check=True)
    return [int(number) for number in found.stdout.split()]


@SETTINGS
def test_freed_memory_is_used_again(theirs: dict[str, str]) -> None:
    """Without asking the system for new pages, unless the user sets the allocator."""
    (faults,) = run(FAULTS, theirs)
    assert (faults > 1000) == bool(theirs)


def test_a_program_that_imports_the_library_keeps_its_allocator() -> None:
    (faults,) = run(FAULTS, {}, "library")
    assert faults > 1000


@SETTINGS
def test_gaps_are_set_aside(theirs: dict[str, str]) -> None:
    """They are no longer allocated and hold no memory, unless the user sets the allocator."""
    filled, grown = run(GAPS, theirs)
    if theirs:
        assert filled > 90
    else:
        assert filled < 30  # what lay free at the end of the heap
        assert grown < 2**20
