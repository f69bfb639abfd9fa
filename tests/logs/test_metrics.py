"""Metrics of updates: averages over those that were not skipped, and reports of those that were."""

import jax.numpy as jnp
import numpy as np
import pytest

from dreamer.logs.metrics import SKIPPED, LateMetrics, Reading

NAN = float("nan")


@pytest.fixture
def late() -> LateMetrics:
    metrics = LateMetrics()
    metrics.stack({"b": jnp.zeros(()), SKIPPED: jnp.zeros(()), "a": jnp.zeros(())})
    return metrics


def call(*rows: tuple[float, float, float]) -> np.ndarray:
    """Updates of one call, in the order of names: a, b, skipped."""
    return jnp.array(rows, jnp.float32)


def test_averages_are_those_of_all_updates_but_of_the_call_under_way(late: LateMetrics) -> None:
    late.add(call((1, 10, 0), (2, 20, 0)))
    late.add(call((6, 60, 0)))
    late.add(call((5, 50, 0)))
    assert late.read() == Reading({"a": 3, "b": 30})
    assert late.read() == Reading({})
    assert late.read(wait=True) == Reading({"a": 5, "b": 50})


def test_skipped_updates_are_counted_and_named(late: LateMetrics) -> None:
    late.add(call((1, 10, 0), (NAN, 20, 1), (3, 30, 0), (4, np.inf, 1)))
    assert late.read(wait=True) == Reading({"a": 2, "b": 20}, 2, 1, ("b",))
    late.add(call((NAN, NAN, 1)))
    late.add(call((NAN, 1, 1)))
    assert late.read(wait=True) == Reading({}, 2, 3, ("a",))
    assert late.read(wait=True) == Reading({}, in_a_row=3)
    late.add(call((1, 1, 0)))
    assert late.read(wait=True) == Reading({"a": 1, "b": 1})
