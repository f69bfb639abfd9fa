"""The shard of each host: folders, environments, replay and batch; and what is refused."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dreamer.cli import compose
from dreamer.config import Config, serialization
from dreamer.distributed import shard
from dreamer.envs import registry
from dreamer.envs.jax import batched
from dreamer.errors import UserError
from dreamer.training.device_loop import cycle
from tests import tiny_run
from tests.several import together


def config(*changes: str) -> Config:
    return tiny_run.config(Path("run"), "env.num_envs=4", *changes)


def test_one_host_keeps_the_configuration() -> None:
    given = config()
    assert shard.of_run(given) is given
    assert shard.of_host(given) is given


def test_the_shards_of_all_hosts_make_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = config("run.steps=101", "replay.capacity=61")
    parts = together(monkeypatch, 2, lambda number: shard.of_host(whole))
    assert [part.env.first for part in parts] == [0, 2]
    for part in parts:
        assert (part.env.num_envs, part.replay.batch_size, part.run.steps) == (2, 2, 51)
        slots = part.replay.capacity // part.env.num_envs
        assert slots == whole.replay.capacity // whole.env.num_envs
        assert 2 * part.first_update == whole.first_update
        assert cycle(part) == cycle(whole)
        assert Fraction(part.replay.train_ratio) == Fraction(whole.replay.train_ratio)


def test_every_host_has_a_folder_and_none_saves_its_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    several = "run.num_processes=3", "run.coordinator=a:1", "env.num_envs=3", "checkpoint.dir=saves"
    given = [config(*several, f"run.process_id={number}") for number in range(3)]
    parts = together(monkeypatch, 3, lambda number: shard.of_run(given[number]))
    assert [part.run.dir for part in parts] == ["run", "run/hosts/1", "run/hosts/2"]
    assert [part.checkpoint.dir for part in parts] == ["saves", "saves/hosts/1", "saves/hosts/2"]
    alone = config("env.num_envs=3", "checkpoint.dir=saves")
    assert serialization.to_yaml(parts[0]) == serialization.to_yaml(alone)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (["env.num_envs=3"], "env.num_envs=3 cannot be divided among 2 hosts; make it a multiple"),
        (["replay.load=somewhere"], "replay.load=somewhere supports one host, and there are 2"),
        (["run.seeds=2"], "run.seeds=2 supports one host, and there are 2"),
        (
            ["run.actors=ray", "run.num_actors=2"],
            "run.actors=ray supports one host, and there are 2",
        ),
    ],
)
def test_options_for_one_host_are_refused(
    changes: list[str], line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = config(*changes)
    with pytest.raises(UserError, match=line):
        together(monkeypatch, 2, lambda number: shard.of_run(given))


def test_other_settings_on_another_host_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    given = [config(f"seed={number}", f"run.process_id={number}") for number in range(2)]
    with pytest.raises(UserError, match="host 1 has seed: 1, host 0 has seed: 0; start all"):
        together(monkeypatch, 2, lambda number: shard.of_run(given[number]))


def test_hosts_that_would_compile_another_program_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    together(monkeypatch, 2, lambda number: shard.compare_devices(4, "device memory"))
    line = "host 1 has 4 devices and replay.where=host, host 0 has 4 devices and replay.where=dev"
    with pytest.raises(UserError, match=line):
        together(
            monkeypatch,
            2,
            lambda number: shard.compare_devices(4, ("device memory", "host memory")[number]),
        )


def test_environments_are_those_of_one_host() -> None:
    given = compose.compose(["env=gymnasium", "env.task=CartPole-v1", "env.num_envs=4"])

    def first(part: Any, count: int) -> Any:
        env = registry.make(part, count, 5)
        try:
            return env.reset().observation["observation"]
        finally:
            env.close()

    whole = first(given.env, 4)
    part = first(given.env.model_copy(update={"first": 2}), 2)
    assert part.tolist() == whole[2:].tolist() != whole[:2].tolist()
    np.testing.assert_array_equal(batched.env_keys(5, 2, 2), batched.env_keys(5, 4)[2:])
