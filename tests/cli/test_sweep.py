"""Several runs by one command: each combination is a job in a folder of its own, wherever it runs,
and one that fails leaves the others alone."""

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dreamer.cli import sweep, train
from dreamer.cli.sweep import Result
from dreamer.errors import UserError
from dreamer.system.signals import StopRequest
from tests import probe_envs, tiny_run

ROOT = Path(__file__).resolve().parents[2]
BROKEN = f"{probe_envs.task('Walk')},tests.probe_envs:probe/Broken-v0"


@pytest.mark.parametrize(
    ("argument", "values"),
    [
        ("seed=0,1", ["seed=0", "seed=1"]),
        ("seed=range(0,3)", ["seed=0", "seed=1", "seed=2"]),
        ("env.task=a:b/C-v0,ALE/Pong-v5", ["env.task=a:b/C-v0", "env.task=ALE/Pong-v5"]),
        ("agent.units=choice(1,2)", ["agent.units=1", "agent.units=2"]),
        ("run.dir='a,b','c'", ["run.dir='a,b'", "run.dir='c'"]),
        ("env.image_size=[64,64],[8,8]", ["env.image_size=[64,64]", "env.image_size=[8,8]"]),
        ("env.image_size=[64,64]", ["env.image_size=[64,64]"]),
        ("run.dir=~/x", ["run.dir=~/x"]),
        ("run.dir=${", ["run.dir=${"]),
        ("nonsense", ["nonsense"]),
    ],
)
def test_values_of_an_argument(argument: str, values: list[str]) -> None:
    assert sweep._values(argument) == values


def test_every_combination_is_a_job_in_a_folder_of_its_own() -> None:
    jobs = sweep.plan(["seed=0,1", "size=1m,12m", "run.steps=10"])
    assert [str(job) for job in jobs] == [
        "seed=0 size=1m",
        "seed=0 size=12m",
        "seed=1 size=1m",
        "seed=1 size=12m",
    ]
    assert jobs[1].argv == ("seed=0", "size=12m", "run.steps=10")
    assert [job.folder for job in jobs[:2]] == [
        "runs/gymnasium-CartPole-v1-1m-seed0",
        "runs/gymnasium-CartPole-v1-12m-seed0",
    ]


def test_folders_of_the_same_name_get_what_varies() -> None:
    jobs = sweep.plan(["seed=0,1", "agent.units=8,16"])
    assert jobs[2].folder == "runs/gymnasium-CartPole-v1-nano-seed1-agent.units=8"
    assert jobs[2].argv == ("seed=1", "agent.units=8", f"run.dir={jobs[2].folder}")
    named = sweep.plan(["seed=0,1", "run.dir=x", "env.task=ALE/Pong-v5,CartPole-v1"])
    assert named[0].folder == "x-seed=0-env.task=ALE-Pong-v5"
    assert named[0].argv == ("seed=0", "env.task=ALE/Pong-v5", f"run.dir={named[0].folder}")
    referring = sweep.plan(["seed=0,1", "run.dir=x/${seed}"])
    assert [job.folder for job in referring] == ["x/0", "x/1"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["seed=0,x"], "seed=x: expected integer"),
        (["seed=0,0"], "two jobs are the same: seed=0; give each value once"),
        (["sede=0,1"], "sede=0: no such key"),
        (["seed=interval(0,1)"], r"seed=interval\(0,1\): cannot be swept; write values as in seed"),
        (["seed=0,1", "checkpoint.dir=a"], "checkpoint.dir=a is one folder for several runs"),
        (["seed=0,1", "hydra/launcher=nowhere"], "hydra/launcher=nowhere: .*Could not find"),
        (["seed=0,1", "hydra.run.dir=x"], "hydra.run.dir=x: the folder of a run is run.dir=x"),
        (["seed=0,1", "hydra/sweeper=optuna"], "leave it out; --multirun runs every combination"),
        (["seed=0,1", "hydra.launcher.x=1"], "hydra.launcher.x=1: Could not override"),
    ],
)
def test_mistakes_are_refused_before_anything_starts(
    argv: list[str], message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        train.main(["--multirun", *argv])
    assert not list(tmp_path.iterdir())


def test_a_launcher_that_is_not_installed_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sweep.EXTRAS, "nowhere", "slurm")
    with pytest.raises(
        UserError, match=r"'hydra/launcher/nowhere'.*; pip install 'dreamer\[slurm\]"
    ):
        train.main(["-m", "seed=0,1", "hydra/launcher=nowhere"])


class Jobs:
    """In place of `subprocess`: jobs end at once, every second with status 2."""

    def __init__(self, stop: StopRequest) -> None:
        self.stop, self.started = stop, 0

    def __call__(self, task: sweep.Task, config: Any) -> Result:
        self.started += 1
        self.stop.requested = self.stop.requested or self.started == 4
        return Result(config.job % 2 * 2, "error: that is how it is")


def test_how_each_job_ended_is_reported_and_a_stop_starts_no_more(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    stop = StopRequest()
    jobs, before = Jobs(stop), sweep.Task.__call__

    def call(task: sweep.Task, config: Any) -> Result:
        return before(task, config) if stop.requested else jobs(task, config)

    monkeypatch.setattr(sweep.Task, "__call__", call)
    assert sweep.sweep(["-m", "seed=0,1,2,3,4"], stop) == 1
    out, err = capsys.readouterr()
    folder = "in runs/gymnasium-CartPole-v1-nano-seed"
    assert err.splitlines() == [
        f"job 1: seed=1: failed with status 2, {folder}1: error: that is how it is",
        f"job 3: seed=3: failed with status 2, {folder}3: error: that is how it is",
    ]
    assert out.splitlines()[-4:] == [
        f"job 0: seed=0: done or stopped, {folder}0",
        f"job 2: seed=2: done or stopped, {folder}2",
        f"job 4: seed=4: not started, {folder}4",
        "stopped, the same command resumes",
    ]


class Patient(contextlib.AbstractContextManager):
    """A job that continues after SIGTERM, until Ctrl-C is pressed again."""

    def __init__(self) -> None:
        self.signals: list[str] = []

    def __exit__(self, *_: object) -> None:
        pass

    def poll(self) -> None:
        pass

    def wait(self, seconds: float) -> None:
        if self.signals:
            raise KeyboardInterrupt

    def terminate(self) -> None:
        self.signals.append("terminate")

    def kill(self) -> None:
        self.signals.append("kill")


def test_a_second_ctrl_c_ends_the_job_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another SIGTERM would count as the first."""
    stop, job = StopRequest(), Patient()
    stop.requested = True
    monkeypatch.setattr(sweep.subprocess, "Popen", lambda *_, **__: job)
    with pytest.raises(KeyboardInterrupt):
        sweep.Task([], stop)._run([])
    assert job.signals == ["terminate", "kill"]


def start(folder: Path, *options: str) -> subprocess.Popen:
    argv = [option for option in tiny_run.argv(folder) if not option.startswith("run.dir=")]
    names = {option.partition("=")[0] for option in options}
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "dreamer.train", "--multirun"),
            *(option for option in argv if option.partition("=")[0] not in names),
            *options,
        ],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "ray", "submitit_local"])
def test_a_job_that_fails_leaves_the_others_alone(launcher: str, tmp_path: Path) -> None:
    """submitit_local is what submitit_slurm is, but for the scheduler."""
    package = f"hydra_plugins.hydra_{launcher.partition('_')[0]}_launcher"
    if launcher != "basic" and not importlib.util.find_spec(package):
        pytest.skip(f"{package} is not installed")
    process = start(
        tmp_path, BROKEN, "env.restarts=0", "run.steps=30", f"hydra/launcher={launcher}"
    )
    out, err = process.communicate(timeout=300)
    assert process.returncode == 1, err
    good, bad = (
        tmp_path / "runs" / f"gymnasium-tests.probe_envs:probe-{name}-v0-nano-seed0"
        for name in ("Walk", "Broken")
    )
    assert tiny_run.lines(good)[-1]["step"] == 30
    assert (bad / "config.yaml").exists()
    (line,) = [line for line in err.splitlines() if line.startswith("job ")]
    assert line.startswith("job 1: env.task=tests.probe_envs:probe/Broken-v0: failed with status 2")
    assert "job 0: env.task=tests.probe_envs:probe/Walk-v0: done, in runs/" in out
    if launcher != "basic":
        assert "error: environment 0 gave NaN or infinity as observation" in line
        assert Path(line.rpartition("; see ")[2]).is_relative_to(tmp_path / "runs" / "multirun")


@pytest.mark.slow
def test_ctrl_c_saves_the_running_job_and_starts_no_other(tmp_path: Path) -> None:
    process = start(tmp_path, "seed=0,1", "run.steps=1000000", "log.progress=plain")
    assert process.stdout
    for line in process.stdout:
        if " 30 steps" in line:
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    first, second = (f"runs/gymnasium-tests.probe_envs:probe-Drawn-v0-nano-seed{i}" for i in (0, 1))
    assert f"job 0: seed=0: done or stopped, in {first}" in out
    assert f"job 1: seed=1: not started, in {second}" in out
    assert list((tmp_path / first / "checkpoints").iterdir())
    assert not (tmp_path / second).exists()
