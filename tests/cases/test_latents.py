"""Latents in the replay: what skipped updates leave alone, and what recorded rows start from."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from dreamer.agents.dreamer import learning
from dreamer.replay import host
from dreamer.replay.filling import fill
from dreamer.rollout.driver import transition_spec
from tests import tiny, tiny_run

NEVER = ("replay.train_ratio=1e-6",)
SKIPPED = ("agent.losses.reward=1e38", "run.max_skipped=1000")  # every loss is infinite


def rings(folder: Path, *changes: str) -> Any:
    """The replay after two runs, of which the second resumes the first."""
    tiny_run.train(folder, *changes, "run.steps=46")
    return tiny_run.train(folder, *changes, "run.steps=60")["arrays"]["replay"]["rings"]


@pytest.fixture(scope="module")
def acted(tmp_path_factory: Any) -> Any:
    return rings(tmp_path_factory.mktemp("acted"), *NEVER)


@pytest.mark.slow
@pytest.mark.parametrize(
    "store",
    [
        ("replay.where=host",),
        ("replay.where=device",),
        ("replay.where=host", "replay.prefetch=thread", "run.updates_per_call=2"),
    ],
    ids=["host", "device", "ahead"],
)
def test_skipped_updates_leave_latents_as_they_are(
    store: tuple[str, ...], acted: Any, tmp_path: Path
) -> None:
    found = rings(tmp_path, *SKIPPED, *store)
    assert max(line.get("optimizer/skipped", 0) for line in tiny_run.lines(tmp_path)) >= 4
    tiny_run.assert_same(found, acted)
    assert np.any(found["latent"]["stoch"])


@pytest.mark.parametrize("latent", ["categorical", "gaussian"])
def test_recorded_rows_start_from_the_zero_state(latent: str) -> None:
    agent = tiny.default(latent=latent)
    replay = host.init(transition_spec(agent), 20, 1, 4)
    rows = tiny.batch(agent, 1, 9)
    episode = {
        name: part[0]
        for name, part in {
            "observation.observation": rows["observation"]["observation"],
            "action.action": rows["action"]["action"],
            **{key: rows[key] for key in ("reward", "is_first", "is_last", "is_terminal")},
        }.items()
    }
    fill(replay, [episode], 10)
    _, batch, _ = host.sample(replay, (0,), 3)
    start, *_ = learning.split_batch(agent, batch)
    assert start["stoch"].shape[:2] == (3, 2)
    assert not any(np.any(x) for x in jax.tree.leaves(start))
