"""Frozen networks stay bit for bit as they are, and the others learn as without them."""

from functools import cache, partial
from typing import Any

import jax
import numpy as np
import pytest

from dreamer.agents.dreamer import learning
from dreamer.errors import UserError
from tests import tiny

B, T = 4, 4
FROZEN = ("encoder", "rssm", "critic")


@cache
def learner(frozen: tuple[str, ...]) -> Any:
    agent = tiny.agent(
        tiny.VECTOR, tiny.CONTINUOUS, frozen=frozen, optimizer={"warmup": 0, "learning_rate": 1e-2}
    )
    return agent, jax.jit(partial(learning.train_step, agent))


def updated(frozen: tuple[str, ...], state: Any, times: int = 1) -> Any:
    agent, step = learner(frozen)
    for _ in range(times):
        state, _, metrics = step(state, tiny.batch(agent, B, T), jax.random.key(0))
    return state, metrics


def same(ours: Any, theirs: Any) -> bool:
    """Bit for bit: minus zero is not zero."""
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)


def test_frozen_networks_keep_every_bit() -> None:
    """Also those that learned until now, whose momentum would carry them on."""
    fresh = tiny.state(learner(FROZEN)[0], learned=True)
    zero = jax.tree.map(lambda x: x.at[(0,) * x.ndim].set(-0.0), fresh.params["rssm"])
    fresh = fresh.replace(params=fresh.params | {"rssm": zero})
    moving, _ = updated((), fresh, times=2)
    for before in (fresh, moving):
        after, _ = updated(FROZEN, before, times=2)
        for name, part in after.params.items():
            assert same(part, before.params[name]) == (name in FROZEN), name
    assert not same(moving.params["rssm"], fresh.params["rssm"])


def test_the_others_learn_as_without() -> None:
    before = tiny.state(learner(FROZEN)[0], learned=True)
    (ours, metrics), (theirs, whole) = updated(FROZEN, before), updated((), before)
    for name in set(ours.params) - {*FROZEN}:
        pairs = jax.tree.map(
            partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5),
            ours.params[name],
            theirs.params[name],
        )
        assert jax.tree.leaves(pairs) == []
    assert 0 < metrics["optimizer/update_norm"] < whole["optimizer/update_norm"]
    assert 0 < metrics["optimizer/gradient_norm"] < whole["optimizer/gradient_norm"]


def test_the_slow_critic_goes_on_to_a_frozen_critic() -> None:
    before = tiny.state(learner(FROZEN)[0], learned=True)
    after, _ = updated(FROZEN, before)
    expected = jax.tree.map(
        lambda slow, fast: 0.98 * slow + 0.02 * fast, before.slow_critic, before.params["critic"]
    )
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), after.slow_critic, expected
    )


def test_a_network_that_is_not_there_cannot_be_frozen() -> None:
    with pytest.raises(UserError, match="agent.frozen names mask, .*; leave it out"):
        tiny.agent(tiny.VECTOR, tiny.CONTINUOUS, frozen=("mask",))
