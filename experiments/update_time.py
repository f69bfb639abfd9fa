"""Times one gradient update at several sizes, with vector and image observations, on random data.

    python experiments/update_time.py [size ...]         # default: nano 1m 12m

Prints a Markdown table of medians. Batch 16 x 64, one device, the published agent; compilation is
not counted.
"""

import statistics
import sys
import time
from functools import partial

import jax
import numpy as np
from dm_env import specs

from dreamer import compose, parallel
from dreamer.agent import agent as agents
from dreamer.run.policy import transition_spec

REPEATS = 5
BATCH = 16, 64  # sequences, and trained steps of each
OBSERVATIONS = {
    "vector": {"observation": specs.Array((24,), np.float32, "observation")},
    "image 64x64x3": {"image": specs.BoundedArray((64, 64, 3), np.uint8, 0, 255, "image")},
}
ACTIONS = {"action": specs.BoundedArray((6,), np.float32, -1, 1, "action")}


def random_batch(agent: agents.Agent, batch_size: int, length: int) -> dict:
    """One call's batch [1, 1, B, T + 1, ...] of noise."""
    rng = np.random.default_rng(0)

    def leaf(value: object) -> object:
        if isinstance(value, dict):
            return {key: leaf(part) for key, part in value.items()}
        shape, dtype = value
        shape = (1, 1, batch_size, length + 1, *shape)
        if np.issubdtype(dtype, np.integer):
            return rng.integers(0, 2, shape).astype(dtype)
        return (
            np.zeros(shape, bool)
            if np.issubdtype(dtype, bool)
            else rng.normal(size=shape).astype(dtype)
        )

    return leaf(transition_spec(agent))


def seconds_per_update(
    size: str, observation: str, agent_name: str = "dreamerv3"
) -> tuple[float, float]:
    """Median seconds of an update and seconds of its compilation."""
    config = compose.compose([f"size={size}", f"agent={agent_name}"])
    agent = agents.make_agent(config.agent, OBSERVATIONS[observation], ACTIONS)
    devices = jax.local_devices()[:1]
    key = jax.random.key(0)
    state = parallel.replicate(jax.jit(partial(agents.init, agent))(key), devices)
    key = parallel.replicate(key, devices)
    update = parallel.compile_updates(partial(agents.train_step, agent), devices)
    batch = jax.device_put(random_batch(agent, *BATCH))
    start = time.perf_counter()
    state, _, metrics = jax.block_until_ready(update(state, batch, key))
    compiled = time.perf_counter() - start
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        state, _, metrics = jax.block_until_ready(update(state, batch, key))
        times.append(time.perf_counter() - start)
    return statistics.median(times), compiled


def main() -> None:
    print("| size | observation | seconds per update | first call, seconds |\n|---|---|---|---|")
    for size in sys.argv[1:] or ["nano", "1m", "12m"]:
        for observation in OBSERVATIONS:
            median, compiled = seconds_per_update(size, observation)
            print(f"| {size} | {observation} | {median:.3f} | {compiled:.0f} |", flush=True)


if __name__ == "__main__":
    main()
