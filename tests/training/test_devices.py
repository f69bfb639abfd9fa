"""One, two, four and eight devices, which the tests in this process do not have."""

import os
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_any_number_of_devices_learns_the_same_and_takes_the_saves_of_any_other() -> None:
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.eight_devices"],
        env=os.environ | flags,
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr
    assert "12 saves restored in 12 loops each" in done.stdout
