"""An update whose loss or gradient is not finite changes nothing that later ones build on."""

from functools import cache, partial
from typing import Any

import jax
import numpy as np
import pytest

from dreamer.agents.dreamer import learning
from tests import tiny
from tests.agents.dreamer.test_frozen import same


@cache
def learner() -> Any:
    agent = tiny.agent(tiny.VECTOR, tiny.CONTINUOUS, optimizer={"warmup": 0})
    return agent, jax.jit(partial(learning.train_step, agent))


@pytest.mark.parametrize(
    ("key", "value"), [("reward", np.nan), ("observation", np.nan), ("observation", np.inf)]
)
def test_it_is_skipped(key: str, value: float) -> None:
    agent, step = learner()
    before, batch = tiny.state(agent, learned=True), tiny.batch(agent, 4, 4)
    whole = batch["observation"]["observation"] if key == "observation" else batch[key]
    spoilt = whole.copy()
    spoilt[1, 2] = value
    broken = batch | {key: {"observation": spoilt} if key == "observation" else spoilt}
    after, _, metrics = step(before, broken, jax.random.key(0))
    assert metrics["optimizer/skipped"] == 1
    assert not np.isfinite(metrics["loss/total"])
    assert after.updates == before.updates + 1
    assert same(after.replace(updates=before.updates), before)

    learned, latents, metrics = step(after, batch, jax.random.key(0))
    assert metrics["optimizer/skipped"] == 0
    assert not same(learned.params, before.params)
    assert all(np.any(x) for x in jax.tree.leaves(latents))
