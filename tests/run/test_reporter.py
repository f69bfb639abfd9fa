"""What is shown of an agent while it trains, which must not change how it trains."""

from functools import partial
from pathlib import Path
from typing import Any

import av
import jax
import numpy as np
import pytest

from dreamer.agent.report import open_loop
from dreamer.envs import registry
from dreamer.envs.base import Restart
from dreamer.replay import host
from dreamer.run.evaluate import Evaluation
from dreamer.run.host_store import sequences
from dreamer.run.logger import Logger
from dreamer.run.reporter import Reporter
from tests import tiny, tiny_run
from tests.probe_envs import task

LENGTH = 4  # of a sequence, as in `tiny_run.OPTIONS`


@pytest.fixture(scope="module")
def config(tmp_path_factory: Any) -> Any:
    return tiny_run.config(
        tmp_path_factory.mktemp("run"),
        *(task("Picture"), "eval.episodes=3", "eval.num_envs=2", "seed=5"),
    )


@pytest.fixture(scope="module")
def agent(config: Any) -> Any:
    from dreamer.agent import agent as agents

    env = registry.make(config.env, 1, 0)
    return agents.make_agent(config.agent, env.observation_spec(), env.action_spec())


@pytest.fixture(scope="module")
def params(agent: Any) -> Any:
    return tiny.state(agent, learned=True).params


def never() -> bool:
    return False


def film(reporter: Reporter, params: Any, replayed: Any) -> None:
    reporter.episode(params, 12, never)
    reporter.predictions(params, replayed, 12)


def num_frames(file: Path) -> int:
    with av.open(str(file)) as container:
        return sum(1 for _ in container.decode(video=0))


def test_videos_show_an_episode_and_predictions_and_change_nothing(
    config: Any, agent: Any, params: Any, tmp_path: Path
) -> None:
    replay, before = tiny.filled(agent, LENGTH), host.get_state(tiny.filled(agent, LENGTH))
    with Logger(tmp_path, tensorboard=False) as logger:
        film(Reporter(agent, config, logger), params, partial(sequences, replay))
    files = {file.name: num_frames(file) for file in (tmp_path / "videos").iterdir()}
    assert files.keys() == {"episode-12.mp4", "open_loop-image-12.mp4"}
    assert 4 <= files["episode-12.mp4"] <= 8  # 3 to 7 steps and the first
    assert files["open_loop-image-12.mp4"] == LENGTH
    tiny_run.assert_same(host.get_state(replay), before)
    _, _, index = host.sample(replay, (0, 0), 2)
    assert index.tolist() == [[0, 0], [1, 0]]  # the queue still starts with the first windows


def test_nothing_is_predicted_from_an_empty_replay(
    config: Any, agent: Any, params: Any, tmp_path: Path
) -> None:
    empty = tiny.filled(agent, LENGTH, 4)
    with Logger(tmp_path, tensorboard=False) as logger:
        film(Reporter(agent, config, logger), params, partial(sequences, empty))
    assert [file.name for file in (tmp_path / "videos").iterdir()] == ["episode-12.mp4"]


def test_evaluations_are_logged_and_differ_by_step_and_seed(
    config: Any, agent: Any, params: Any, tmp_path: Path
) -> None:
    with Logger(tmp_path, tensorboard=False) as logger:
        reporter = Reporter(agent, config, logger)
        first, again, later = (reporter.evaluation(params, step, never) for step in (10, 10, 20))
        other = Reporter(agent, config.model_copy(update={"seed": 6}), logger)
        other._policy = reporter._policy  # spares compiling it again
        seeded = other.evaluation(params, 20, never)
        assert reporter.evaluation(params, 30, lambda: True) is None
        reporter.episode(params, 30, lambda: True)
    assert len(tiny_run.lines(tmp_path)) == 4
    assert not (tmp_path / "videos").exists()
    assert first == again
    assert len({numbers["mean"] for numbers in (first, later, seeded)}) == 3
    assert first["episodes"] == 3
    line = tiny_run.lines(tmp_path)[0]
    assert line == {"step": 10} | {f"eval/{key}": value for key, value in first.items()}


def test_environments_restarted_in_an_evaluation_are_reported(
    config: Any, agent: Any, params: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    with Logger(tmp_path, tensorboard=False) as logger:
        reporter = Reporter(agent, config, logger, told.append)
        mended = Evaluation(np.ones(3), np.ones(3), None, (Restart(0, "it broke", True),))
        monkeypatch.setattr("dreamer.run.reporter.evaluate", lambda *_, **__: mended)
        assert reporter.evaluation(params, 10, never) is not None
    assert told == ["in the evaluation, it broke"]


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
