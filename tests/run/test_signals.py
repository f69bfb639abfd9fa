"""A first signal is a wish, a second is an order."""

import os
import signal

import pytest

from dreamer.run import signals
from dreamer.run.signals import SIGNALS, StopRequest


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_a_wish_and_the_second_acts_as_usual(
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
        answer = "stopping after this step, then saving; Ctrl-C again stops at once\n"
        assert capfd.readouterr().err == (answer if number == signal.SIGINT else "")
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


def test_handlers_are_put_back_also_on_an_error() -> None:
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


def test_only_sigterm_leaves_a_time_of_grace() -> None:
    for number, counts in ((signal.SIGINT, False), (signal.SIGTERM, True)):
        with StopRequest() as stop:
            os.kill(os.getpid(), number)
            with stop.grace(1000, str) as grace:
                assert (grace._deadline is not None) == counts


def test_signals_that_are_left_to_the_program_leave_no_time_of_grace() -> None:
    with StopRequest().grace(1000, str):
        assert signal.set_wakeup_fd(-1) == -1


def test_nohup_is_respected() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.requested
    finally:
        signal.signal(signal.SIGHUP, before)
