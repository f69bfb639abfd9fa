"""Puts recorded steps into an empty replay on the host."""

from collections.abc import Iterable, Mapping

import numpy as np

from dreamer.config.agent import NO_CLASS
from dreamer.replay import tree
from dreamer.replay.host import Replay


def fill(replay: Replay, episodes: Iterable[Mapping[str, np.ndarray]], rows: int) -> Replay:
    """Lays episodes end to end, cuts them into N equal parts, puts one into each ring; in place.

    Rows that are left over at the end, fewer than N, are dropped. Latents are those of the zero
    state, until training replaces them. The online queue begins behind these steps: it would serve
    them in their order.

    Args:
        replay: an empty one.
        episodes: rows without latents, arrays by their path in the spec joined by dots.
        rows: of all episodes together.

    Raises:
        ValueError: the rings do not hold so many, or there are fewer rows than said.
    """
    each = rows // replay.num_envs
    if each > replay.slots:
        raise ValueError(f"{rows} rows do not fit {replay.num_envs} rings of {replay.slots}")
    done, end = 0, each * replay.num_envs
    for episode in episodes:
        parts = {_path(name): part for name, part in episode.items()}
        length, taken = len(episode["is_first"]), 0
        while taken < length and done < end:
            env, slot = divmod(done, each)
            count = min(length - taken, each - slot)
            for path, part in parts.items():
                replay.rings[path][env, slot : slot + count] = part[taken : taken + count]
            taken, done = taken + count, done + count
    if done < end:
        raise ValueError(f"{done} rows came of {rows}")
    for path, ring in replay.rings.items():
        if path[0] == "latent" and ring.dtype == np.uint8:
            ring[:, :each] = NO_CLASS
    replay.steps = each
    replay.served = replay.steps // replay.length * replay.num_envs
    return replay


def _path(name: str) -> tree.Path:
    """Keys of observations and actions may have dots themselves."""
    return tuple(name.split(".", 1))
