"""Playing with a trained agent: what is printed and written, and what is refused."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dreamer.cli import eval as command
from dreamer.envs.base import Restart
from dreamer.errors import UserError
from dreamer.rollout.evaluate import EvaluationResult
from tests import tiny_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: Any) -> Path:
    return tiny_run.finished(tmp_path_factory)[0]


def play(run: Path, out: Path, *options: str) -> dict[str, Any]:
    assert command.main([f"run={run}", f"out={out}", "num_envs=2", "platform=cpu", *options]) == 0
    return json.loads(out.read_text())


def test_table_json_and_video(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = sorted(run.rglob("*"))
    out = tmp_path / "made" / "result.json"
    result = play(run, out, "episodes=5", "video=true", "seed=3")
    assert sorted(run.rglob("*")) == files
    returns, lengths = result.pop("returns"), result.pop("lengths")
    assert len(returns) == len(lengths) == 5  # exactly, though two environments do not divide it
    assert all(3 <= length <= 7 for length in lengths)
    assert result == {
        **{"step": 100, "seed": 3, "greedy": False, "checkpoint": "newest", "episodes": 5},
        **{"mean": np.mean(returns), "std": np.std(returns), "median": np.median(returns)},
        **{"iqm": np.mean(sorted(returns)[1:4]), "min": min(returns), "max": max(returns)},
        "length": np.mean(lengths),
    }
    text = capsys.readouterr().out
    assert "probe/Drawn-v0" in text
    assert ", step 100" in text
    assert re.search(rf"\| mean return +\| +{result['mean']:.2f} \|", text)
    video = out.with_suffix(".mp4")
    assert f"written to {out}, the first episode to {video}" in text
    assert video.stat().st_size > 500


def test_failures_are_reported(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    restarted = EvaluationResult(np.ones(2), np.ones(2), None, (Restart(0, "it broke", True),))
    monkeypatch.setattr("dreamer.cli.evaluate_run.evaluate", lambda *_, **__: restarted)
    play(run, tmp_path / "result.json", "episodes=2")
    assert capsys.readouterr().out.startswith("it broke\n")


def test_greedy_repeats_and_differs_from_samples(run: Path, tmp_path: Path) -> None:
    """Once into the run folder, the default place of the result."""
    options = ("episodes=4", "seed=3")
    one = play(run, tmp_path / "one.json", "greedy=true", *options)
    copy = tiny_run.copy(run, tmp_path / "run")
    assert command.main([f"run={copy}", "num_envs=2", "greedy=true", *options]) == 0
    same = json.loads((copy / "evaluation-100-seed3-greedy.json").read_text())
    sampled = play(run, tmp_path / "sampled.json", *options)
    assert one == same
    assert one["greedy"] is True
    assert one["lengths"] == sampled["lengths"]  # the seed decides them
    assert one["returns"] != sampled["returns"]


def test_a_checkpoint_copied_elsewhere_plays_the_same(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "agent"
    shutil.copytree(run / "checkpoints" / "100", copy / "100")
    shutil.copy(run / "config.yaml", copy)
    options = ("episodes=2", "seed=3", "greedy=true")
    assert play(copy / "100", tmp_path / "a.json", *options) == play(
        run, tmp_path / "b.json", *options
    )
    assert command.main([f"run={copy / '100'}", "num_envs=2", "platform=cpu", *options]) == 0
    assert (copy / "evaluation-100-seed3-greedy.json").exists()


def test_an_environment_that_is_not_the_agents_is_refused(run: Path, tmp_path: Path) -> None:
    copy = tiny_run.copy(run, tmp_path / "run")
    config = copy / "config.yaml"
    config.write_text(config.read_text().replace("probe/Drawn-v0", "probe/Steered-v0"))
    message = refused(f"run={copy}", "episodes=1", "trust=true")
    assert message.startswith("action 'action': the agent expects int32 () of 3 classes, but")


def refused(*options: str) -> str:
    with pytest.raises(UserError) as caught:
        command.main([*options, "platform=cpu"])
    return str(caught.value)


def test_a_missing_run_is_refused(tmp_path: Path) -> None:
    message = refused(f"run={tmp_path / 'missing'}")
    assert (
        message == f"run={tmp_path / 'missing'} is not a folder; name the folder of a training run"
    )
    assert "is not the folder of a run: it has no config.yaml of one" in refused(f"run={tmp_path}")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_checkpoint_is_refused(run: Path, tmp_path: Path) -> None:
    assert "no best checkpoint" in refused(f"run={run}", "checkpoint=best")
    (tmp_path / "config.yaml").write_text((run / "config.yaml").read_text())
    message = refused(f"run={tmp_path}")
    assert message.startswith(f"no newest checkpoint in {tmp_path}; train first")
    assert [file.name for file in tmp_path.iterdir()] == ["config.yaml"]


def test_no_video_of_what_cannot_be_seen(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("dreamer.cli.evaluate_run.evaluate")  # refused before anything is played
    copy = tiny_run.copy(run, tmp_path / "run")
    config = copy / "config.yaml"
    config.write_text(config.read_text().replace("probe/Drawn-v0", "probe/Walk-v0"))
    assert "cannot render; use video=false" in refused(
        f"run={copy}", "episodes=1", "video=true", "trust=true"
    )


def test_where_nothing_can_be_written_nothing_is_played(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("dreamer.cli.evaluate_run.evaluate")
    (tmp_path / "file").write_text("")
    message = refused(f"run={run}", f"out={tmp_path}/file/a.json")
    assert message.startswith(f"cannot write {tmp_path}/file/a.json: Not a directory; ")
    assert "Is a directory" in refused(f"run={run}", f"out={tmp_path}")
    (tmp_path / "a.mp4").mkdir()
    message = refused(f"run={run}", f"out={tmp_path}/a.json", "video=true")
    assert message.startswith(f"cannot write {tmp_path}/a.mp4: Is a directory; ")
    assert "is the name of a video" in refused(f"run={run}", f"out={tmp_path}/b.mp4")
