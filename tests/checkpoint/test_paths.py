"""The folders of a run, and when it may be resumed."""

from pathlib import Path

import pytest

from dreamer.checkpoint import folder, paths
from dreamer.cli import compose
from dreamer.config import serialization
from dreamer.errors import UserError


def test_the_run_folder_is_named_after_what_the_run_is() -> None:
    config = compose.compose(["env.task=ale_py:ALE/Pong-v5", "size=1m", "seed=3"])
    assert paths.run_folder(config) == Path("runs/gymnasium-ale_py:ALE-Pong-v5-1m-seed3")
    recipe = compose.compose(["experiment=pendulum_pixels", "agent=dreamerv3"])
    assert paths.run_folder(recipe) == Path("runs/pendulum_pixels-Pendulum-v1-nano-dreamerv3-seed0")
    assert paths.run_folder(compose.compose(["run.dir=a/b"])) == Path("a/b")
    assert paths.run_folder(compose.compose(["run.dir=~/a"])) == Path.home() / "a"


def test_checkpoints_are_inside_the_run_folder_by_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = compose.compose(["run.dir=a"])
    assert paths.checkpoint_folder(config) == tmp_path / "a" / "checkpoints"
    config = compose.compose(["run.dir=a", "checkpoint.dir=b"])
    assert paths.checkpoint_folder(config) == tmp_path / "b"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return folder.prepare(tmp_path / "run", serialization.to_yaml(compose.compose(["seed=1"])))


@pytest.mark.parametrize(
    "changes",
    [
        [],
        ["run.steps=7", "eval.every=5", "log.progress=none", "checkpoint.keep=2", "devices=1"],
        ["agent.units=32", "run.accept_changes=true"],
    ],
    ids=["none", "free", "accepted"],
)
def test_a_run_may_be_resumed(run: Path, changes: list[str]) -> None:
    paths.refuse_changes(compose.compose(["seed=1", *changes]), run)


def test_every_change_is_named_in_one_line(run: Path) -> None:
    with pytest.raises(UserError) as caught:
        paths.refuse_changes(compose.compose(["agent.units=32", "run.steps=7"]), run)
    message = str(caught.value)
    assert f"{run} holds a run with another configuration: " in message
    assert "seed: 1 -> 0; agent.units: 64 -> 32; " in message
    assert "run.steps" not in message
    assert "run.accept_changes=true" in message
    assert "\n" not in message


def test_a_new_run_does_not_take_over_the_checkpoints_of_another(tmp_path: Path) -> None:
    config = compose.compose([f"run.dir={tmp_path}/new", f"checkpoint.dir={tmp_path}/saved"])
    paths.refuse_strange_checkpoints(config, fresh=True)
    (tmp_path / "saved" / "notes").mkdir(parents=True)
    paths.refuse_strange_checkpoints(config, fresh=True)
    (tmp_path / "saved" / "120").mkdir()
    with pytest.raises(UserError, match="holds the checkpoints of another run"):
        paths.refuse_strange_checkpoints(config, fresh=True)


def test_a_run_does_not_start_over_because_its_checkpoints_are_gone(tmp_path: Path) -> None:
    config = compose.compose([f"run.dir={tmp_path}/run", f"checkpoint.dir={tmp_path}/saved"])
    (tmp_path / "run").mkdir()
    paths.refuse_strange_checkpoints(config, fresh=False)  # it has logged nothing yet
    (tmp_path / "run" / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(
        UserError, match=r"holds no checkpoint of the run in .*; put the folder back"
    ):
        paths.refuse_strange_checkpoints(config, fresh=False)
    (tmp_path / "saved" / "120").mkdir(parents=True)
    paths.refuse_strange_checkpoints(config, fresh=False)
    # Without a folder of their own, they are gone only if none was saved yet.
    paths.refuse_strange_checkpoints(compose.compose([f"run.dir={tmp_path}/run"]), fresh=False)


def test_the_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    options = [f"run.dir={tmp_path}/run", f"checkpoint.dir={tmp_path}/saved"]
    config = compose.compose(options)
    paths.refuse_checkpoint_of(f"{tmp_path}/run", config)
    with pytest.raises(UserError, match=f"holds checkpoints of /a/b, not of {tmp_path}/run"):
        paths.refuse_checkpoint_of("/a/b", config)
    paths.refuse_checkpoint_of("/a/b", compose.compose([*options, "run.accept_changes=true"]))
    paths.refuse_checkpoint_of("/a/b", compose.compose(options[:1]))  # the folder has moved


@pytest.mark.parametrize("key", ["run.dir", "checkpoint.dir"])
def test_the_home_of_an_unknown_user_is_refused(key: str) -> None:
    with pytest.raises(UserError, match=f"{key}=~nosuch/x: .* write the folder's full path"):
        paths.checkpoint_folder(compose.compose([f"{key}=~nosuch/x"]))


def test_a_folder_without_a_run_refuses_nothing(tmp_path: Path) -> None:
    paths.refuse_changes(compose.compose([]), tmp_path)
    paths.refuse_changes(compose.compose([]), tmp_path / "missing")
