"""Run by `test_devices` in a process with eight devices: any number of them learns the same, and a
save of any number resumes with any other."""

import itertools
from copy import deepcopy
from typing import Any

import jax
import numpy as np

from dreamer.ops.packing import Packing
from dreamer.training.host_loop import HostLoop
from tests import tiny
from tests.training.test_device_loop import config, device_loop, until
from tests.training.test_host_learner import LENGTH, make, restore

COUNTS = (1, 2, 4, 8)
BATCH = 8


def learn(count: int) -> Any:
    """Two updates of known weights and rows: before and after."""
    agent = tiny.agent(tiny.VECTOR, tiny.DISCRETE, optimizer={"warmup": 0})
    learner = make(agent, count, batch=BATCH)
    learner.replay = tiny.filled(agent, LENGTH)
    before = jax.device_get(tiny.state(agent, learned=True))
    restore(learner, before, {"updates": 0, "owed": 0})
    learner.train(2)
    return before, jax.device_get(learner.state)


def check_updates() -> None:
    found = {count: learn(count) for count in COUNTS}
    before, one = found[1]
    squares = jax.tree.leaves(Packing.of(one.params).unpack(one.optimizer[1].nu))
    for count in COUNTS[1:]:
        several = found[count][1]
        compared, total, most = 0, 0, 0.0
        for start, x, y, square in zip(
            *map(jax.tree.leaves, (before.params, one.params, several.params)), squares, strict=True
        ):
            # The optimiser divides by the size of the gradient: entries of rounding are left out.
            clear = np.sqrt(square) > 1e-2 * np.sqrt(square).max()
            np.testing.assert_allclose((y - start)[clear], (x - start)[clear], rtol=1e-2, atol=1e-7)
            compared, total = compared + int(clear.sum()), total + clear.size
            most = max(most, float(np.abs(y - x)[clear].max(initial=0)))
        assert compared > total / 2
        print(f"{count} devices: the same within {most:.1e}")


SIZES = ("env.num_envs=8", "replay.batch_size=8", "replay.capacity=800")


def loop(kind: str, count: int) -> Any:
    if kind == "compiled":
        return device_loop(*SIZES, devices=count)
    given = config("run.loop=host", f"replay.where={kind}", *SIZES)
    made = HostLoop(given, jax.devices()[:count])
    made.start()
    return made


def check_saves() -> None:
    kinds = [*itertools.product(("host", "device", "compiled"), COUNTS)]
    loops = {kind: loop(*kind) for kind in kinds}
    saves = {}
    for kind, one in loops.items():
        until(one, 200)
        assert one.learner.updates > 0
        arrays = deepcopy(one.get_arrays()[0])
        saves[kind] = jax.device_get(one.learner.state), arrays, deepcopy(one.get_counters())
    for source, (state, arrays, counters) in saves.items():
        for target, one in loops.items():
            noted = one.set_state(state, deepcopy(arrays), deepcopy(counters))
            assert target != source or noted == "", noted
            assert (one.step, one.learner.updates) == (
                counters["step"],
                counters["learner"]["updates"],
            )
            jax.tree.map(np.testing.assert_array_equal, jax.device_get(one.learner.state), state)
            rings, saved = one.get_arrays()[0]["replay"]["rings"], arrays["replay"]["rings"]
            jax.tree.map(np.testing.assert_array_equal, rings, saved)
            if source[0] == target[0]:
                envs = one.get_arrays()[0]["env"]
                jax.tree.map(np.testing.assert_array_equal, envs, arrays["env"])
    for one in loops.values():
        before = one.learner.updates
        until(one, one.step + 80)
        assert one.learner.updates > before
        assert all(
            np.isfinite(x).all() for x in jax.tree.leaves(jax.device_get(one.learner.params))
        )
    print(f"{len(saves)} saves restored in {len(loops)} loops each")


if __name__ == "__main__":
    assert len(jax.devices()) == 8
    check_updates()
    check_saves()
