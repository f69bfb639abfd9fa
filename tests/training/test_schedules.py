"""Clocks: exact counts, whatever the strides of the counter."""

import random
from fractions import Fraction

import pytest

from dreamer.training.schedules import EverySeconds, EverySteps, Ratio


def test_every_steps_fires_once_per_multiple_passed() -> None:
    clock = EverySteps(10)
    steps = [0, 4, 9, 10, 10, 11, 19, 35, 36, 40]
    assert [step for step in steps if clock(step)] == [10, 35, 40]


def test_every_steps_never_fires_with_period_zero() -> None:
    clock = EverySteps(0)
    assert not any(clock(step) for step in range(5))


@pytest.mark.parametrize("stop", range(12))
def test_every_steps_resumes_from_the_step_alone(stop: int) -> None:
    steps = [0, 3, 6, 9, 12, 15, 18, 21, 24, 27, 30, 33]
    whole = EverySteps(7)
    expected = [whole(step) for step in steps]
    first = EverySteps(7)
    fired = [first(step) for step in steps[: stop + 1]]
    second = EverySteps(7, start=steps[stop])
    assert fired + [second(step) for step in steps[stop + 1 :]] == expected


def test_every_seconds_counts_from_when_it_last_fired() -> None:
    time = 100.0
    clock = EverySeconds(10, now=lambda: time)
    fired = []
    for time in (100, 109.9, 110, 111, 125, 134.9, 135):  # noqa: B007, read by the clock
        fired.append(clock())
    assert fired == [False, False, True, False, True, False, True]


def test_every_seconds_always_fires_with_period_zero() -> None:
    clock = EverySeconds(0, now=lambda: 5.0)
    assert clock()
    assert clock()


@pytest.mark.parametrize("per_step", [1 / 32, 0.29, 1 / 3, 3.7, 1.0, 0.0, 1e-12])
def test_ratio_gives_the_floor_of_steps_times_ratio(per_step: float) -> None:
    rng = random.Random(0)
    ratio = Ratio(per_step)
    exact = Fraction(per_step).limit_denominator(10**6)
    step, given = 1000, ratio.updates(1000)
    for _ in range(300):
        step += rng.randrange(20)
        given += ratio.updates(step)
        assert given == (step - 1000) * exact.numerator // exact.denominator


def test_ratio_owes_nothing_for_steps_before_its_first_call() -> None:
    ratio = Ratio(2.0)
    assert ratio.updates(1024) == 0
    assert ratio.updates(1025) == 2


def test_ratio_does_not_lose_updates_to_rounding() -> None:
    ratio = Ratio(0.29)  # 100 * 0.29 is 28.999999999999996 in floating point
    ratio.updates(0)
    assert ratio.updates(100) == 29


@pytest.mark.parametrize("stop", [0, 1, 5, 9])
def test_ratio_resumes_exactly(stop: int) -> None:
    steps = [5, 6, 8, 9, 9, 13, 20, 21, 22, 30]
    whole = Ratio(0.3)
    expected = [whole.updates(step) for step in steps]
    first, second = Ratio(0.3), Ratio(0.3)
    given = [first.updates(step) for step in steps[:stop]]
    second.set_state(first.get_state())
    assert given + [second.updates(step) for step in steps[stop:]] == expected


def test_ratio_changed_on_resume_holds_from_there_on() -> None:
    slow, fast = Ratio(0.25), Ratio(0.5)
    slow.updates(0)
    assert slow.updates(1002) == 250  # half an update is left over
    fast.set_state(slow.get_state())
    assert fast.updates(1003) == 1


def test_ratio_refuses_to_go_backwards() -> None:
    ratio = Ratio(1.0)
    ratio.updates(5)
    with pytest.raises(ValueError, match="step=4"):
        ratio.updates(4)
