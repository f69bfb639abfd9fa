"""Fills an empty replay on the host with recorded steps."""

from collections.abc import Iterable, Mapping

import numpy as np

from dreamer.config.agent import NO_CLASS
from dreamer.replay.host import Replay


def fill(replay: Replay, episodes: Iterable[Mapping[str, np.ndarray]], rows: int) -> Replay:
    """Concatenates episodes, splits them into N equal parts, one for each ring; in place.

    Up to N - 1 rows at the end are dropped. Latents are those of the zero state, until training
    replaces them. The online queue starts after these steps: it would serve them in their order.

    Args:
        replay: An empty one.
        episodes: Rows without latents, arrays by their path in the spec joined by dots.
        rows: Of all episodes together.

    Raises:
        ValueError: The rings do not hold `rows`, or the episodes have fewer.
    """
    each = rows // replay.num_envs
    if each > replay.slots:
        raise ValueError(f"{rows} rows do not fit {replay.num_envs} rings of {replay.slots}")
    done, end = 0, each * replay.num_envs
    for episode in episodes:
        # Keys of observations and actions may have dots themselves.
        parts = {tuple(name.split(".", 1)): part for name, part in episode.items()}
        length, taken = len(episode["is_first"]), 0
        while taken < length and done < end:
            env, slot = divmod(done, each)
            count = min(length - taken, each - slot)
            for path, part in parts.items():
                replay.rings[path][env, slot : slot + count] = part[taken : taken + count]
            taken, done = taken + count, done + count
    if done < end:
        raise ValueError(f"the episodes have {done} rows instead of {rows}")
    for path, ring in replay.rings.items():
        if path[0] == "latent" and ring.dtype == np.uint8:
            ring[:, :each] = NO_CLASS
    replay.steps = each
    replay.served = replay.queueable
    return replay
