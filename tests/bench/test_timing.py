"""Timing of calls."""

import time

import jax.numpy as jnp

from dreamer.bench.timing import LEAST, Budget, copy, matrix_product, measure


def test_calls_are_warmed_up_and_counted() -> None:
    calls = []
    timing = measure(lambda: calls.append(0), Budget(repeats=7, seconds=60), warm_up=2)
    assert timing.repeats == 7
    assert len(calls) == 9


def test_a_slow_call_is_repeated_a_few_times_only() -> None:
    timing = measure(lambda: time.sleep(0.02), Budget(repeats=50, seconds=0.01), warm_up=0)
    assert timing.repeats == LEAST
    assert timing.median >= 0.02


def test_the_median_lies_between_the_quartiles() -> None:
    pauses = iter([0.001, 0.03, 0.002, 0.02, 0.01] * 2)
    timing = measure(lambda: time.sleep(next(pauses)), Budget(repeats=5, seconds=60), warm_up=5)
    assert 0.002 <= timing.low < 0.01 <= timing.median < 0.02 <= timing.high < 0.03


def test_a_large_product_and_a_large_copy_have_a_speed() -> None:
    for limit in (matrix_product(jnp.float32, Budget(repeats=3, seconds=1)), copy(Budget(3, 1))):
        timing, amount = limit
        assert 1e8 < amount / timing.low < 1e16
