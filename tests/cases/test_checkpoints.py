"""Forged checkpoints with valid checksums, and environments in JAX of either format."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import dreamer
from dreamer.checkpoint import arrays as stored
from dreamer.checkpoint import integrity, storage
from dreamer.cli import compose, data, export, train
from dreamer.cli import eval as evaluation
from dreamer.envs import registry
from dreamer.errors import UserError, exit_on_user_error
from tests import tiny_run

DOCUMENT = "checkpoint.json"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: Any) -> Path:
    return tiny_run.finished(tmp_path_factory)[0]


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return tiny_run.copy(finished, tmp_path / "run")


def refused(
    capsys: pytest.CaptureFixture[str], main: Callable[[list[str]], int], *argv: str
) -> str:
    """The one line of error of a command."""
    capsys.readouterr()
    assert exit_on_user_error(lambda: main(list(argv))) == 2
    (error,) = capsys.readouterr().err.splitlines()
    return error


def rewrite(run: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Changes a document and its checksum; returns the folder of the checkpoint."""
    path = run / "checkpoints" / "100"
    content = integrity.read_document(path / DOCUMENT)
    assert content is not None
    change(content)
    integrity.write_document(path / DOCUMENT, content)
    return path


def put(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        *outer, last = path.split(".")
        for name in outer:
            content = content[name]
        content[last] = value

    return change


def lose(path: str) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        *outer, last = path.split(".")
        for name in outer:
            content = content[name]
        del content[last]

    return change


WIDE = {"shape": [2**30, 2**30], "dtype": "float32"}
FORGED: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "a newer format": (put("format", 99), "has format 99; this .* reads format 4; install"),
    "a format in words": (put("format", "2"), "format='2'"),
    "a true format": (put("format", True), "format=True"),
    "a field more": (put("more", 1), "has more, which is not known here; install"),
    "a counter more": (put("meta.more", [1]), "has meta.more, which is not known here"),
    "deeper more": (put("meta.learner.more", 1), "has meta.learner.more, which is not known"),
    "a field less": (lose("structure"), "structure: Field required"),
    "a counter less": (lose("meta.learner"), "meta.learner: Field required"),
    "no step": (lose("meta.step"), "only a run that acts has step, ratio and episodes"),
    "no meta": (put("meta", None), "meta=None"),
    "a list for meta": (put("meta", [1, 2]), r"meta=\[1, 2\]"),
    "a negative step": (put("meta.step", -1), "meta.step=-1"),
    "a step in words": (put("meta.step", "100"), "meta.step='100'"),
    "half a step": (put("meta.step", 0.5), "meta.step=0.5"),
    "a true step": (put("meta.step", True), "meta.step=True"),
    "a huge step": (put("meta.step", 10**30), "meta.step=1000"),
    "NaN updates": (put("meta.learner.updates", float("nan")), "meta.learner.updates=nan"),
    "too many owed": (put("meta.learner.owed", 2**40), "meta.learner.owed=1099511627776"),
    "zero hosts": (put("meta.hosts", 0), "meta.hosts=0"),
    "a ratio of nothing": (put("meta.ratio.denominator", 0), "meta.ratio.denominator=0"),
    "a ratio ahead": (put("meta.ratio.step", 10**9), "ratio.step=1000000000 is after step=100"),
    "best in words": (put("meta.best", "good"), "meta.best='good'"),
    "a score of NaN": (put("score", float("nan")), "score=nan"),
    "one length more": (put("meta.episodes.lengths", [1, 2, 3]), "2 returns and 3 lengths"),
    "text for lists": (put("meta.episodes.returns", "abc"), "meta.episodes.returns='abc'"),
    "episodes in words": (put("meta.env.episodes", "abc"), "meta.env.episodes='abc'"),
    "an episode of text": (put("meta.env.episodes", ["a", "b"]), "meta.env.episodes.0='a'"),
    "rewards less": (put("meta.env.reward", [0.0]), "must have equal lengths"),
    "restarts of numbers": (
        put("meta.env.restarts", [[1, 2, 3]]),
        "meta.env.restarts.0.1=2",
    ),
    "no spaces in spaces": (put("meta.spaces", {}), "meta.spaces.observations: Field required"),
    "no actions": (put("meta.spaces.actions", {}), "meta.spaces.actions={}"),
    "an unknown type": (
        put("meta.spaces.observations.observation.dtype", "object"),
        "meta.spaces.observations.observation.dtype='object'",
    ),
    "a shape of text": (
        put("meta.spaces.observations.observation.shape", "abc"),
        "meta.spaces.observations.observation.shape='abc'",
    ),
    "too many numbers": (put("meta.spaces.observations.observation", WIDE), "is too many numbers"),
    "classes less": (lose("meta.spaces.actions.action.classes"), "classes=None does not fit"),
    "a rank of 40": (put("meta.spaces.observations.observation.shape", [1] * 40), "shape="),
    "files outside": (put("files", {"../../x": [1, 1]}), "files.../../x"),
    "files of text": (put("files", {"state/x": "abc"}), "files.state/x='abc'"),
    "no files": (put("files", 5), "files=5"),
    "forms of numbers": (put("structure", {"a": 5}), "structure.a=5"),
}


@pytest.mark.parametrize("kind", FORGED)
def test_a_forged_document_is_one_line(kind: str, run: Path) -> None:
    change, message = FORGED[kind]
    path = rewrite(run, change)
    with pytest.raises(UserError, match=f"^the checkpoint {path} .*{message}") as caught:
        dreamer.load(run)
    assert len(str(caught.value)) < 500


@pytest.mark.slow
def test_every_command_refuses_it(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = rewrite(run, put("meta.learner.updates", [[]]))
    new = run.parent / "new"
    for main, *argv in (
        (train.main, *tiny_run.argv(run)),
        (train.main, *tiny_run.argv(new, f"run.init_from={run}")),
        (train.main, *tiny_run.argv(new, f"replay.load={run}")),
        (evaluation.main, f"run={run}"),
        (export.main, f"run={run}"),
        (data.main, "info", f"source={run}"),
        (data.main, "collect", f"run={run}", f"out={new}"),
    ):
        line = refused(capsys, main, *argv)
        assert line.startswith(f"error: the checkpoint {path} cannot be used: meta.learner.upd")
    assert not new.exists()


def test_deep_documents_are_damaged(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are treated as any other text that is not a document."""
    file = run / "checkpoints" / "100" / DOCUMENT
    file.write_text('{"checksum": 1, "content": ' + "[" * 10**5 + "]" * 10**5 + "}")
    assert f"{DOCUMENT} has changed" in refused(capsys, evaluation.main, f"run={run}")
    file.unlink()
    os.mkfifo(file)
    assert f"{file}: it is a pipe" in refused(capsys, evaluation.main, f"run={run}")


# ------------------------------------------------------------------------------------------- arrays


def rearrange(run: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Changes the arrays of the replay and their checksums."""
    path = run / "checkpoints" / "100"
    about = storage.read(path)
    arrays = jax.tree.map(np.array, stored.read(path / "replay"))
    state = stored.read(path / "state")
    change(arrays)
    shutil.rmtree(path)
    path.mkdir()
    storage.write(path, state, arrays, about)
    return path


def counter(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda arrays: arrays["replay"]["counters"].update({name: np.array([value])})


def beyond(arrays: dict[str, Any]) -> None:
    arrays["pending"]["index"] += 1000


def uneven(arrays: dict[str, Any]) -> None:
    rings = arrays["replay"]["rings"]
    rings["reward"] = rings["reward"][:, :-1]


def narrow(arrays: dict[str, Any]) -> None:
    arrays["carry"]["action"] = arrays["carry"]["action"][:, :-1]


def fewer(arrays: dict[str, Any]) -> None:
    del arrays["carry"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (counter("steps", 10**12), "its counters .* do not fit rings"),
        (counter("oldest", -1), "its counters .* do not fit rings"),
        (counter("length", 0.5), "its counters .* do not fit rings"),
        (uneven, "its counters .* do not fit rings"),
        (beyond, "pending.index has windows that the replay lacks"),
        (narrow, r"carry.action is float \[2, 2\] in the checkpoint and float \[2, 3\] here"),
        (fewer, "KeyError: 'carry'"),
    ],
)
def test_forged_arrays_are_one_line(
    change: Callable[[dict[str, Any]], None],
    message: str,
    run: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = rearrange(run, change)
    line = refused(capsys, train.main, *tiny_run.argv(run, "run.steps=110"))
    assert line.startswith(f"error: the checkpoint {path} cannot be resumed: ")
    with pytest.raises(UserError, match=message):
        raise UserError(line)


def test_arrays_larger_than_memory_are_refused(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dreamer.replay.memory.available", lambda: 1000)
    argv = ["info", f"source={run}"]
    assert "need 0.0 MiB of memory, and 0.0 MiB are free" in refused(capsys, data.main, *argv)


def test_a_state_of_other_shapes_is_refused_before_it_is_read(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if the document has the right shapes."""
    path = run / "checkpoints" / "100"
    about = storage.read(path)
    state = stored.read(path / "state")
    shutil.rmtree(path)
    path.mkdir()
    (name, part), *_ = state["params"].items()
    leaves, form = jax.tree.flatten(part)
    wide = jax.tree.unflatten(form, [np.zeros((*leaves[0].shape, 2)), *leaves[1:]])
    storage.write(path, {**state, "params": {**state["params"], name: wide}}, None, about)

    def read(*_: Any, **__: Any) -> None:
        raise AssertionError("it is read")

    monkeypatch.setattr(stored.ocp.PyTreeCheckpointHandler, "restore", read)
    new = tiny_run.argv(run.parent / "new", f"run.init_from={run}")
    for argv in (new, tiny_run.argv(run, "run.steps=110")):
        line = refused(capsys, train.main, *argv)
        assert f"the checkpoint {path} cannot be read: params.{name}." in line
        assert " in the checkpoint and float32[" in line


@pytest.mark.parametrize("sealed", [[0, 0], [4, 0]])
def test_no_checksum_is_of_a_file_outside_of_the_checkpoint(
    sealed: list[int], run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = rewrite(run, lambda content: content["files"].update({"state/e/zero": sealed}))
    (path / "state" / "e").symlink_to("/dev")
    line = refused(capsys, evaluation.main, f"run={run}")
    assert f"{path}/state/e: it is a link to a folder elsewhere" in line


def test_pipes_in_place_of_old_documents_do_not_block(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run / "checkpoints" / "100"
    (path / DOCUMENT).unlink()
    (path / "meta").mkdir()
    os.mkfifo(path / "meta" / "metadata")
    assert "is damaged" in refused(capsys, evaluation.main, f"run={run}")
    (path / "meta" / "metadata").unlink()
    (path / "meta" / "metadata").write_text('{"structure": {}, "meta": {}}')
    (path / "metrics").mkdir()
    (path / "metrics" / "metrics").symlink_to("/dev/zero")
    assert "is damaged" in refused(capsys, evaluation.main, f"run={run}")


# ---------------------------------------------------------------------------- environments in JAX

CARTPOLE = ["env=gymnax", "env.task=CartPole-v1"]


def environments() -> Any:
    pytest.importorskip("gymnax")
    return registry.make(compose.compose(CARTPOLE).env, 3, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["arrays", "lists"])
def test_environments_in_jax_continue_exactly(form: str) -> None:
    """Checkpoints had lists before format 2."""
    env, again = environments(), environments()
    action = {"action": np.array([0, 1, 1], np.int32)}
    env.reset()
    for _ in range(3):
        env.step(action)
    state = env.get_state()
    if form == "lists":
        lists = {name: [x.tolist() for x in part.values()] for name, part in state.items()}
        state = json.loads(json.dumps(lists))
    restored, _ = again.set_state(state)
    assert restored.all()
    tiny_run.assert_same(again.step(action), env.step(action))


def test_environments_of_another_kind_are_reset() -> None:
    env = environments()
    env.reset()
    state = env.get_state()
    state["state"].popitem()
    restored, time_step = env.set_state(state)
    assert not restored.any()
    assert (time_step.step_type == 0).all()
