"""Runs repeat bit for bit: from the same seed, and from any checkpoint on."""

from pathlib import Path
from tempfile import gettempdir
from types import SimpleNamespace
from typing import Any

import pytest

from dreamer.checkpoint import storage
from dreamer.errors import UserError
from dreamer.system import allocator
from dreamer.training import host_learner
from dreamer.training.trainer import Trainer
from tests import tiny_run
from tests.probe_envs import task

# Where runs are stopped, each for its own reason, see `test_the_stops_are_what_they_are_for`.
TWO_ENVS = {"changes": (), "save_every": 14, "stops": (14, 42, 84)}
TWO_UPDATES = {
    "changes": (task("Steered"), "env.num_envs=1", "run.updates_per_call=2", "run.steps=60"),
    "save_every": 8,
    "stops": (40, 56),
}
IN_DEVICE_MEMORY = {"changes": ("replay.where=device",), "save_every": 28, "stops": (56,)}
LAG = ("run.policy_device=cpu", "run.policy_lag=2")
AHEAD = {
    "changes": ("replay.prefetch=thread", *LAG, f"replay.folder={gettempdir()}"),
    "save_every": 28,
    "stops": (56,),
}
KINDS = {
    "two_envs": TWO_ENVS,
    "two_updates": TWO_UPDATES,
    "in_device_memory": IN_DEVICE_MEMORY,
    "ahead": AHEAD,
}
WATCHING = ("eval.every=50", "eval.episodes=3", "eval.num_envs=2")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: Any) -> dict[str, tuple[Path, dict]]:
    """Each kind of run without a stop, and saved only at its end: folder and final state."""
    runs = {"two_envs": tiny_run.finished(tmp_path_factory)}
    for kind in list(KINDS)[1:]:
        folder = tmp_path_factory.mktemp(kind)
        runs[kind] = folder, tiny_run.train(folder, *KINDS[kind]["changes"])
    return runs


@pytest.fixture(scope="module")
def saved(tmp_path_factory: Any) -> dict[str, tuple[Path, dict]]:
    """The same runs, saved on their way; the first evaluated as well, the second without room for a
    copy of its replay."""
    runs = {}
    for kind, settings in KINDS.items():
        folder = tmp_path_factory.mktemp(kind)
        every = (f"checkpoint.every_steps={settings['save_every']}", "checkpoint.keep=1000")
        more = (*every, *(WATCHING if kind == "two_envs" else ()))
        with pytest.MonkeyPatch.context() as patch:
            if kind == "two_updates":
                patch.setattr(host_learner, "memory", SimpleNamespace(available=lambda: 0))
            runs[kind] = folder, tiny_run.train(folder, *settings["changes"], *more)
    return runs


def meta(folder: Path, step: int) -> dict[str, Any]:
    return storage.read(folder / "checkpoints" / str(step)).meta


def test_the_stops_are_what_they_are_for(saved: dict) -> None:
    """Before the first update; amid episodes, with half an update owed; at the end of an episode,
    with another in its middle and the rings wrapped around; with half a call of updates owed."""
    stops = [meta(saved["two_envs"][0], step) for step in TWO_ENVS["stops"]]
    assert [stop["learner"]["updates"] for stop in stops] == [0, 4, 15]
    assert [stop["env"]["step_type"] for stop in stops] == [[0, 0], [1, 1], [2, 1]]
    assert [stop["ratio"]["remainder"] for stop in stops] == [0, 2, 0]
    assert stops[-1]["step"] > 60 == tiny_run.config(Path()).replay.capacity
    stops = [meta(saved["two_updates"][0], step) for step in TWO_UPDATES["stops"]]
    assert [stop["learner"] for stop in stops] == [
        {"updates": 4, "owed": 1},
        {"updates": 8, "owed": 1},
    ]
    assert [stop["env"]["step_type"] for stop in stops] == [[1], [0]]


def test_the_same_seed_gives_the_same_run(whole: dict, saved: dict) -> None:
    """Whether or not it is saved and evaluated on its way."""
    for kind in KINDS:
        (folder, state), (other, again) = whole[kind], saved[kind]
        tiny_run.assert_same(again | {"best": None}, state)
        evaluated = [line for line in tiny_run.lines(other) if "eval/mean" in line]
        assert [line["step"] for line in evaluated] == ([50, 100] if kind == "two_envs" else [])
        trained = [line for line in tiny_run.lines(other) if "eval/mean" not in line]
        assert trained == tiny_run.lines(folder)
        assert len(tiny_run.losses(trained)) >= 4


def test_another_seed_gives_another_run(whole: dict, tmp_path: Path) -> None:
    tiny_run.train(tmp_path, "seed=1", "run.steps=40")
    ours, other = (tiny_run.losses(tiny_run.lines(f)) for f in (tmp_path, whole["two_envs"][0]))
    assert ours[0]["step"] == other[0]["step"]
    assert ours[0]["loss/total"] != other[0]["loss/total"]
    assert ours[0]["loss/observation/observation"] != other[0]["loss/observation/observation"]


@pytest.mark.parametrize(
    ("kind", "stop"), [(kind, stop) for kind, run in KINDS.items() for stop in run["stops"]]
)
def test_a_stopped_run_resumes_exactly(
    kind: str, stop: int, whole: dict, saved: dict, tmp_path: Path
) -> None:
    expected_folder, expected = whole[kind]
    folder = tiny_run.copy(saved[kind][0], tmp_path / "run", stop)
    state = tiny_run.train(folder, *KINDS[kind]["changes"])
    tiny_run.assert_same(state | {"best": None}, expected)
    # What was measured of the call under way at the stop is not saved; all else is logged again.
    ours, theirs = (
        [line for line in tiny_run.lines(f) if line["step"] > stop]
        for f in (folder, expected_folder)
    )
    lost = [line for line in theirs if line not in ours]
    assert [line for line in theirs if line in ours] == ours
    assert len(lost) <= 1
    assert len(tiny_run.losses(ours)) >= (1 if kind == "two_envs" else 0)
    assert [line["step"] for line in tiny_run.lines(folder)] == sorted(
        line["step"] for line in tiny_run.lines(folder)
    )


def test_the_best_evaluation_is_kept_over_a_resume(saved: dict, tmp_path: Path) -> None:
    """An evaluation after the resume is compared with those before the stop."""
    source, _ = saved["two_envs"]
    scores = {
        line["step"]: line["eval/mean"] for line in tiny_run.lines(source) if "eval/mean" in line
    }
    assert meta(source, 56)["best"] == scores[50]
    for step in (50, 100):
        is_best = step == 50 or scores[100] > scores[50]
        score = storage.read(source / "checkpoints" / str(step)).score
        assert score == (scores[step] if is_best else None)


def test_an_environment_that_cannot_be_restored_starts_an_episode(
    capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    """Its unfinished episode counts for nothing, and the run continues."""
    changes = (task("Unseeded"), "run.steps=20", "replay.train_ratio=0.001")
    tiny_run.train(tmp_path, *changes)
    with Trainer(
        tiny_run.config(tmp_path, *changes, "run.steps=22", "log.progress=plain")
    ) as trainer:
        assert (trainer.loop.driver.time_step.step_type == 0).all()
        assert trainer.loop.driver.episodes.lengths.tolist() == [0, 0]
        trainer.run()
    assert "2 environments could not be restored and start an episode" in capsys.readouterr().out
    assert trainer.step == 22


def test_nothing_is_trained_before_a_batch_of_different_sequences_is_stored(
    whole: dict,
) -> None:
    """16 windows of 5 steps are complete in two environments after 12 steps each; the first update
    is then owed two steps later."""
    first = tiny_run.losses(tiny_run.lines(whole["two_envs"][0]))[0]
    # Written one call late: the first update is dispatched at step 28, the second at 32.
    assert (first["step"], first["updates"]) == (32, 2)


def test_memory_of_the_replay_is_checked_before_a_folder_is_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("dreamer.replay.memory.available", lambda: 10**6)
    with pytest.raises(UserError, match=r"replay\.capacity=60000 needs .* largest capacity"):
        Trainer(tiny_run.config(tmp_path / "run", "replay.capacity=60000"))
    assert not (tmp_path / "run").exists()


def test_a_change_that_the_checkpoint_does_not_fit_leaves_the_saved_configuration(
    saved: dict, tmp_path: Path
) -> None:
    folder = tiny_run.copy(saved["two_envs"][0], tmp_path / "run", 14)
    before = (folder / "config.yaml").read_text()
    with pytest.raises(UserError, match=r"env\.num_envs=2 but the run has env\.num_envs=3"):
        Trainer(tiny_run.config(folder, "env.num_envs=3", "run.accept_changes=true"))
    assert (folder / "config.yaml").read_text() == before


def test_an_interrupted_evaluation_is_repeated(whole: dict, saved: dict, tmp_path: Path) -> None:
    """At the step where it was due, and with the same result; the last one before "done"."""
    expected = [line for line in tiny_run.lines(saved["two_envs"][0]) if "eval/mean" in line]
    for stop in (50, 100):
        folder = tmp_path / str(stop)
        with Trainer(tiny_run.config(folder, *WATCHING)) as trainer:
            evaluation = trainer.evaluation
            evaluate = evaluation._evaluate

            def interrupted(run: Trainer, evaluate: Any = evaluate) -> None:
                run.stop.requested = run.step == stop  # noqa: B023
                evaluate(run)

            evaluation._evaluate = interrupted  # type: ignore[method-assign]
            trainer.run()
            assert trainer.step == stop
            assert evaluation.is_due(trainer)
        for _ in range(2):  # once only
            tiny_run.train(folder, *WATCHING)
        assert [line for line in tiny_run.lines(folder) if "eval/mean" in line] == expected


def test_sequences_of_another_length_may_be_accepted(saved: dict, tmp_path: Path) -> None:
    """Latents that waited for their replay rows are of the length before, and are given up."""
    folder = tiny_run.copy(saved["two_envs"][0], tmp_path / "run", 42)
    for length, given_up in ((4, False), (3, True)):
        changes = (f"replay.batch_length={length}", "run.accept_changes=true")
        with Trainer(tiny_run.config(folder, *changes)) as trainer:
            assert (trainer.loop.learner.pending is None) == given_up


def test_gaps_in_memory_are_set_aside_once_the_update_is_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[int] = []
    with Trainer(tiny_run.config(tmp_path / "run", *TWO_ENVS["changes"])) as trainer:
        monkeypatch.setattr(allocator, "set_gaps_aside", lambda: found.append(trainer.updates))
        trainer.run()
        assert found == [1] < [trainer.updates]
