"""The commands as a user runs them: stopped, resumed, and given what they cannot do."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import pytest

import dreamer
from dreamer.cli import compose, train
from dreamer.errors import EnvironmentFault, exit_on_user_error
from dreamer.training.hooks.evaluation import Evaluation
from dreamer.training.trainer import Trainer
from tests import probe_envs, tiny_run
from tests.probe_envs import task

ROOT = Path(__file__).resolve().parents[2]


def command(folder: Path, *changes: str) -> list[str]:
    return [sys.executable, "-m", "dreamer.train", *tiny_run.argv(folder, *changes)]


def run(folder: Path, *changes: str) -> int:
    """What the command would exit with."""
    return exit_on_user_error(lambda: train.main(tiny_run.argv(folder, *changes)))


def test_a_stopped_run_is_resumed_by_the_same_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """SIGTERM saves and exits with 0; nothing is on standard error."""
    folder, changes = tmp_path / "run", ("run.steps=1000000", "log.progress=plain")
    metrics = folder / "metrics.jsonl"
    process = subprocess.Popen(
        command(folder, *changes),
        **{"cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True},
    )
    try:
        for _ in range(1200):
            if metrics.exists() and "loss/total" in metrics.read_text():
                break
            assert process.poll() is None, process.communicate()
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, err) == (0, "")
    assert "stopped, the same command resumes" in out
    (saved,) = (int(path.name) for path in (folder / "checkpoints").iterdir())
    assert saved >= 30
    with Trainer(tiny_run.config(folder, *changes)) as trainer:
        assert trainer.step == saved
        assert trainer.loop.learner.updates > 0
    assert f"resumed {folder} at step {saved:,}" in capsys.readouterr().out


@pytest.fixture(scope="module")
def finished(tmp_path_factory: Any) -> Path:
    return tiny_run.finished(tmp_path_factory)[0]


def test_a_finished_run_says_so(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny_run.copy(finished, tmp_path / "run")
    before = (folder / "metrics.jsonl").read_text()
    assert run(folder, "log.progress=plain") == 0
    out, err = capsys.readouterr()
    assert f"{folder} is complete; raise run.steps to train on" in out
    assert err == ""
    assert (folder / "metrics.jsonl").read_text() == before


def test_the_folder_of_a_run_alone_resumes_it(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny_run.copy(finished, tmp_path / "run")
    argv = [f"run.dir={folder}", "log.progress=plain"]
    assert exit_on_user_error(lambda: train.main(argv)) == 0
    assert f"{folder} is complete; raise run.steps to train on" in capsys.readouterr().out
    agent = dreamer.train({"run": {"dir": folder}})
    assert agent.config.env.task == compose.compose(tiny_run.argv(folder)).env.task
    assert (agent.step, repr(agent)[:45]) == (100, "TrainedAgent(tests.probe_envs:probe/Drawn-v0,")
    assert len(repr(agent)) < 100
    assert exit_on_user_error(lambda: train.main([*argv, "seed=1"])) == 2
    assert f"run.dir={folder} alone resumes it as it was" in capsys.readouterr().err


def test_a_changed_configuration_is_refused_until_it_is_accepted(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny_run.copy(finished, tmp_path / "run")
    changes = ("agent.losses.reward=2", "replay.online=false", "run.steps=102")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert run(folder, *changes) == 2
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert "agent.losses.reward: 1.0 -> 2.0; replay.online: true -> false; " in line
    assert out == ""
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert run(folder, *changes, "run.accept_changes=true", "log.progress=plain") == 0
    assert "done: step 102" in capsys.readouterr().out
    assert "reward: 2.0" in (folder / "config.yaml").read_text()


BAD = {
    "id": (
        ["env.task=Cartpole-v1"],
        "env.task=Cartpole-v1 is no registered gymnasium id; did you mean CartPole-v1?",
    ),
    "key": (["env.tsk=CartPole-v1"], "env.tsk=CartPole-v1: no such key"),
    "batch": (
        ["devices=4", "replay.batch_size=6"],
        "replay.batch_size=6 cannot be split over 4 devices; make it a multiple of 4",
    ),
    "devices": (["devices=5"], "devices=5: there are 4; allowed are 0"),
    "platform": (["platform=tpu"], "platform=tpu: jax finds no such device here"),
    "small": (["replay.capacity=9"], "raise it to at least 24"),
    "memory": (["replay.capacity=1e12"], "the largest capacity that fits is replay.capacity="),
    "keys": (
        ["agent.encoder.keys=picture"],
        "agent.encoder.keys=picture matches no observation; there are observation",
    ),
    "pixels": (
        [task("Walk"), "env.pixels=true"],
        "env.pixels=true needs an environment that renders",
    ),
    "package": (["env.task=nosuchpackage:A-v0"], "pip install nosuchpackage"),
    "module": (["env.task=.foo:CartPole-v1"], "env.task=.foo:CartPole-v1: .foo cannot be imported"),
    "decay": (["agent.optimizer.beta2=1"], "agent.optimizer.beta2=1: expected"),
    "horizon": (["agent.returns.horizon=0.5"], "agent.returns.horizon=0.5: expected"),
}


@pytest.mark.parametrize(("changes", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_refused_in_one_line_and_leaves_nothing(
    changes: list[str], message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "a" / "run", *changes) == 2
    out, err = capfd.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_game_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    argv = ["env=atari", "env.task=pongg", f"run.dir={tmp_path / 'run'}", "platform=cpu"]
    assert exit_on_user_error(lambda: train.main(argv)) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "env.task=pongg is no task of atari; did you mean pong?" in line
    assert list(tmp_path.iterdir()) == []


def test_the_command_itself_exits_with_2_and_one_line(tmp_path: Path) -> None:
    """With all that packages print and warn when they are imported."""
    done = subprocess.run(
        command(tmp_path / "run", "env.task=Cartpole-v1"),
        **{"cwd": ROOT, "capture_output": True, "text": True, "timeout": 120},
    )
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: env.task=Cartpole-v1 is no registered gymnasium id")
    assert list(tmp_path.iterdir()) == []


def foreign(folder: Path) -> str:
    folder.mkdir()
    (folder / "thesis.tex").write_text("")
    return "holds files but no config.yaml of a dreamer run"


def occupied(folder: Path) -> str:
    folder.write_text("")
    return "is not a folder; choose another with run.dir=PATH"


@pytest.mark.parametrize("prepare", [foreign, occupied])
def test_a_folder_of_something_else_is_left_alone(
    prepare: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    message = prepare(tmp_path / "run")
    before = sorted(tmp_path.rglob("*"))
    assert run(tmp_path / "run") == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert message in line
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_cannot_be_written_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """As on a read-only disk; permissions do not stop the administrator."""

    def refuse(*_: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("dreamer.system.files.probe", refuse)
    assert run(tmp_path / "run") == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "cannot be written: Read-only file system; " in line
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_folder_that_cannot_be_made_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert run(tmp_path / "run", f"checkpoint.dir={tmp_path / 'file'}") == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert f"checkpoint.dir={tmp_path / 'file'} cannot be written" in line
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_signal_during_the_start_is_a_request_to_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run is saved before its first step, and resumes."""
    compose_for_real = compose.compose

    def interrupted(argv: list[str]) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return compose_for_real(argv)

    with monkeypatch.context() as patch:
        patch.setattr(compose, "compose", interrupted)
        assert run(tmp_path / "run", "log.progress=plain") == 0
    assert "stopped, the same command resumes: step 0, " in capsys.readouterr().out
    assert run(tmp_path / "run", "log.progress=plain", "run.steps=6") == 0
    out = capsys.readouterr().out
    assert f"resumed {tmp_path / 'run'} at step 0" in out
    assert "done: step 6" in out


def test_ctrl_c_outside_of_training_is_one_word(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> int:
        raise KeyboardInterrupt

    assert exit_on_user_error(main) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize(("status", "waits"), [(130, False), (0, True), (2, True)])
def test_only_ctrl_c_does_not_wait_for_threads_that_write(status: int, waits: bool) -> None:
    code = """
import sys, threading, time
from dreamer.cli import command
write = lambda: (time.sleep(0.5), print("written"))
threading.Thread(target=write).start()
print("started", flush=True)
command.run(lambda: int(sys.argv[1]), announced=False)
"""
    command = [sys.executable, "-c", code, str(status)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == status
    assert done.stdout == ("started\nwritten\n" if waits else "started\n")


def test_a_second_run_in_the_same_folder_is_refused(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny_run.copy(finished, tmp_path / "run")
    with Trainer(tiny_run.config(folder)) as trainer:
        name = "tests.probe_envs:probe/Drawn-v0"
        assert repr(trainer) == f"Trainer({name}, nano, step 100, in {folder})"
        capsys.readouterr()
        before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
        assert run(folder) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"run folder {folder} is in use by a run; " in line
        assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert run(folder) == 0


def test_what_an_environment_breaks_ends_the_run_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "run", task("Broken")) == 2
    *warned, line = capsys.readouterr().err.splitlines()
    assert all(one.startswith("warning: environment ") for one in warned)
    assert "environment 0 gave NaN or infinity as observation" in line


FRAGILE = (task("Fragile"), "log.progress=plain", "env.restarts=0")


@pytest.mark.parametrize(
    "changes", [(), pytest.param(("replay.where=device",), marks=pytest.mark.slow)]
)
def test_what_was_learned_before_an_environment_broke_is_saved(
    changes: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second of two environments breaks in a step that the first has done already. Everything
    is as a run without a fault has it, but for the episodes, which are given up."""
    folder, options = tmp_path / "run", (*FRAGILE, *changes)
    probe_envs.Fragile.steps_left = 61
    assert run(folder, *options) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "error: environment 1 failed in its step with RuntimeError: out of order "
        f"({probe_envs.__file__}, line "
    )
    (saved,) = (int(path.name) for path in (folder / "checkpoints").iterdir())
    assert f"all that was learned until step {saved} is saved in {folder}, and the same" in line
    with (
        Trainer(tiny_run.config(folder, *options)) as resumed,
        Trainer(tiny_run.config(tmp_path / "other", *options)) as whole,
    ):
        whole.begin()
        while whole.step < saved:
            whole.loop.advance(2**63)
        ours, theirs = resumed.loop, whole.loop
        assert ours.learner.updates == theirs.learner.updates > 4
        tiny_run.assert_same(
            jax.device_get(ours.learner.params), jax.device_get(theirs.learner.params)
        )
        tiny_run.assert_same(ours.get_arrays()[0], theirs.get_arrays()[0])
        assert ours.ratio.get_state() == theirs.ratio.get_state()
        assert (ours.driver.time_step.step_type == 0).all()
        assert ours.driver.episodes.lengths.tolist() == [0, 0]
        resumed.run()
    out = capsys.readouterr().out
    assert f"resumed {folder} at step {saved}; 2 environments could not be restored" in out
    assert "done: step 100" in out


@pytest.mark.slow
def test_environments_of_an_evaluation_may_break_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of training are then restored exactly, and the evaluation is made up for."""
    options = (*FRAGILE, "eval.every=40", "run.steps=40", "eval.episodes=2", "eval.num_envs=2")
    evaluate = Evaluation._evaluate

    def breaking(evaluation: Evaluation, trainer: Trainer) -> None:
        probe_envs.Fragile.steps_left = 3
        evaluate(evaluation, trainer)

    with monkeypatch.context() as patch:
        patch.setattr(Evaluation, "_evaluate", breaking)
        assert run(tmp_path, *options) == 0
    assert "warning: no evaluation at step 40: " in capsys.readouterr().err
    assert not [line for line in tiny_run.lines(tmp_path) if "eval/mean" in line]
    assert run(tmp_path, *options) == 0
    out = capsys.readouterr().out
    assert f"resumed {tmp_path} at step 40" in out
    assert "could not be restored" not in out
    assert [line["step"] for line in tiny_run.lines(tmp_path) if "eval/mean" in line] == [40]


def test_a_dead_worker_is_restarted_or_ends_the_run(tmp_path: Path) -> None:
    options = (task("Walk"), "env.workers=process", "env.restarts=1")
    with Trainer(tiny_run.config(tmp_path, *options)) as trainer:
        trainer.begin()
        trainer.after(trainer.loop.advance(2**63))
        workers = trainer.loop.env._pool.workers
        workers[1].process.kill()
        trainer.after(trainer.loop.advance(2**63))
        assert trainer.loop.driver.time_step.step_type[1] == 2
        workers[0].process.kill()
        with pytest.raises(EnvironmentFault, match="environment 0 died .* until step 6 is saved"):
            trainer.run()
    assert {"step": 4, "env/restarts": 1} in tiny_run.lines(tmp_path)
    with Trainer(tiny_run.config(tmp_path, *options)) as trainer:
        assert trainer.step == 6
