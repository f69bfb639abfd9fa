"""Hosts stop, save and log at the same iteration, whichever requests it."""

from typing import Any

import pytest

from dreamer.distributed import sync
from dreamer.system.signals import StopRequest
from tests.several import together


def test_one_host_does_not_wait() -> None:
    request = StopRequest()
    alone = sync.make(request)
    assert type(alone) is sync.SingleHost

    def clock() -> bool:
        return True

    assert alone.clock(clock) is clock
    assert alone.barrier(0, save=True) == []
    request.requested, request.saves = True, 3
    assert (alone.stop, alone.saves, alone.first) == (True, 3, True)
    assert not alone.save_requested
    assert alone.broadcast(lambda: {"mean": 1.0}) == {"mean": 1.0}


def test_a_request_of_any_host_applies_to_all_at_the_same_iteration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def work(number: int) -> list[Any]:
        request = StopRequest()
        hosts = sync.make(request)
        seen = []
        for iteration in range(400):
            if number == 2:
                request.requested = iteration >= 50
                request.saves = int(iteration >= 9)
            hosts.barrier(0)
            seen.append((hosts.stop, hosts.saves))
            if hosts.stop:
                break
        return seen

    one, two, three = together(monkeypatch, 3, work)
    assert one == two == three
    assert one[8] == (False, 0)
    assert 50 < len(one) < 50 + sync.WITHOUT_UPDATES + 1
    assert one[-1][0]
    assert one[-1][1] >= 1


def test_the_save_request_of_a_host_is_no_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(number: int) -> list[bool]:
        hosts = sync.MultiHost(StopRequest(), now=iter(range(1000)).__next__)
        seen = []
        for iteration in range(4):  # a second each, so that each has a barrier
            hosts.barrier(0, save=number == 1 and iteration == 2)
            seen.append(hosts.save_requested)
        assert hosts.saves == 0
        return seen

    assert together(monkeypatch, 2, work) == [[False, False, True, False]] * 2


def test_the_clocks_are_those_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(number: int) -> list[bool]:
        hosts = sync.MultiHost(StopRequest(), now=iter(range(1000)).__next__)
        times = iter([False, True, False, True])
        clock = hosts.clock(
            lambda: next(times) if number == 0 else pytest.fail("read on another host")
        )
        seen = []
        for _ in range(4):  # a second each, so that each has a barrier
            hosts.barrier(0, save=False)
            seen.append(clock())
        return seen

    assert together(monkeypatch, 2, work) == [[False, True, False, True]] * 2


def test_barriers_come_about_twice_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    barriers = [0]

    def work(number: int) -> None:
        seconds = [0.0]
        hosts = sync.MultiHost(StopRequest(), now=lambda: seconds[0])
        hosts.clock(lambda: bool(barriers.__setitem__(0, barriers[0] + 1)))
        for iteration in range(3000):
            seconds[0] += 1e-3 if iteration < 2000 else 1e-2
            hosts.barrier(iteration if iteration > 1000 else 0, save=False)

    together(monkeypatch, 2, work)
    # 1000 iterations without updates, 20 apart; 1 s of fast ones; 10 s of slow ones.
    assert 1000 / 20 < barriers[0] < 1000 / 20 + 2 * 12 + 10


def test_messages_are_sent_to_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(number: int) -> Any:
        hosts = sync.make(StopRequest())
        if number:
            assert hosts.to_first([[f"line of {number}"], (1.5, 7)]) == []
        return hosts.barrier(0, save=False), hosts.broadcast(lambda: {"from": number})

    messages, *others = together(monkeypatch, 3, work)
    assert messages[0] == [["line of 1"], [1.5, 7], ["line of 2"], [1.5, 7]]
    assert [other[0] for other in others] == [[], []]
    assert [each[1] for each in (messages, *others)] == [{"from": 0}] * 3
