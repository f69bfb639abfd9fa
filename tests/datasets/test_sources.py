"""Recorded episodes from the replay of a run, and what is refused of folders."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dreamer.datasets import sources
from dreamer.errors import UserError
from tests import tiny_run

RINGS = ("reward", "is_last", "is_terminal")


@pytest.fixture(scope="module")
def run(tmp_path_factory: Any) -> tuple[Path, Any]:
    """A finished run, and its replay: 50 steps of two environments in rings of 30."""
    folder, state = tiny_run.finished(tmp_path_factory)
    return folder, state["arrays"]["replay"]


@pytest.fixture(scope="module")
def spaces() -> Any:
    return sources.spaces_of(tiny_run.config(Path("unused")).env)


def test_a_replay_is_split_into_episodes(run: tuple[Path, Any], spaces: Any) -> None:
    folder, replay = run
    found = sources.open_recording(str(folder), "replay.load", spaces)
    episodes = list(found.read())
    assert found.rows == 60
    assert [len(episode["reward"]) for episode in episodes] == found.lengths
    order = np.arange(20, 50) % 30
    for name in RINGS:
        expected = replay["rings"][name][:, order].reshape(-1)
        np.testing.assert_array_equal(np.concatenate([e[name] for e in episodes]), expected)
    seen = replay["rings"]["observation"]["observation"][:, order].reshape(-1, 3)
    ours = np.concatenate([episode["observation.observation"] for episode in episodes])
    np.testing.assert_array_equal(ours, seen)
    for episode in episodes:
        assert episode["is_first"].tolist() == [True] + [False] * (len(episode["reward"]) - 1)
        assert not episode["is_last"][:-1].any()


def test_a_run_starts_from_the_replay_of_another(run: tuple[Path, Any], tmp_path: Path) -> None:
    changes = (f"replay.load={run[0]}", "run.offline=true", "run.steps=2", "replay.capacity=80")
    from dreamer.training.trainer import Trainer

    with Trainer(tiny_run.config(tmp_path / "run", *changes)) as trainer:
        assert trainer.loop.loaded == 60
        assert trainer.checkpoints.origin.endswith(f"60 rows, of the replay of {run[0]}")


def test_a_replay_that_cannot_be_read_is_refused(
    run: tuple[Path, Any], spaces: Any, tmp_path: Path
) -> None:
    broken = tiny_run.copy(run[0], tmp_path / "run")
    shutil.rmtree(broken / "checkpoints" / "100" / "replay")
    with pytest.raises(UserError, match=f"^the checkpoint {broken}/.* is damaged: replay/"):
        sources.open_recording(str(broken), "source", spaces)
    shutil.rmtree(broken / "checkpoints" / "100")
    with pytest.raises(UserError, match=f"^source={broken} holds no checkpoint"):
        sources.open_recording(str(broken), "source", spaces)


def test_a_folder_names_its_environment(run: tuple[Path, Any], tmp_path: Path) -> None:
    config = tiny_run.config(Path("unused"))
    assert sources.env_of(str(run[0]), "source") == config.env
    with pytest.raises(UserError, match="has no env.yaml .*; name it, as in env.task=Cart"):
        sources.env_of(str(tmp_path), "source")
    (tmp_path / "env.yaml").write_text("suite: gymnasium\ntask: Acrobot-v1\n")
    assert sources.env_of(str(tmp_path), "source").task == "Acrobot-v1"
    (tmp_path / "env.yaml").write_text("suite: [")
    with pytest.raises(UserError, match=f"^{tmp_path}/env.yaml cannot be used: it is not yaml"):
        sources.env_of(str(tmp_path), "source")
    (tmp_path / "env.yaml").write_text("suite: nope\n")
    with pytest.raises(UserError, match="env.suite=nope: expected one of gymnasium"):
        sources.env_of(str(tmp_path), "source")
