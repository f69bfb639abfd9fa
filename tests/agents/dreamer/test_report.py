"""Open-loop predictions."""

from typing import Any

import jax
import numpy as np
import pytest
from dm_env import specs

from dreamer.agents.dreamer.report import open_loop
from tests import tiny

LENGTH = 4  # of a sequence


@pytest.fixture(scope="module")
def agent() -> Any:
    image = {"image": specs.BoundedArray((16, 16, 3), np.uint8, 0, 255, "image")}
    small = {"mults": [1, 1]}
    return tiny.agent(image, tiny.DISCRETE, encoder=small, decoder=small)


@pytest.fixture(scope="module")
def params(agent: Any) -> Any:
    return tiny.state(agent, learned=True).params


def test_open_loop_sees_only_the_context(agent: Any, params: Any) -> None:
    predict = jax.jit(lambda batch: open_loop(agent, params, batch, 2, jax.random.key(0))["image"])
    batch = tiny.batch(agent, 40, LENGTH)  # so that in some of them a class flips
    batch["is_first"][:] = False
    original = predict(batch)
    assert original.shape == (40, LENGTH, 16, 16, 3)

    def changed(name: str, step: int) -> list[bool]:
        """Whether predictions of each step change with this row of the batch."""
        other = jax.tree.map(np.copy, batch)
        part = other[name]["image" if name == "observation" else "action"]
        part[:, step] = 255 - part[:, step] if name == "observation" else (part[:, step] + 1) % 3
        return (np.asarray(predict(other)) != original).any((0, 2, 3, 4)).tolist()

    # Row 0 is the context step of the sequence, whose latent is given; rows 1 and 2 are observed.
    assert changed("observation", 0) == [False] * 4
    assert changed("observation", 2)[1:] == [True] * 3
    assert changed("observation", 3) == [False] * 4
    assert changed("observation", 4) == [False] * 4
    # The action of row 2 leads to row 3, the first that is imagined.
    assert changed("action", 2) == [False, False, True, True]
    assert changed("action", 4) == [False] * 4
