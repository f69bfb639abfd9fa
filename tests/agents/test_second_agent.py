"""Another agent than Dreamer goes through training, resuming, evaluation, loading and export."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import dreamer
from dreamer.agents import registry
from dreamer.checkpoint import manager, storage
from dreamer.cli import eval as evaluation
from dreamer.cli import export
from dreamer.cli.compose import compose
from dreamer.errors import UserError
from dreamer.training.trainer import Trainer
from tests import tiny_run
from tests.agents.cloning import Cloning, Evolving

OPTIONS = (
    "agent.kind=cloning",
    "env.task=CartPole-v1",
    "run.steps=60",
    "checkpoint.every_steps=20",
)


def argv(folder: Path, *changes: str) -> list[str]:
    return tiny_run.argv(folder, *OPTIONS, *changes)


@pytest.fixture(autouse=True)
def kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.AGENTS, "cloning", Cloning)
    monkeypatch.setitem(registry.AGENTS, "evolving", Evolving)


def final(folder: Path) -> Any:
    directory = folder / "checkpoints"
    pattern = jax.device_get(dreamer.load(folder).params)
    newest = directory / str(manager.newest(directory))
    return storage.read_params(newest, pattern), storage.read(newest).meta


def test_its_phases_follow_each_other_and_it_resumes_in_each(tmp_path: Path) -> None:
    phases = []

    class Watch(dreamer.Callback):
        def on_step(self, run: Any) -> None:
            phases.append((run.loop.phase, run.step, run.updates))

    dreamer.train(argv(tmp_path / "whole"), [Watch()])
    assert {phase for phase, step, _ in phases if step < 30} == {0}
    assert [row for row in phases if row[0] == 0][-1] == (0, 28, 0)
    assert [row for row in phases if row[0] == 1] == [(1, 30, n) for n in range(5)]
    assert phases[-1][0] == 2
    assert phases[-1][2] > 5

    class Stop(dreamer.Callback):
        def on_step(self, run: Any) -> None:
            if (run.step, run.updates) in ((10, 0), (30, 2), (40, phases_at_40)):
                run.request_stop()

    phases_at_40 = next(updates for _, step, updates in phases if step == 40)
    for _ in range(4):
        dreamer.train(argv(tmp_path / "stopped", "checkpoint.every_steps=0"), [Stop()])
    whole, stopped = final(tmp_path / "whole"), final(tmp_path / "stopped")
    tiny_run.assert_same(stopped[0], whole[0])
    assert stopped[1]["phase"] == whole[1]["phase"] == 2
    assert stopped[1]["learner"] == whole[1]["learner"]


def test_it_is_evaluated_loaded_and_exported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    dreamer.train(argv(folder, "eval.every=30", "eval.episodes=2"))
    assert evaluation.main([f"run={folder}", "episodes=2"]) == 0
    agent = dreamer.load(folder)
    env = agent.make_env(3)
    rows = agent.record(env, 5)
    env.close()
    assert rows["latent"]["count"].tolist() == [[0, 1, 2, 3, 4]] * 3
    policy, env = agent.policy(3), agent.make_env(3)
    policy(env.reset())
    env.close()
    with pytest.raises(UserError, match="agent.kind=cloning has no imagination"):
        agent.imagine(policy.state)
    assert export.main([f"run={folder}", f"out={tmp_path / 'policy'}"]) == 0
    assert "it acts as the agent of step 60 does" in capsys.readouterr().out


def test_latents_of_training_are_written_back(tmp_path: Path) -> None:
    with Trainer(compose(argv(tmp_path / "run"))) as trainer:
        trainer.run()
        counts = trainer.loop.get_arrays()[0]["replay"]["rings"]["latent"]["count"]
    assert (counts == 7).sum() > 20


def test_a_population_is_evolved_by_returns(tmp_path: Path) -> None:
    options = argv(tmp_path / "run", "agent.kind=evolving", "run.steps=600")
    with Trainer(compose(options)) as trainer:
        start = jax.device_get(trainer.loop.learner.params["layer"]["kernel"])
        members = jax.device_get(trainer.loop.get_arrays()[0]["carry"]["kernel"])
        trainer.run()
        best = jax.device_get(trainer.loop.learner.params["layer"]["kernel"])
    assert not np.array_equal(best, start)
    assert any(np.array_equal(best, member) for member in members)
    again = Trainer(compose([*options[:-1], f"run.dir={tmp_path / 'run'}"]))
    with again as trainer:
        carry = trainer.loop.get_arrays()[0]["carry"]
    np.testing.assert_array_equal(carry["kernel"], members)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            ("agent.kind=dremer",),
            r"agent.kind=dremer: expected one of dreamer, .*; did you mean",
        ),
        (
            ("replay.where=device",),
            r"replay.where=device is for agents that act and learn all ",
        ),
        (("run.offline=true", "replay.load=x"), r"run.offline=true is for agents that act and"),
    ],
)
def test_options_that_do_not_go_with_phases_are_refused(
    changes: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        dreamer.train(argv(tmp_path / "run", *changes))
    assert not (tmp_path / "run").exists()


def test_a_phase_that_can_never_learn_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Cloning, "collected", 20)
    line = "agent.kind=cloning: phase clone learns from 20 steps, and updates need 24; collect more"
    with pytest.raises(UserError, match=line):
        dreamer.train(argv(tmp_path / "run"))
