"""Recorded episodes in the rings of a replay, row by row."""

from collections.abc import Iterator

import numpy as np
import pytest

from dreamer.replay import host
from dreamer.replay.filling import fill

SPEC = {
    "observation": {"a.b": ((), np.dtype(np.int32))},
    "is_first": ((), np.dtype(bool)),
    "is_last": ((), np.dtype(bool)),
    "latent": {"deter": ((2,), np.dtype(np.float32))},
}


def numbered(*lengths: int) -> Iterator[dict[str, np.ndarray]]:
    """Episodes whose rows count from 1 on."""
    done = 1
    for length in lengths:
        first = np.arange(length) == 0
        rows = np.arange(done, done + length, dtype=np.int32)
        yield {"observation.a.b": rows, "is_first": first, "is_last": np.roll(first, -1)}
        done += length


def test_every_ring_gets_consecutive_rows() -> None:
    replay = host.init(SPEC, 24, 3, 3)
    fill(replay, numbered(5, 2, 9), 16)
    rows = replay.rings["observation", "a.b"]
    # 16 rows for three rings: five each, and one is left over.
    expected = [[1, 2, 3, 4, 5, 0, 0, 0], [6, 7, 8, 9, 10, 0, 0, 0], [11, 12, 13, 14, 15, 0, 0, 0]]
    assert rows.tolist() == expected
    assert np.argwhere(replay.rings["is_first",]).tolist() == [[0, 0], [1, 0], [1, 2]]
    assert not replay.rings["latent", "deter"].any()
    assert (replay.steps, replay.oldest, host.num_items(replay)) == (5, 0, 9)


def test_the_queue_starts_after_the_recorded_steps() -> None:
    replay = host.init(SPEC, 60, 3, 3)
    fill(replay, numbered(15), 15)
    for number in range(5, 9):
        host.add(
            replay,
            {
                "observation": {"a.b": np.full(3, number, np.int32)},
                "is_first": np.zeros(3, bool),
                "is_last": np.zeros(3, bool),
                "latent": {"deter": np.zeros((3, 2), np.float32)},
            },
        )
    _, _, index = host.sample(replay, (0,), 6)
    # Windows of three steps: the first that holds a new step alone starts at 3, the next at 6.
    assert index.tolist() == [[env, start] for start in (3, 6) for env in range(3)]


def test_recorded_and_new_steps_are_neighbours() -> None:
    replay = host.init(SPEC, 8, 1, 3)
    fill(replay, numbered(4), 4)
    host.add(
        replay,
        {
            "observation": {"a.b": np.array([9], np.int32)},
            "is_first": np.array([True]),
            "is_last": np.array([False]),
            "latent": {"deter": np.zeros((1, 2), np.float32)},
        },
    )
    _, batch, _ = host.sample(replay, (0,), 30)
    seen = {tuple(row) for row in batch["observation"]["a.b"].tolist()}
    assert seen == {(1, 2, 3), (2, 3, 4), (3, 4, 9)}


def test_wrong_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="27 rows do not fit 3 rings of 8"):
        fill(host.init(SPEC, 24, 3, 3), numbered(27), 27)
    with pytest.raises(ValueError, match="the episodes have 12 rows instead of 15"):
        fill(host.init(SPEC, 24, 3, 3), numbered(12), 15)
