"""The compiled loop does what the host loop does, on one device and on several."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from dreamer import parallel
from dreamer.errors import UserError
from dreamer.run.device_loop import DeviceLoop, cycle
from dreamer.run.host_loop import HostLoop
from dreamer.run.loop import Trainer
from tests import tiny_run

# From step 32 on an update of 4 x 4 replayed steps in every 5 turns of 4 environments, just when
# the online queue gets 4 new windows of 5 steps.
GYMNAX = (
    *("env.suite=gymnax", "env.task=CartPole-v1", "env.time_limit=7", "env.num_envs=4"),
    *("replay.capacity=400", "replay.train_ratio=0.8", "run.steps=120"),
)


def config(*changes: str, folder: Path = Path("unused")) -> Any:
    given = [change for change in (*GYMNAX, *changes) if not change.startswith("env.suite")]
    argv = [a for a in tiny_run.argv(folder, *given) if not a.startswith("env.entry")]
    from dreamer import compose

    return compose.compose(["env=gymnax", *argv])


def device_loop(*changes: str, devices: int = 1) -> DeviceLoop:
    made = DeviceLoop(config(*changes), jax.devices()[:devices])
    made.start()
    return made


def host_loop(*changes: str) -> HostLoop:
    made = HostLoop(config(*changes), jax.devices()[:1])
    made.start()
    return made


def until(loop: Any, step: int) -> list[tuple[float, int]]:
    ended = []
    while loop.step < step:
        ended += loop.turn()
    return ended + loop.drain()


def stored(loop: Any) -> dict[str, Any]:
    return loop.get_arrays()[0]["replay"]


def test_acting_and_remembering_are_those_of_the_host_loop_bit_for_bit() -> None:
    many = "replay.batch_size=64"  # so many that no update is owed for long
    ours, theirs = device_loop(many), host_loop(many)
    ended, expected = until(ours, 272), until(theirs, 272)
    assert ours.step == theirs.step == 272
    assert ended == expected
    assert len(ended) >= 24
    assert ours.updates == theirs.updates == 0
    tiny_run.assert_same(stored(ours), stored(theirs))
    counters, others = ours.get_counters(), theirs.get_counters()
    assert counters["episodes"] == others["episodes"]
    assert counters["env"] == others["env"]


def test_learning_from_the_same_windows_gives_the_same_weights() -> None:
    """While the queue has a window for every sequence of every batch, nothing is left to chance.
    Compiled apart, the same sums are rounded differently."""
    ours, theirs = device_loop(), host_loop()
    until(ours, 132), until(theirs, 132)
    assert ours.updates == theirs.updates == 5
    for one, other in zip(
        jax.tree.leaves(jax.device_get(ours.params)),
        jax.tree.leaves(jax.device_get(theirs.params)),
        strict=True,
    ):
        np.testing.assert_allclose(one, other, atol=2e-6)
    saved, others = stored(ours), stored(theirs)
    np.testing.assert_array_equal(saved["counters"]["served"], others["counters"]["served"])
    latent = saved["rings"]["latent"], others["rings"]["latent"]
    np.testing.assert_allclose(latent[0]["deter"], latent[1]["deter"], atol=1e-5)


def test_metrics_are_read_one_call_late() -> None:
    loop = device_loop()
    until(loop, 52)
    assert loop.updates == 1
    assert loop.read_metrics() == {}
    metrics = loop.read_metrics(wait=True)
    assert np.isfinite(list(metrics.values())).all()
    assert metrics["loss/total"] > 0
    assert loop.read_metrics(wait=True) == {}


def test_sequences_to_look_at_change_nothing() -> None:
    loop = device_loop()
    assert loop.sequences(3, (0, 1)) is None
    until(loop, 60)
    before = stored(loop)
    first, again, other = (loop.sequences(3, seed) for seed in ((0, 1), (0, 1), (0, 2)))
    assert first is not None
    assert first["observation"]["observation"].shape == (3, 5, 4)
    tiny_run.assert_same(first, again)
    assert not np.array_equal(first["reward"], other["reward"]) or not np.array_equal(
        first["observation"]["observation"], other["observation"]["observation"]
    )
    tiny_run.assert_same(stored(loop), before)


@pytest.mark.parametrize("devices", [1, 2])
def test_what_was_saved_goes_on_exactly(devices: int) -> None:
    whole, stopped, resumed = (device_loop(devices=devices) for _ in range(3))
    until(whole, 160)
    until(stopped, 100)
    saved = (*stopped.get_arrays()[:1], stopped.get_counters())
    assert resumed.set_state(jax.device_get(stopped.state), *saved) == ""
    assert (resumed.step, resumed.updates) == (stopped.step, stopped.updates)
    until(resumed, 160)
    for loop in (whole, resumed):
        assert loop.updates > stopped.updates > 0
    tiny_run.assert_same(jax.device_get(resumed.state), jax.device_get(whole.state))
    tiny_run.assert_same(resumed.get_arrays()[0], whole.get_arrays()[0])
    assert resumed.get_counters() == whole.get_counters()


def test_environments_and_replay_are_spread_over_devices() -> None:
    one, two = device_loop(), device_loop(devices=2)
    until(one, 72), until(two, 72)
    rings, others = stored(one)["rings"], stored(two)["rings"]
    assert rings["reward"].shape == others["reward"].shape
    np.testing.assert_array_equal(rings["is_first"][:, 0], others["is_first"][:, 0])
    seen = rings["observation"]["observation"], others["observation"]["observation"]
    np.testing.assert_array_equal(seen[0][:, 0], seen[1][:, 0])  # same environments


def test_a_save_of_two_devices_goes_on_with_one_and_on_the_host() -> None:
    two = device_loop(devices=2)
    until(two, 100)
    for other in (device_loop(), host_loop()):
        arrays, counters = two.get_arrays()[0], two.get_counters()
        other.set_state(jax.device_get(two.state), arrays, counters)
        before = other.updates
        until(other, 160)
        assert other.updates > before == two.updates


def test_a_run_of_the_command_trains_and_resumes(tmp_path: Path) -> None:
    for steps in (72, 132):
        with Trainer(config(f"run.steps={steps}", folder=tmp_path / "run")) as trainer:
            assert isinstance(trainer.loop, DeviceLoop)
            trainer.run()
            assert trainer.step == steps
    lines = tiny_run.lines(tmp_path / "run")
    assert sum("episode/return" in line for line in lines) >= 12
    assert len(tiny_run.losses(lines)) >= 2


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ((), (5, 1)),
        (("replay.train_ratio=16",), (1, 4)),
        (("replay.train_ratio=6",), (2, 3)),
    ],
)
def test_a_cycle_meets_the_ratio_exactly(changes: tuple, expected: tuple) -> None:
    assert cycle(config(*changes)) == expected


def test_what_does_not_fit_is_refused_in_one_line() -> None:
    with pytest.raises(UserError, match=r"replay.train_ratio=0.0031416 is .* run.loop=host"):
        cycle(config("replay.train_ratio=0.0031416"))
    with pytest.raises(UserError, match=r"env.num_envs=3 cannot be spread over 2 devices"):
        device_loop("env.num_envs=3", devices=2)
    with pytest.raises(UserError, match=r"run.loop=device needs environments written in JAX, wh"):
        DeviceLoop(tiny_run.config(Path("unused")), parallel.local_devices("cpu", 1, 4))
