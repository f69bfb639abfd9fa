"""Episodes made up for tests, and folders of them."""

from pathlib import Path

import numpy as np

from dreamer.datasets import recorded
from dreamer.datasets.recorded import Episode


def episode(rows: int, seed: int = 0, terminal: bool = True) -> Episode:
    """A whole one as of `tests.probe_envs` with a discrete action, of random numbers."""
    rng = np.random.default_rng(seed)
    first, last = np.zeros(rows, bool), np.zeros(rows, bool)
    first[0] = last[-1] = True
    action = rng.integers(0, 3, rows).astype(np.int32)
    reward = rng.normal(size=rows).astype(np.float32)
    action[-1] = reward[0] = 0
    return {
        "observation.observation": rng.normal(size=(rows, 3)).astype(np.float32),
        "action.action": action,
        "reward": reward,
        "is_first": first,
        "is_last": last,
        "is_terminal": last & terminal,
    }


def folder(path: Path, lengths: list[int]) -> Path:
    """Saves an episode of each of these numbers of rows."""
    path.mkdir()
    for number, rows in enumerate(lengths):
        recorded.save(path, number, episode(rows, number, terminal=number % 2 == 0))
    return path
