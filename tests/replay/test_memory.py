"""Freed memory returns to the system before the available memory is measured."""

import subprocess
import sys

import pytest

FREEING = """
import numpy as np
import psutil
from dreamer.system import runtime
runtime.runtime("cpu")
from dreamer.replay import memory
process = psutil.Process()
arrays = [np.ones(2**20) for _ in range(16)]  # 8 MiB each
last = np.ones(2**20)  # what is above them stays
del arrays
before = process.memory_info().rss
memory.available()
print(before - process.memory_info().rss)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of glibc")
def test_freed_memory_counts_as_available() -> None:
    found = subprocess.run(
        [sys.executable, "-c", FREEING], capture_output=True, text=True, check=True
    )
    assert int(found.stdout) > 100 * 2**20
