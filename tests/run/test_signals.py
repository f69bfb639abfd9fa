"""A first signal is a wish, a second is an order."""

import os
import signal

import pytest

from dreamer.run.signals import SIGNALS, StopRequest


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_a_wish_and_the_second_acts_as_usual(
    number: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    usual: list[int] = []
    before = signal.signal(number, lambda number, frame: usual.append(number))
    try:
        with StopRequest() as stop:
            assert not stop.requested
            os.kill(os.getpid(), number)
            assert stop.requested
            assert usual == []
            os.kill(os.getpid(), number)
            assert usual == [number]
        answer = "stopping after this step, then saving; Ctrl-C again stops at once\n"
        assert capfd.readouterr().err == (answer if number == signal.SIGINT else "")
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


def test_nohup_is_respected() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.requested
    finally:
        signal.signal(signal.SIGHUP, before)
