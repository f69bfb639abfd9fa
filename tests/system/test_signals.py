"""The first signal is a request, a second has its usual effect."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dreamer.system import signals
from dreamer.system.signals import SIGNALS, STOPPING, StopRequest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def no_signal_is_ignored() -> Iterator[None]:
    """As SIGHUP is where the tests run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_a_request_and_the_second_has_its_usual_effect(
    number: signal.Signals, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(signals.time, "monotonic", lambda: clock[0])
    usual: list[int] = []
    before = signal.signal(number, lambda number, frame: usual.append(number))
    try:
        with StopRequest() as stop:
            assert not stop.requested
            os.kill(os.getpid(), number)
            assert stop.requested
            assert usual == []
            clock[0] += 1.9
            if number == signal.SIGTERM:  # the scheduler's and that of a parent are one
                os.kill(os.getpid(), number)
                assert usual == []
            clock[0] += 0.2
            os.kill(os.getpid(), number)
            assert usual == [number]
            os.kill(os.getpid(), number)
            assert usual == [number, number]
        while number == signal.SIGINT and "Ctrl-C again" not in capfd.readouterr().err:
            time.sleep(0.01)  # the thread that acknowledges
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize(("first", "second"), [("SIGTERM", "SIGINT"), ("SIGHUP", "SIGTERM")])
def test_another_signal_is_a_second_one_at_once(first: str, second: str) -> None:
    usual: list[int] = []
    number = signal.Signals[second]
    before = signal.signal(number, lambda number, frame: usual.append(number))
    try:
        with StopRequest():
            os.kill(os.getpid(), signal.Signals[first])
            os.kill(os.getpid(), number)
            assert usual == [number]
    finally:
        signal.signal(number, before)


def test_handlers_are_restored_also_on_an_error() -> None:
    def handlers() -> list[object]:
        return [signal.getsignal(number) for number in SIGNALS if number != signal.SIGHUP]

    def fail() -> None:
        with StopRequest():
            assert not set(handlers()) & set(before)
            raise RuntimeError

    before = handlers()
    with pytest.raises(RuntimeError):
        fail()
    assert handlers() == before


def test_sigusr1_is_counted_until_the_end() -> None:
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGUSR1)
            assert (stop.saves, stop.requested) == (1, False)
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGUSR1)  # while the run saves for its end
            assert (stop.saves, stop.requested) == (2, True)
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_without_handlers_there_is_no_grace_period() -> None:
    with StopRequest().grace(1e-3, lambda: pytest.fail("no signal came")):
        assert signal.set_wakeup_fd(-1) == -1
        time.sleep(0.01)


def command(code: str, *numbers: signal.Signals) -> tuple[int, str]:
    """Exit status and errors of a command that says when it is ready for these signals."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        **{"cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True},
    )
    try:
        assert process.stdout is not None
        process.stdout.readline()
        for number in numbers:
            process.send_signal(number)
            time.sleep(0.3)
        _, err = process.communicate(timeout=20)
    finally:
        process.kill()
    return process.returncode, err


DEEP = """
    import hashlib, multiprocessing, sys, time
    from dreamer.system.signals import StopRequest

    with StopRequest(ends_process=True) as stop:
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(1000,))
        child.start()
        if {begun}:
            stop.begin()
        print("ready", child.pid, flush=True)
        hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # no handler runs until it is done
"""


@pytest.mark.parametrize(
    ("begun", "numbers", "status", "last"),
    [
        (False, [signal.SIGINT], 130, "interrupted\n"),
        (False, [signal.SIGTERM], 143, "ended by SIGTERM\n"),
        (True, [signal.SIGINT, signal.SIGINT], 130, f"{STOPPING}\ninterrupted\n"),
        (True, [signal.SIGTERM, signal.SIGINT], 130, "interrupted\n"),
    ],
)
def test_a_command_ends_at_once_although_no_handler_can_run(
    begun: bool, numbers: list[signal.Signals], status: int, last: str
) -> None:
    assert command(DEEP.format(begun=begun), *numbers) == (status, last)


def test_nohup_is_respected() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.requested
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(("number", "last"), [("SIGINT", "interrupted"), ("SIGTERM", "ended by ")])
def test_a_command_removes_incomplete_files(number: str, last: str, tmp_path: Path) -> None:
    code = """
import sys, time
from pathlib import Path
from dreamer.system import files
from dreamer.errors import exit_on_user_error
from dreamer.system.signals import StopRequest

def main():
    with files.undone_on_failure(Path(sys.argv[1])):
        Path(sys.argv[1], "half").touch()
        print("ready", flush=True)
        time.sleep(60)

with StopRequest(ends_process=True):
    status = exit_on_user_error(main)
sys.exit(status)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "made")],
        **{"cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.Signals[number])
    err = process.communicate(timeout=20)[1]
    assert process.returncode == 128 + signal.Signals[number]
    assert err.startswith(last)
    assert list(tmp_path.iterdir()) == []


def test_a_forked_process_has_the_previous_handlers() -> None:
    code = """
import os, signal, sys, time
from dreamer.system.signals import StopRequest

with StopRequest() as stop:
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.write(writing, b"ready")
        time.sleep(60)
        os._exit(0)
    os.read(reading, 5)
    os.kill(child, signal.SIGTERM)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    time.sleep(0.05)
    print(status, stop.requested)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("-15 False\n", "")
