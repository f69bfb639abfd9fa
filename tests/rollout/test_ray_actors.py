"""Actors on a Ray cluster of two nodes of this machine, of which one dies."""

import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from dreamer.errors import EnvironmentFault, UserError
from dreamer.rollout.actor import STEPS
from dreamer.training.trainer import Trainer
from tests import probe_envs, tiny_run

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
ENDLESS = probe_envs.task("Endless")  # episodes end only by failures
OPTIONS = (ENDLESS, "run.actors=ray", "run.num_actors=2", "replay.capacity=10000")


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """One of two nodes with two CPUs each."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
        made = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False}
        )
        made.add_node(num_cpus=2)
    monkeypatch.setenv("RAY_ADDRESS", made.address)
    yield made
    ray.shutdown()
    made.shutdown()


def call(trainer: Trainer, index: int, function: Any) -> Any:
    """The result of a function of the actor, after its pending chunks."""
    loop: Any = trainer.loop
    return ray.get(loop._actors._handles[index].__ray_call__.remote(function), timeout=60)


def node(actor: Any) -> str:
    return str(ray.get_runtime_context().get_node_id())


def advance(trainer: Trainer, until: int) -> None:
    trainer.begin()
    end = time.monotonic() + 180
    while trainer.step < until:
        assert time.monotonic() < end, f"stuck at step {trainer.step}"
        trainer.after(trainer.loop.advance(2**63))


def test_a_run_ends_with_its_result_although_an_actor_and_a_node_die(
    cluster: Any, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    config = tiny_run.config(tmp_path / "run", *OPTIONS, "run.steps=2000", "log.progress=plain")
    with Trainer(config) as trainer:
        advance(trainer, 100)
        assert call(trainer, 0, node) != call(trainer, 1, node)
        time.sleep(2)  # in which no actor runs further ahead than it may
        for index in (0, 1):
            played = call(trainer, index, lambda actor: actor._worker._driver.number)
            assert played - trainer.step // 2 <= 4 * STEPS

        os.kill(call(trainer, 0, lambda _: os.getpid()), signal.SIGKILL)
        advance(trainer, 600)
        assert len(trainer.loop.restarts) == 1

        cluster.remove_node(cluster.list_all_nodes()[1], allow_graceful=False)
        trainer.run()
        assert [call(trainer, i, node) for i in (0, 1)] == [cluster.head_node.node_id] * 2
        restarts = trainer.loop.restarts
        rings = trainer.loop.get_arrays()[0]["replay"]["rings"]
        assert trainer.updates == (2000 - 24) // 4  # one for every 4 steps from the 24th on

    assert 2 <= len(restarts) <= 5  # an actor that was put on the dead node counts once more
    for index in (0, 1):
        is_last, is_first = (rings[key][index, :1000] for key in ("is_last", "is_first"))
        ends = np.flatnonzero(is_last)
        assert np.array_equal(ends + 1, np.flatnonzero(is_first)[1:])
        deaths = sum(restart.env == index for restart in restarts)
        assert min(deaths, 1) <= len(ends) <= deaths  # some die before they send anything
        assert not rings["is_terminal"][index, :1000].any()
    out, err = capfd.readouterr()
    lines_on_restarts = [line for line in out.splitlines() if "; restarted" in line]
    assert len(lines_on_restarts) == len(restarts)
    assert lines_on_restarts[0].startswith("actor 0 on ")
    assert lines_on_restarts[0].endswith(" died; restarted, 1 of env.restarts=10")
    assert "raylet" not in out + err
    assert f"done: step 2,000, 494 updates, in {tmp_path}/run" in out


@pytest.mark.parametrize(
    ("address", "message"),
    [
        (
            "127.0.0.1:1",
            r"no Ray cluster answers at 127.0.0.1:1 \(.*refused\), set by run.ray_a",
        ),
        ("ray://a:1", "run.ray_address=ray://a:1: expected HOST:PORT of the head of a Ray cluster"),
        ("a:b", "run.ray_address=a:b: expected HOST:PORT"),
        ("auto", "no Ray cluster answers at auto"),
    ],
)
def test_an_address_without_a_cluster_is_refused_at_once(
    address: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        Trainer(tiny_run.config(tmp_path / "run", *OPTIONS, f"run.ray_address={address}"))
    assert not (tmp_path / "run").exists()


def test_errors_of_actors_are_one_line(cluster: Any, tmp_path: Path) -> None:
    from dreamer.rollout.ray_actors import RayActors

    many = ("env.num_envs=50", "run.num_actors=50", "replay.capacity=10000")
    with pytest.raises(UserError, match="run.num_actors=50 .* but the Ray cluster has 4; add"):
        Trainer(tiny_run.config(tmp_path / "run", *OPTIONS, *many))
    assert not (tmp_path / "run").exists()

    def outcome(*options: str) -> Any:
        actors = RayActors(tiny_run.config(tmp_path, *OPTIONS, *options))
        try:
            actors.send(0, {})
            actors.start(0, life=0)
            end = time.monotonic() + 120
            while time.monotonic() < end:
                if received := actors.receive([0], 5):
                    return received
            return None
        finally:
            actors.close()

    with pytest.raises(UserError, match="env.task=Nowhere-v0"):
        outcome("env.task=Nowhere-v0")
    index, fault = outcome()  # without weights
    assert index == 0
    assert isinstance(fault, EnvironmentFault)
    assert "failed with KeyError" in str(fault)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_leaves_nothing_behind(number: signal.Signals, tmp_path: Path) -> None:
    argv = tiny_run.argv(tmp_path / "run", *OPTIONS, "run.steps=1000000", "log.progress=plain")
    process = subprocess.Popen(
        [sys.executable, "-m", "dreamer.train", *argv],
        cwd=ROOT,
        env={key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout
    lines = []
    for line in process.stdout:
        lines.append(line)
        if " 30 steps" in line:
            break
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) > 3
    os.killpg(process.pid, number)  # as a terminal does
    lines += process.stdout.readlines()
    assert process.wait(60) == 0
    assert lines[-1].startswith("stopped, the same command resumes: step ")
    assert not [line for line in lines if "ray" in line.lower() and "actors on Ray" not in line]
    _, alive = psutil.wait_procs(children, 20)
    assert not alive


def test_a_cluster_of_this_process_listens_to_this_machine_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An actor makes an environment that this process may make, and Ray's settings are restored."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with Trainer(tiny_run.config(tmp_path / "run", *OPTIONS)) as trainer:
        advance(trainer, 20)
        own = psutil.Process()
        listening = {
            connection.laddr.ip.removeprefix("::ffff:")
            for process in (own, *own.children(recursive=True))
            for connection in process.net_connections("tcp")
            if connection.status == "LISTEN"
        }
    assert listening == {"127.0.0.1"}
    assert ray._private.worker._worker_logs_enabled
