"""Several hosts: discovery, collective work, and failures."""

import signal
import socket
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import psutil
import pytest

from dreamer.api.training import train
from dreamer.checkpoint import arrays, manager
from dreamer.config.run import RunConfig
from dreamer.distributed import context, hosts, sync
from dreamer.errors import EnvironmentFault, UserError
from dreamer.system.signals import StopRequest
from dreamer.training.trainer import Trainer
from tests import several_hosts, tiny_run

# ------------------------------------------------------------------------------- discovery


def settings(**given: Any) -> RunConfig:
    return RunConfig.model_validate(given)


TOGETHER = {"coordinator": "node0:1234", "num_processes": 4, "process_id": 3}


def test_one_process_by_default() -> None:
    assert not context.is_distributed(settings(), {})
    assert not context.is_distributed(
        settings(coordinator="a:1", num_processes=1, process_id=0), {}
    )


def test_an_address_and_two_numbers() -> None:
    assert context.is_distributed(settings(**TOGETHER), {})
    assert context.is_distributed(settings(coordinator="auto"), {})


@pytest.mark.parametrize(
    ("env", "found"),
    [
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}, "SLURM"),
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, ""),
        # A script that sbatch starts, which starts no step.
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, ""),
        ({"OMPI_COMM_WORLD_SIZE": "8"}, "Open MPI"),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, ""),
        ({"TPU_WORKER_HOSTNAMES": "10.0.0.1,10.0.0.2"}, "TPU"),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, ""),
        ({"MEGASCALE_NUM_SLICES": "2"}, "TPU"),
        ({"OMPI_COMM_WORLD_SIZE": "many"}, ""),
        ({}, ""),
    ],
)
def test_only_several_tasks_are_taken_for_hosts(env: dict[str, str], found: str) -> None:
    assert context.detected(env) == found
    assert context.is_distributed(settings(), env) == bool(found)
    assert not context.is_distributed(settings(coordinator="none"), env)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (
            {"process_id": 4},
            "run.process_id=4 is not below run.num_processes=4; allowed are 0 to 3",
        ),
        ({"process_id": -1}, "add run.process_id"),
        ({"num_processes": 0}, "add run.num_processes"),
        ({"coordinator": ""}, "run.num_processes is set without run.coordinator=HOST:PORT"),
        ({"coordinator": "", "num_processes": 0}, "run.process_id is set without"),
        ({"coordinator": "node0"}, "run.coordinator=node0 is no address; write HOST:PORT"),
        ({"coordinator": "node0:99999"}, "run.coordinator=node0:99999 is no address"),
    ],
)
def test_settings_that_do_not_fit_together(given: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError) as error:
        context.is_distributed(settings(**TOGETHER | given), {})
    assert line in str(error.value)


def test_a_program_that_calls_is_one_process(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run.coordinator=auto is for the command line"):
        train({"run.coordinator": "auto", "run.dir": str(tmp_path / "run")})
    assert not (tmp_path / "run").exists()


def test_a_coordinator_that_does_not_answer() -> None:
    port = several_hosts.free_port()
    address = {"coordinator": f"127.0.0.1:{port}", "num_processes": 2, "process_id": 1}
    line = f"run.coordinator=127.0.0.1:{port} does not answer after run.join_seconds=0.1: Conn"
    with (
        pytest.raises(UserError, match=line),
        context.connect(settings(**address, join_seconds=0.1)),
    ):
        pass


def test_a_signal_ends_the_wait_for_the_first() -> None:
    address = {"coordinator": f"127.0.0.1:{several_hosts.free_port()}", "num_processes": 2}
    stop = StopRequest()
    stop.requested = True
    line = "stopped before run.coordinator=.* answered; the same command starts again"
    with (
        pytest.raises(UserError, match=line),
        context.connect(settings(**address, process_id=1, join_seconds=20), stop),
    ):
        pass


GRACE_SCRIPT = """
import sys
from dreamer.distributed import context
from dreamer.config.run import RunConfig
from dreamer.system.signals import StopRequest

address = {"coordinator": f"127.0.0.1:{sys.argv[1]}", "num_processes": 2, "process_id": 0}
with StopRequest() as stop:
    print("waits", flush=True)
    with context.connect(RunConfig.model_validate(address | {"grace_seconds": 0.1}), stop):
        pass
"""


def listening(pid: int) -> set[str]:
    """The addresses at which a process listens."""
    found = psutil.Process(pid).net_connections("tcp")
    return {one.laddr.ip.removeprefix("::ffff:") for one in found if one.status == "LISTEN"}


def test_a_process_0_that_waits_for_others_ends_when_its_grace_is_over(tmp_path: Path) -> None:
    command = ["-c", GRACE_SCRIPT, str(several_hosts.free_port())]
    with several_hosts.programs([command], tmp_path) as (host,):
        several_hosts.wait_until(lambda: listening(host.process.pid), [host])
        assert listening(host.process.pid) == {"127.0.0.1"}
        host.process.send_signal(signal.SIGTERM)
        assert host.end(30) == 128 + signal.SIGTERM
        line = "run.grace_seconds=0.1 passed before all hosts had joined"
        assert host.text.splitlines()[-1] == line


# ------------------------------------------------------------------------ collective work

TOGETHER_SCRIPT = """
import json, psutil, sys
import numpy as np
from dreamer.distributed import context, hosts, mesh
from dreamer.config.run import RunConfig

port, number = sys.argv[1:]
address = {"coordinator": f"localhost:{port}", "num_processes": 2, "process_id": number}
run = RunConfig.model_validate(address if port else {})
with context.connect(run):
    own = mesh.local_devices("cpu", 0, 4)
    total = mesh.compile_shards(
        lambda x: (mesh.place(own), mesh.jax.lax.psum(x, mesh.AXIS)), own, 0, 0, ()
    )
    place, total = total(mesh.spread(np.full((1, 2), 3.0 + int(number)), own))
    texts = [hosts.exchange(f"{turn} from {number}") for turn in range(3)]
    print(json.dumps({
        "who": [hosts.index(), hosts.count(), len(own), len(mesh.everywhere(own))],
        "place": np.asarray(place).tolist(),
        "total": np.asarray(total).tolist(),
        "texts": texts,
        "beyond": [
            str(one.laddr) for one in psutil.Process().net_connections("tcp")
            if one.status == "LISTEN" and "127.0.0.1" not in one.laddr.ip
        ],
    }))
"""


LAUNCHERS = {
    "SLURM": {
        **{"SLURM_JOB_ID": "{port}", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"},
        **{"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "{number}", "SLURM_LOCALID": "{number}"},
    },
    "Open MPI": {
        **{"OMPI_MCA_orte_hnp_uri": "{port}.0;tcp://127.0.0.1:1", "OMPI_COMM_WORLD_SIZE": "2"},
        **{"OMPI_COMM_WORLD_RANK": "{number}", "OMPI_COMM_WORLD_LOCAL_RANK": "{number}"},
    },
}


@pytest.mark.parametrize(
    "launcher",
    ["", *(pytest.param(name, marks=pytest.mark.slow) for name in LAUNCHERS)],
)
def test_two_hosts_join_and_add(launcher: str, tmp_path: Path) -> None:
    port = several_hosts.free_port()
    commands, environments = [], []
    for number in range(2):
        commands.append(["-c", TOGETHER_SCRIPT, "" if launcher else str(port), str(number)])
        given = LAUNCHERS.get(launcher, {}).items()
        environments.append({k: v.format(port=port, number=number) for k, v in given})
    with several_hosts.programs(commands, tmp_path, environments) as made:
        assert [host.end(60) for host in made] == [0, 0], [host.text for host in made]
        texts = [[f"{turn} from 0", f"{turn} from 1"] for turn in range(3)]
        for number, host in enumerate(made):
            assert f'"who": [{number}, 2, 1, 2]' in host.text
            assert '"place": [0]' in host.text
            assert '"total": [[7.0, 7.0]]' in host.text
            assert f'"texts": {texts}'.replace("'", '"') in host.text
            assert launcher or '"beyond": []' in host.text  # listens to this machine alone


def saved(checkpoints: Path, part: str) -> Any:
    """Arrays of the newest checkpoint."""
    step = manager.newest(checkpoints)
    path = checkpoints / str(step)
    return arrays.read(path / part)


# The advantages that actor and critic learn from are as small as rounding in the beginning.
WORLD = ("encoder", "rssm", "decoder", "reward", "cont")
HOST_LOOP = ("replay.where=device", "run.steps=60", "eval.every=30", "eval.episodes=1")
DEVICE_LOOP = ("env=gymnax", "env.task=CartPole-v1", "env.time_limit=7", "replay.capacity=400")


@pytest.mark.slow
@pytest.mark.parametrize("changes", [HOST_LOOP, DEVICE_LOOP], ids=["host loop", "device loop"])
def test_two_hosts_train_as_one_with_two_devices(changes: tuple[str, ...], tmp_path: Path) -> None:
    changes = (*changes, "env.num_envs=4")
    with several_hosts.training(tmp_path / "two", *changes) as made:
        assert [host.end() for host in made] == [0, 0], [host.text for host in made]
    with Trainer(tiny_run.config(tmp_path / "one", *changes, "devices=2")) as trainer:
        trainer.run()
    folders = [tmp_path / "two/checkpoints", tmp_path / "two/hosts/1/checkpoints"]
    one = saved(tmp_path / "one/checkpoints", "state")
    for folder in folders:
        two = saved(folder, "state")
        assert two["updates"] == one["updates"] > 5
        for name in WORLD:
            for ours, theirs in zip(
                *(jax.tree.leaves(x["params"][name]) for x in (two, one)), strict=True
            ):
                np.testing.assert_allclose(ours, theirs, rtol=1e-2, atol=1e-4)
    rings = [saved(folder, "replay")["replay"]["rings"]["reward"] for folder in folders]
    np.testing.assert_array_equal(
        np.concatenate(rings),
        saved(tmp_path / "one/checkpoints", "replay")["replay"]["rings"]["reward"],
    )
    assert (tmp_path / "two/metrics.jsonl").exists()
    assert not (tmp_path / "two/hosts/1/metrics.jsonl").exists()
    episodes = [
        sorted(
            line["episode/return"]
            for line in tiny_run.lines(tmp_path / name)
            if "episode/return" in line
        )
        for name in ("one", "two")
    ]
    assert episodes[0] == episodes[1] != []


# ------------------------------------------------------------------------------- failures


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_a_watchdog_ignores_signals(number: int, capfd: pytest.CaptureFixture[str]) -> None:
    watchdog = context.Watchdog()
    watchdog.say("first")
    time.sleep(0.2)  # until the shell runs
    watchdog._process.send_signal(number)
    watchdog.say("last")
    assert watchdog._process.stdin is not None
    watchdog._process.stdin.close()  # as when this process ends
    assert watchdog._process.wait(10) == 0
    assert capfd.readouterr().err == "last\n"


def test_the_loss_of_a_watchdog_is_harmless() -> None:
    watchdog = context.Watchdog()
    watchdog._process.kill()
    watchdog._process.wait()
    watchdog.say("word")
    watchdog.dismiss()


class Ended(Exception):
    """The process would be over."""


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (jax.errors.JaxRuntimeError("UNAVAILABLE: heartbeat timeout"), True),
        (jax.errors.JaxRuntimeError("INTERNAL: Gloo: connection reset by peer"), True),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory"), False),
        (ConnectionResetError("Connection reset by peer"), False),
        (RuntimeError("the database is unavailable"), False),
    ],
)
def test_only_an_error_of_the_connection_is_a_lost_host(
    error: Exception, lost: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends: list[int] = []

    def end(status: int) -> None:
        ends.append(status)
        raise Ended

    monkeypatch.setattr(context, "_end", end)
    monkeypatch.setattr(context.atexit, "register", lambda *_: None)
    monkeypatch.setattr(context, "_join", lambda *_: None)
    with (
        pytest.raises(Ended if lost else type(error)),
        context.connect(settings(**TOGETHER)),
    ):
        raise error
    assert ends == ([context.STATUS] if lost else [])


ENDLESS = ("run.steps=1000000", "checkpoint.every_steps=20", "replay.where=host")


def both_have_saved(folder: Path) -> bool:
    places = [folder / "checkpoints", folder / "hosts/1/checkpoints"]
    return all(manager.steps(place) for place in places)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_host_that_dies_ends_the_other_and_both_resume(victim: int, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with several_hosts.training(folder, *ENDLESS) as made:
        several_hosts.wait_until(lambda: both_have_saved(folder), made)
        made[victim].process.send_signal(signal.SIGKILL)
        since = time.monotonic()
        other = made[1 - victim]
        assert other.end(60) != 0
        print(f"ended after {time.monotonic() - since:.1f} s")
        assert other.last_line() == (
            f"error: host {1 - victim} of 2 ended because another host was lost, or because of a "
            "signal from outside; the same command on all hosts resumes"
        )
    places = [folder / "checkpoints", folder / "hosts/1/checkpoints"]
    shared = max(set.intersection(*(set(manager.steps(place)) for place in places)))
    with several_hosts.training(folder, *ENDLESS, "log.progress=plain") as made:
        several_hosts.wait_until(lambda: "updates  episode/return" in made[0].text, made)
        made[1].process.send_signal(signal.SIGTERM)  # a stop request to one stops both
        assert [host.end() for host in made] == [0, 0], [host.text for host in made]
    assert f"resumed {folder} at step {shared:,}" in made[0].text
    assert f"host 1: resumed {folder}/hosts/1 at step {shared:,}" in made[0].text
    assert "stopped, the same command resumes" in made[0].text
    newest = {manager.newest(place) for place in places}
    assert len(newest) == 1
    assert newest.pop() > shared


def test_a_host_whose_environments_fail_does_not_save_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(until: int) -> None:
        raise EnvironmentFault("it broke")

    with Trainer(tiny_run.config(tmp_path / "run")) as trainer:
        monkeypatch.setattr(hosts, "count", lambda: 2)
        monkeypatch.setattr(trainer.checkpoints, "save", lambda: pytest.fail("saved"))
        monkeypatch.setattr(trainer.loop, "advance", fail)
        line = "it broke; nothing is saved in .*, and the same command resumes"
        with pytest.raises(EnvironmentFault, match=line):
            trainer.run()


def test_a_requested_save_waits_while_updates_are_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sync.SingleHost, "save_requested", True)
    saves: list[Any] = []
    with Trainer(tiny_run.config(tmp_path / "run", "log.progress=plain")) as trainer:
        trainer.begin()
        monkeypatch.setattr(trainer.checkpoints, "save_soon", lambda: saves.append(trainer.step))
        for trainer.logging.skipping in (True, False):
            trainer.checkpoints.on_step(trainer)
            assert len(saves) == (0 if trainer.logging.skipping else 1)
    assert "SIGUSR1" not in capsys.readouterr().out


@pytest.mark.slow
def test_hosts_that_do_not_join(tmp_path: Path) -> None:
    port = several_hosts.free_port()
    several = [f"run.coordinator=127.0.0.1:{port}", "run.num_processes=2", "run.process_id=0"]
    command = tiny_run.argv(tmp_path / "run", *several, "run.join_seconds=2")
    with several_hosts.programs([["-m", "dreamer.train", *command]], tmp_path) as (host,):
        assert host.end(60) != 0
        assert host.last_line().startswith(
            "error: run.join_seconds=2 passed before all hosts had joined"
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET6) as taken:
        taken.bind(("::", 0))
        taken.listen()
        changes = f"run.coordinator=127.0.0.1:{taken.getsockname()[1]}"
        several = [changes, "run.num_processes=2", "run.process_id=0"]
        command = ["-m", "dreamer.train", *tiny_run.argv(tmp_path / "run", *several)]
        with several_hosts.programs([command], tmp_path) as (host,):
            assert host.end(60) == 2
            assert host.last_line().startswith(f"error: {changes}: cannot listen at port ")
