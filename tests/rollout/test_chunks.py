"""Rows leave a stream in order, the newest only after the next arrives."""

from typing import Any

import numpy as np

from dreamer.rollout.chunks import Stream, join, stack, truncated


def rows(*numbers: int, last: int | None = None) -> dict[str, Any]:
    """A chunk of two environments, in which the second ends at row `last`."""
    count = len(numbers)
    is_last = np.zeros((count, 2), bool)
    if last is not None:
        is_last[last, 1] = True
    column = np.array(numbers, np.float32)[:, None] + [0, 100]
    return {
        "action": {"action": np.ones((count, 2, 3), np.float32)},
        "reward": column.astype(np.float32),
        "is_first": np.zeros((count, 2), bool),
        "is_last": is_last,
        "is_terminal": is_last.copy(),
    }


def taken(stream: Stream) -> list[float]:
    found = []
    while stream.ready:
        found.append(stream.take()["reward"].tolist()[0])
    return found


def test_the_newest_row_is_held_back_until_the_next_arrives() -> None:
    stream = Stream()
    assert not stream.ready
    stream.put(rows(0, 1, 2))
    assert taken(stream) == [0, 1]
    stream.put(rows(3))
    assert taken(stream) == [2]


def test_a_broken_stream_truncates_its_episodes_and_starts_others() -> None:
    stream = Stream()
    stream.put(rows(0, 1, last=1))
    stream.take()
    stream.break_off()
    stream.break_off()  # the next actor died before it sent anything
    end = stream.take()
    assert not stream.ready
    assert end["is_last"].tolist() == [True, True]
    assert end["is_terminal"].tolist() == [False, True]  # as it ended by itself
    assert end["reward"].tolist() == [1, 101]
    assert not end["action"]["action"].any()
    stream.put(rows(2, 3))
    assert taken(stream) == [2]


def test_a_stream_that_breaks_before_its_first_row_has_none() -> None:
    stream = Stream()
    stream.break_off()
    assert not stream.ready
    stream.put(rows(0))
    assert not stream.ready


def test_rows_are_not_modified() -> None:
    row = rows(1)
    truncated(row)
    assert not row["is_last"].any()
    assert row["action"]["action"].all()


def test_stack_and_join() -> None:
    one = Stream()
    one.put(rows(0, 1, 2))
    parts = [one.take(), one.take()]
    np.testing.assert_equal(stack(parts), rows(0, 1))
    assert join(parts)["reward"].tolist() == [0, 100, 1, 101]
    assert join(parts)["action"]["action"].shape == (4, 3)
