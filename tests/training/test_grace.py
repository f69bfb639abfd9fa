"""The end that comes so many seconds after SIGTERM, or does not."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from dreamer.checkpoint import manager
from dreamer.system.signals import StopRequest
from dreamer.training.trainer import Trainer
from tests import tiny_run

STATUS = 128 + signal.SIGTERM
ROOT = Path(__file__).resolve().parents[2]


def python(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        **{"cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True},
    )


BUSY = """
    import hashlib, os, signal, sys, time
    from dreamer.system.signals import StopRequest

    seconds, since = map(float, sys.argv[1:])
    with StopRequest() as stop:
        if since:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(since)
        with stop.grace(seconds, lambda: "farewell"):
            print("busy", flush=True)
            hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # no handler runs until it is done
"""


def wait_for(process: subprocess.Popen[str]) -> str:
    """What it says until its end."""
    try:
        return process.communicate(timeout=60)[1]
    finally:
        process.kill()


def test_it_comes_although_the_main_thread_is_deep_in_compiled_code() -> None:
    process = python(BUSY, "1", "0")
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGUSR1)
    time.sleep(1.2)
    assert process.poll() is None
    attempts = 30
    while process.poll() is None and attempts:  # the first counts
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        attempts -= 1
    assert attempts
    err = wait_for(process)
    assert (process.returncode, err) == (STATUS, "farewell\n")


def test_it_counts_from_a_signal_that_came_before() -> None:
    process = python(BUSY, "0.4", "0.3")
    err = wait_for(process)
    assert (process.returncode, err) == (STATUS, "farewell\n")


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate()]


def test_who_is_done_in_time_is_left_alone() -> None:
    with StopRequest() as stop, stop.grace(0.3, lambda: pytest.fail("too early")):
        assert "signals" in threads()
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.6)
    assert "signals" not in threads()
    assert signal.set_wakeup_fd(-1) == -1


def test_without_a_limit_nothing_ends_it() -> None:
    with StopRequest() as stop, stop.grace(0, lambda: pytest.fail("there is no limit")):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
        assert stop.requested


SLOW = """
    import os, signal, sys, time
    from dreamer.cli import train
    from dreamer.checkpoint import storage
    from dreamer.training.trainer import Trainer

    write, after = storage.write, Trainer.after

    def slowly(path, *rest):
        if not path.name.startswith("14."):
            write(path, *rest)
            time.sleep(100)
        write(path, *rest)

    def stopped(trainer, episodes):
        after(trainer, episodes)
        trainer.checkpoints.manager.wait()
        if trainer.step == 20:
            os.kill(os.getpid(), signal.SIGTERM)

    storage.write, Trainer.after = slowly, stopped
    train.main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_save_that_takes_too_long_is_given_up_for_the_previous_one(
    tmp_path: Path,
) -> None:
    changes = ("checkpoint.every_steps=14", "run.grace_seconds=2", "log.progress=plain")
    process = python(SLOW, *tiny_run.argv(tmp_path, *changes))
    err = wait_for(process)
    assert (process.returncode, err) == (
        STATUS,
        "run.grace_seconds=2 are over, the process ends: the newest checkpoint is of step 14 in "
        f"{tmp_path}\n",
    )
    assert manager.steps(tmp_path / "checkpoints") == [14]
    assert (tmp_path / "checkpoints" / "20.tmp" / "checkpoint.json").exists()
    with Trainer(tiny_run.config(tmp_path, *changes)) as again:
        assert again.step == 14
