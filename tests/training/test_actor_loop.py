"""A run whose environments are in actors, with actors of this process in place of Ray's."""

import sys
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dreamer.errors import EnvironmentFault, UserError
from dreamer.rollout import actor
from dreamer.rollout.actor import ActorWorker
from dreamer.training import actor_loop
from dreamer.training.actor_loop import ActorLoop
from dreamer.training.trainer import Trainer
from tests import probe_envs, tiny_run

OPTIONS = ("run.actors=ray", "run.num_actors=2", "run.weights_every=3")


class LocalActors:
    """Actors of this process, which act when a chunk is requested."""

    def __init__(self, config: Any) -> None:
        self.config = config
        self.players: dict[int, ActorWorker] = {}
        self.lives: list[tuple[int, int]] = []  # (actor, life)
        self.sent: list[int] = []  # versions
        self.used: list[int] = []
        self.rows: dict[int, list[Any]] = defaultdict(list)  # that each actor gave
        self.faults: dict[int, list[str]] = defaultdict(list)  # to come
        self.closed = False

    def send(self, version: int, weights: Any) -> None:
        self.sent.append(version)
        self.weights = weights

    def start(self, index: int, life: int) -> None:
        self.lives.append((index, life))
        self.players[index] = ActorWorker(self.config, life)

    def receive(self, wanted: Collection[int], seconds: float) -> tuple[int, Any] | None:
        index = min(wanted)
        if self.faults[index]:
            return index, EnvironmentFault(self.faults[index].pop())
        chunk = self.players[index].play(self.sent[-1], self.weights)
        self.used.append(chunk.version)
        self.rows[index].append(chunk.rows)
        return index, chunk

    def close(self) -> None:
        self.closed = True


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actor_loop, "make_actors", LocalActors)
    monkeypatch.setattr(actor, "SECONDS", 1e6)
    monkeypatch.setattr(actor, "STEPS", 5)


def loop_of(trainer: Trainer) -> tuple[ActorLoop, LocalActors]:
    loop: Any = trainer.loop
    return loop, loop._actors


def advance(trainer: Trainer, until: int) -> None:
    trainer.begin()
    while trainer.step < until:
        trainer.after(trainer.loop.advance(2**63))


def rings(loop: ActorLoop) -> dict[str, Any]:
    found: dict[str, Any] = loop.get_arrays()[0]["replay"]["rings"]
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> Path:
    return tmp_path_factory.mktemp("actors")


@pytest.fixture(scope="module")
def finished(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The folder of a run of 100 steps, and what came of it."""
    patch = pytest.MonkeyPatch()
    patch.setattr(actor_loop, "make_actors", LocalActors)
    patch.setattr(actor, "SECONDS", 1e6)
    patch.setattr(actor, "STEPS", 5)
    with Trainer(tiny_run.config(folder / "run", *OPTIONS)) as trainer, patch.context():
        loop, actors = loop_of(trainer)
        trainer.run()
        found = {"rings": rings(loop), "actors": actors, "updates": loop.learner.updates}
        found |= {"episodes": loop.episodes.get_state(), "ratio": loop.ratio.get_state()}
    patch.undo()
    return folder / "run", found


def test_the_replay_holds_what_the_actors_sent(finished: tuple[Path, dict]) -> None:
    """Row for row, those of an actor in its own rings, in which 30 steps remain of 50."""
    found, actors = finished[1]["rings"], finished[1]["actors"]
    for index, chunks in actors.rows.items():
        sent = {
            key: np.concatenate([rows[key] for rows in chunks]) for key in ("reward", "is_last")
        }
        seen = np.concatenate([rows["observation"]["observation"] for rows in chunks])
        steps = np.arange(20, 50)
        slots = steps % 30
        np.testing.assert_array_equal(found["reward"][index, slots], sent["reward"][steps, 0])
        np.testing.assert_array_equal(found["is_last"][index, slots], sent["is_last"][steps, 0])
        np.testing.assert_array_equal(
            found["observation"]["observation"][index, slots], seen[steps, 0]
        )
    assert not np.array_equal(found["reward"][0], found["reward"][1])
    assert actors.closed


def test_weights_are_sent_every_so_many_updates_and_the_newest_are_used(
    finished: tuple[Path, dict],
) -> None:
    actors = finished[1]["actors"]
    assert actors.sent == [0, 3, 6, 9, 12, 15, 18]
    assert actors.used == sorted(actors.used)
    assert set(actors.used) >= {0, 3, 9}
    lines = tiny_run.losses(tiny_run.lines(finished[0]))
    behind = [line["actors/updates_behind"] for line in lines]
    assert behind[0] <= 3
    assert max(behind) <= 8  # 3 between sends, one until it is sent, and those of a chunk


def test_learning_follows_the_steps_as_without_actors(finished: tuple[Path, dict]) -> None:
    """From step 24 on an update every 4 steps, as in every run of these sizes."""
    assert finished[1]["updates"] == 19
    assert finished[1]["ratio"] == {"step": 100, "remainder": 0, "denominator": 4}


def test_actors_that_die_and_environments_that_fail_are_restarted_until_the_limit(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    options = (*OPTIONS, probe_envs.task("Fragile"), "log.progress=plain", "replay.capacity=200")
    probe_envs.Fragile.steps_left = -1
    with Trainer(tiny_run.config(tmp_path / "run", *options, "env.restarts=2")) as trainer:
        loop, actors = loop_of(trainer)
        advance(trainer, 44)
        end = len(sent(actors, 1)["reward"]) - 1  # the last row of the first life
        actors.faults[1] = ["actor 1 on a died"]
        advance(trainer, 80)
        assert actors.lives == [(0, 0), (1, 1), (1, 2)]
        assert [restart.env for restart in loop.restarts] == [1]
        found = rings(loop)
        assert found["is_last"][1, end]
        assert found["is_first"][1, end + 1]
        assert not sent(actors, 1)["is_last"][end]
        assert not found["is_terminal"][1, end]
        assert not found["action"]["action"][1, end].any()
        assert found["reward"][1, end] == sent(actors, 1)["reward"][end]
        for key in ("reward", "is_last"):  # the other actor continues
            np.testing.assert_array_equal(found[key][0, :40], sent(actors, 0)[key][:40])
        assert (loop.learner.updates, loop.ratio.get_state()["step"]) == (14, 80)

        probe_envs.Fragile.steps_left = 1
        advance(trainer, 98)
        probe_envs.Fragile.steps_left = 1
        with pytest.raises(
            EnvironmentFault,
            match="actor .: environment 0 failed in its step with RuntimeError: out of order.*; "
            "failure 3 of the run, with env.restarts=2; all that was learned until step "
            f"1?.. is saved in {tmp_path}/run, and the same command resumes$",
        ):
            trainer.run()
        assert trainer.checkpoints.manager.latest_step() == trainer.step
    noted = [line for line in capsys.readouterr().err.splitlines() if "; restarted" in line]
    assert noted[0] == "warning: actor 1 on a died; restarted, 1 of env.restarts=2"
    assert noted[1].startswith("warning: actor ")
    assert ": environment 0 failed in its step with RuntimeError: out of order" in noted[1]
    assert noted[1].endswith("; restarted, 2 of env.restarts=2")
    lines = tiny_run.lines(tmp_path / "run")
    assert [line["env/restarts"] for line in lines if "env/restarts" in line] == [1, 2]


def sent(actors: LocalActors, index: int) -> dict[str, np.ndarray]:
    """What an actor with one environment sent in its lives, [T]."""
    keys = ("reward", "is_last")
    return {key: np.concatenate([rows[key][:, 0] for rows in actors.rows[index]]) for key in keys}


def test_an_actor_that_sends_nothing_is_restarted_where_it_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actor, "SECONDS", 0.0)
    with Trainer(tiny_run.config(tmp_path / "run", *OPTIONS, "env.timeout=3")) as trainer:
        loop, actors = loop_of(trainer)
        while not trainer.step:
            loop.advance(2**63)
        assert {len(rows["reward"]) for rows in actors.rows[0]} == {1}  # they count as slow
        clock = [0.0]

        def silence(wanted: Collection[int], seconds: float) -> None:
            clock[0] += seconds

        monkeypatch.setattr(actor_loop.time, "monotonic", lambda: clock[0])
        monkeypatch.setattr(actors, "receive", silence)
        step, iterations = trainer.step, 0
        while not loop.restarts:
            assert loop.advance(2**63) == [] or trainer.step > step
            iterations += 1
        assert 5 <= iterations <= 20  # signals are handled in between
        assert loop.restarts[0].line == (
            "actor 0 sent nothing for env.timeout=3 seconds: it hangs, or Ray has found no free "
            "CPU for it; restarted, 1 of env.restarts=10"
        )

        def refuse(*_: Any) -> None:
            raise UserError("no such task here")

        monkeypatch.setattr(actors, "receive", refuse)
        with pytest.raises(EnvironmentFault, match="no such task here; all that was learned until"):
            trainer.run()
        assert trainer.checkpoints.manager.latest_step() == trainer.step


def test_an_actor_has_longer_to_begin_and_signals_are_handled_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It imports, compiles and makes environments before its first steps."""
    clock = [0.0]
    begun = LocalActors.receive

    def silence(here: LocalActors, wanted: Collection[int], seconds: float) -> None:
        clock[0] += seconds
        assert clock[0] < 1000, "it waits for ever"

    monkeypatch.setattr(LocalActors, "receive", silence)
    with Trainer(tiny_run.config(tmp_path, *OPTIONS, "env.timeout=3")) as trainer:
        loop, _ = loop_of(trainer)
        monkeypatch.setattr(actor_loop.time, "monotonic", lambda: clock[0])
        while not loop.restarts:
            assert loop.advance(2**63) == []
        assert 123 <= clock[0] < 125
        assert loop.restarts[0].line.startswith(
            "actor 0 did not begin within env.timeout=3 and 120 seconds more: it hangs, or Ray has "
        )
        trainer.request_stop()
        trainer.run()
    monkeypatch.setattr(LocalActors, "receive", begun)
    with Trainer(tiny_run.config(tmp_path, *OPTIONS, "env.timeout=3")) as trainer:
        assert trainer.step == 0
        trainer.loop.advance(2**63)
        assert trainer.step == 2


@pytest.mark.slow
def test_a_run_resumes_without_actors_and_with_another_number_of_them(
    finished: tuple[Path, dict], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """With its replay and new episodes."""
    folder, before = finished
    copied = tiny_run.copy(folder, tmp_path / "run")
    with Trainer(tiny_run.config(copied, "run.steps=120", "log.progress=plain")) as trainer:
        np.testing.assert_equal(rings(trainer.loop), before["rings"])
        assert trainer.updates == before["updates"]
        trainer.run()
        last = rings(trainer.loop)
    options = ("run.actors=ray", "run.num_actors=1", "run.steps=140", "log.progress=plain")
    with Trainer(tiny_run.config(copied, *options)) as trainer:
        loop, actors = loop_of(trainer)
        np.testing.assert_equal(rings(loop), last)
        assert (actors.lives, actors.sent, trainer.updates) == ([(0, 0)], [24], 24)
        advance(trainer, 140)
        assert trainer.updates == 29
        assert np.flatnonzero(rings(loop)["is_first"][:, 60 % 30 : 70 % 30].any(0))[0] == 0
    noted = [line for line in capsys.readouterr().out.splitlines() if line.startswith("resumed")]
    assert noted[0].endswith(
        "at step 100; 2 environments could not be restored and start an episode"
    )
    assert noted[1].endswith(
        "at step 120; not restored: the episodes under way, 2 environments of actors are restarted"
    )


def test_a_missing_package_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "dreamer.rollout.ray_actors", raising=False)
    with pytest.raises(UserError, match=r"run.actors=ray needs .* ray, .* 'dreamer\[ray\]'"):
        Trainer(tiny_run.config(tmp_path / "run", *OPTIONS))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("run.loop=device", "run.loop=device does not go with run.actors=ray, whose actors act"),
        ("run.seeds=2", "run.seeds=2 does not go with run.actors=ray"),
        ("run.policy_device=cpu", "run.policy_device=cpu does not go with run.actors=ray"),
        ("run.policy_lag=1", "run.policy_lag=1 does not go with run.actors=ray"),
        ("run.num_actors=3", "env.num_envs=2 cannot be split over run.num_actors=3"),
        ("run.actors=local", "run.num_actors=2 is for run.actors=ray; add it"),
    ],
)
def test_options_that_exclude_actors_are_refused(option: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        tiny_run.config(tmp_path, *OPTIONS, option)


def test_offline_runs_have_no_actors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run.offline=true does not go with run.actors=ray"):
        tiny_run.config(tmp_path, *OPTIONS, "run.offline=true", "replay.load=x")


@pytest.mark.slow
def test_replay_may_be_on_the_device(tmp_path: Path) -> None:
    with Trainer(tiny_run.config(tmp_path, *OPTIONS, "replay.where=device")) as trainer:
        trainer.run()
        assert trainer.updates == 19
        actors = loop_of(trainer)[1]
        reward = np.asarray(rings(loop_of(trainer)[0])["reward"])
        sent = np.concatenate([rows["reward"] for rows in actors.rows[1]])
        np.testing.assert_array_equal(reward[1, np.arange(20, 50) % 30], sent[20:50, 0])
