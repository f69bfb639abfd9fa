"""Evaluations and videos of a run under way, which must not change how it trains."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest

from dreamer.envs.base import Restart
from dreamer.replay import host
from dreamer.rollout.evaluate import EvaluationResult
from dreamer.training.hooks.evaluation import Videos
from dreamer.training.trainer import Trainer
from tests import tiny, tiny_run
from tests.probe_envs import task

LENGTH = 4  # of a sequence, as in `tiny_run.OPTIONS`


@pytest.fixture(scope="module")
def run(tmp_path_factory: Any) -> Any:
    """Before its first iteration, with weights as if some had been learned."""
    options = (task("Picture"), "eval.every=100", "eval.episodes=3", "eval.num_envs=2", "seed=5")
    folder = tmp_path_factory.mktemp("run")
    with Trainer(tiny_run.config(folder, *options, "log.video_every=100")) as trainer:
        learner: Any = trainer.loop.learner
        learner.replace(tiny.state(trainer.loop.agent, learned=True))
        learner.replay = tiny.filled(trainer.loop.agent, LENGTH)
        yield trainer


def at(run: Any, step: int, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Any:
    """The run at another step."""
    monkeypatch.setattr(run.loop, "step", step)
    for name, value in changes.items():
        monkeypatch.setattr(run, name, value)
    return run


def lines(run: Any) -> list[dict[str, Any]]:
    return tiny_run.lines(run.path)


def num_frames(file: Path) -> int:
    with av.open(str(file)) as container:
        return sum(1 for _ in container.decode(video=0))


def test_evaluations_are_logged_and_differ_by_step_and_seed(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = run.evaluation._summary
    first, again, later = (summary(at(run, step, monkeypatch)) for step in (10, 10, 20))
    seeded = summary(at(run, 20, monkeypatch, config=run.config.model_copy(update={"seed": 6})))
    stopping = SimpleNamespace(requested=True)
    assert summary(at(run, 30, monkeypatch, stop=stopping)) is None
    assert len(lines(run)) == 4
    assert first == again
    assert len({numbers["mean"] for numbers in (first, later, seeded)}) == 3
    assert first["episodes"] == 3
    assert lines(run)[0] == {"step": 10} | {f"eval/{key}": x for key, x in first.items()}


def test_environments_restarted_in_an_evaluation_are_reported(
    run: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = EvaluationResult(np.ones(3), np.ones(3), None, (Restart(0, "it broke", True),))
    monkeypatch.setattr("dreamer.training.hooks.evaluation.evaluate", lambda *_, **__: broken)
    assert run.evaluation._summary(at(run, 40, monkeypatch)) is not None
    assert capsys.readouterr().err == "warning: in the evaluation, it broke\n"


def test_videos_show_an_episode_and_predictions_and_change_nothing(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    videos, replay = Videos(run), run.loop.learner.replay
    before = host.get_state(tiny.filled(run.loop.agent, LENGTH))
    videos.on_step(at(run, 99, monkeypatch))
    assert not list((run.path / "videos").glob("*"))
    videos.on_step(at(run, 101, monkeypatch))
    files = {file.name: num_frames(file) for file in (run.path / "videos").iterdir()}
    assert files.keys() == {"episode-101.mp4", "open_loop-image-101.mp4"}
    assert 4 <= files["episode-101.mp4"] <= 8  # 3 to 7 steps and the first
    assert files["open_loop-image-101.mp4"] == LENGTH
    tiny_run.assert_same(host.get_state(replay), before)
    _, _, index = host.sample(replay, (0, 0), 2)
    assert index.tolist() == [[0, 0], [1, 0]]  # the queue still starts with the first windows


def test_nothing_is_predicted_from_an_empty_replay_or_after_a_request_to_stop(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    videos = Videos(at(run, 102, monkeypatch))
    monkeypatch.setattr(run.loop.learner, "replay", tiny.filled(run.loop.agent, LENGTH, 4))
    videos.on_step(at(run, 200, monkeypatch))
    stopping = SimpleNamespace(requested=True)
    videos.on_step(at(run, 300, monkeypatch, stop=stopping))
    names = {file.name for file in (run.path / "videos").iterdir()}
    assert names - {"episode-101.mp4", "open_loop-image-101.mp4"} == {"episode-200.mp4"}
