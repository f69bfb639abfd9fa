"""A slow replay that keeps every step in a Python list, for the fast ones to agree with."""

import ml_dtypes
import numpy as np

from dreamer.replay import tree

SPEC = {
    "observation": {"image": ((2, 2, 1), np.uint8), "position": ((3,), np.float32)},
    "action": {"action": ((), np.int32)},
    "reward": ((), np.float32),
    "is_first": ((), bool),
    "is_last": ((), bool),
    "is_terminal": ((), bool),
    "latent": {"deter": ((4,), ml_dtypes.bfloat16), "stoch": ((2,), np.uint8)},
}


def values(rng, spec, leading):
    flat = {
        path: rng.integers(0, 2 if np.dtype(dtype) == bool else 200, (*leading, *shape)).astype(
            dtype
        )
        for path, (shape, dtype) in tree.flatten(spec).items()
    }
    return tree.unflatten(flat)


class Reference:
    """The replay without rings: all steps, and the first that is stored."""

    def __init__(self, num_envs, slots, length, online):
        self.envs = [[] for _ in range(num_envs)]
        self.slots, self.length, self.online = slots, length, online
        self.queue = []

    @property
    def oldest(self):
        return max(0, len(self.envs[0]) - self.slots)

    def add(self, transition):
        flat = tree.flatten(transition)
        for env, steps in enumerate(self.envs):
            steps.append({path: leaf[env].copy() for path, leaf in flat.items()})
        if self.online and len(self.envs[0]) % self.length == 0:
            self.queue += [(env, len(self.envs[0]) - self.length) for env in range(len(self.envs))]
        self.queue = [window for window in self.queue if window[1] >= self.oldest]

    def windows(self):
        firsts = range(self.oldest, len(self.envs[0]) - self.length + 1)
        return {(env, first) for env in range(len(self.envs)) for first in firsts}

    def read(self, env, first):
        rows = [dict(row) for row in self.envs[env][first : first + self.length]]
        for row, following in zip(rows[:-1], rows[1:], strict=True):
            row["is_last",] = row["is_last",] | following["is_first",]
        return rows

    def update(self, index, latent):
        for window, (env, first) in enumerate(index):
            for t in range(1, self.length):
                if first + t >= self.oldest:
                    for path, leaf in tree.flatten({"latent": latent}).items():
                        self.envs[env][first + t][path] = leaf[window, t - 1].copy()
