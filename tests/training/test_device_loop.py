"""The compiled loop does what the host loop does, on one device and on several."""

import re
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from dreamer.distributed import mesh
from dreamer.envs import registry
from dreamer.envs.jax import batched
from dreamer.envs.jax.episodes import JaxEnv
from dreamer.errors import UserError
from dreamer.training.device_loop import DeviceLoop, cycle
from dreamer.training.host_loop import HostLoop
from dreamer.training.trainer import Trainer
from tests import tiny_run
from tests.envs.jax.test_simulators import Hollow

# From step 32 on an update of 4 x 4 replayed steps for every 5 steps of 4 environments, just when
# the online queue gets 4 new windows of 5 steps.
GYMNAX = (
    *("env.suite=gymnax", "env.task=CartPole-v1", "env.time_limit=7", "env.num_envs=4"),
    *("replay.capacity=400", "replay.train_ratio=0.8", "run.steps=120"),
)


def config(*changes: str, folder: Path = Path("unused")) -> Any:
    given = [change for change in (*GYMNAX, *changes) if not change.startswith("env.suite")]
    argv = [a for a in tiny_run.argv(folder, *given) if not a.startswith("env.entry")]
    from dreamer.cli import compose

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
        ended += loop.advance(2**63)
    return ended + loop.drain()


def stored(loop: Any) -> dict[str, Any]:
    return loop.get_arrays()[0]["replay"]


def test_states_may_have_arrays_without_elements(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of MuJoCo do."""
    monkeypatch.setattr(registry, "make_jax", lambda _: JaxEnv(Hollow(), slow_reset=True))
    loop = device_loop(devices=2)
    loop.advance(2**63)
    loop.drain()
    saved = loop.get_arrays()[0]["env"]
    keys = batched.env_keys(0, 4)
    restored = batched.load(saved, jax.eval_shape(jax.vmap(registry.make_jax(None).reset), keys))
    assert restored is not None
    assert restored[0].inner["none"].shape == (4, 0, 3)
    assert (restored[0].episode > 0).all()


def test_acting_and_remembering_are_those_of_the_host_loop_bit_for_bit() -> None:
    rare = ("replay.train_ratio=0.04", "replay.capacity=200")  # 1 update after 100 more iterations
    ours, theirs = device_loop(*rare), host_loop(*rare)
    ended, expected = until(ours, 432), until(theirs, 432)
    assert ours.step == theirs.step == 432
    assert ended == expected
    assert len(ended) >= 40
    assert ours.learner.updates == theirs.learner.updates == 1
    tiny_run.assert_same(stored(ours), stored(theirs))
    counters, others = ours.get_counters(), theirs.get_counters()
    assert counters["episodes"] == others["episodes"]
    tiny_run.assert_same(ours.get_arrays()[0]["env"], theirs.get_arrays()[0]["env"])


def test_learning_from_the_same_windows_gives_the_same_weights() -> None:
    """While the queue has a window for every sequence of every batch, nothing is left to chance.
    Compiled apart, the same sums are rounded differently."""
    ours, theirs = device_loop(), host_loop()
    until(ours, 132), until(theirs, 132)
    assert ours.learner.updates == theirs.learner.updates == 5
    for one, other in zip(
        jax.tree.leaves(jax.device_get(ours.learner.params)),
        jax.tree.leaves(jax.device_get(theirs.learner.params)),
        strict=True,
    ):
        np.testing.assert_allclose(one, other, atol=2e-6)
    saved, others = stored(ours), stored(theirs)
    np.testing.assert_array_equal(saved["counters"]["served"], others["counters"]["served"])
    latent = saved["rings"]["latent"], others["rings"]["latent"]
    np.testing.assert_allclose(latent[0]["deter"], latent[1]["deter"], atol=1e-5)


@pytest.fixture(scope="module")
def stopped() -> dict[int, SimpleNamespace]:
    """Loops over one and over two devices at step 92, and what they would save there."""
    loops = {devices: device_loop(devices=devices) for devices in (1, 2)}
    for loop in loops.values():
        until(loop, 92)
    return {
        devices: SimpleNamespace(
            **{"loop": loop, "state": jax.device_get(loop.learner.state)},
            **{"arrays": loop.get_arrays()[0], "counters": loop.get_counters()},
        )
        for devices, loop in loops.items()
    }


def resume(loop: Any, saved: SimpleNamespace) -> Any:
    assert loop.set_state(saved.state, deepcopy(saved.arrays), saved.counters) == ""
    return loop


def test_sequences_to_look_at_change_nothing(stopped: dict) -> None:
    loop = stopped[1].loop
    first, again, other = (loop.learner.sequences(3, seed) for seed in ((0, 1), (0, 1), (0, 2)))
    assert first["observation"]["observation"].shape == (3, 5, 4)
    tiny_run.assert_same(first, again)
    seen = [batch["observation"]["observation"] for batch in (first, other)]
    assert not np.array_equal(*seen)
    tiny_run.assert_same(stored(loop), stopped[1].arrays["replay"])


def test_metrics_are_read_one_call_late(stopped: dict) -> None:
    loop = stopped[1].loop
    assert loop.learner.updates == 3
    assert loop.learner.read_metrics().averages["loss/total"] > 0  # of the first two
    assert loop.learner.read_metrics().averages == {}
    metrics = loop.learner.read_metrics(wait=True).averages
    assert np.isfinite(list(metrics.values())).all()
    assert loop.learner.read_metrics(wait=True).averages == {}


def test_environments_and_replay_are_spread_over_devices(stopped: dict) -> None:
    one, two = (stopped[devices].arrays["replay"]["rings"] for devices in (1, 2))
    seen = one["observation"]["observation"], two["observation"]["observation"]
    assert seen[0].shape == seen[1].shape
    np.testing.assert_array_equal(seen[0][:, 0], seen[1][:, 0])  # the same environments
    assert not np.array_equal(one["action"]["action"], two["action"]["action"])


def test_a_save_of_two_devices_resumes_on_one_and_on_the_host(stopped: dict) -> None:
    for other in (device_loop(), host_loop()):
        note = other.set_state(stopped[2].state, deepcopy(stopped[2].arrays), stopped[2].counters)
        assert note == ""
        again = other.get_arrays()[0]
        tiny_run.assert_same(again["replay"], stopped[2].arrays["replay"])
        np.testing.assert_array_equal(
            again["pending"]["index"], stopped[2].arrays["pending"]["index"]
        )
        until(other, 132)
        assert other.learner.updates == stopped[2].counters["learner"]["updates"] + 2 == 5


@pytest.mark.parametrize("devices", [1, 2])
def test_a_save_resumes_exactly(devices: int, stopped: dict) -> None:
    """The last test that uses these loops, since it advances them."""
    whole = stopped[devices].loop
    resumed = resume(device_loop(devices=devices), stopped[devices])
    assert (resumed.step, resumed.learner.updates) == (92, 3)
    until(whole, 152), until(resumed, 152)
    assert resumed.learner.updates == whole.updates == 6
    tiny_run.assert_same(jax.device_get(resumed.learner.state), jax.device_get(whole.state))
    tiny_run.assert_same(resumed.get_arrays()[0], whole.get_arrays()[0])
    assert resumed.get_counters() == whole.get_counters()


def test_a_run_of_the_command_trains_and_resumes(tmp_path: Path) -> None:
    for steps, reached in ((20, 20), (60, 72), (130, 132)):  # whole calls
        with Trainer(config(f"run.steps={steps}", folder=tmp_path / "run")) as trainer:
            assert isinstance(trainer.loop, DeviceLoop)
            trainer.run()
            assert trainer.step == reached
    lines = tiny_run.lines(tmp_path / "run")
    assert sum("episode/return" in line for line in lines) >= 12
    assert len(tiny_run.losses(lines)) >= 2


@pytest.mark.slow
def test_several_updates_in_a_cycle_and_several_cycles_in_a_call() -> None:
    """How many updates one call has changes nothing but the rounding, which with steps so small
    turns no action into another."""
    same = ("replay.train_ratio=8", "agent.optimizer.learning_rate=1e-6")
    one, more = device_loop(*same), device_loop(*same, "run.updates_per_call=5")
    until(one, 56), until(more, 56)
    assert (
        one.learner.updates == more.learner.updates == 12
    )  # 2 in each of 6 cycles; 6 in each of 2 calls
    assert (one._cycles, more._cycles) == (1, 3)
    saved, others = stored(one), stored(more)
    assert saved["counters"]["served"] == others["counters"]["served"] > 0
    np.testing.assert_array_equal(
        saved["rings"]["action"]["action"], others["rings"]["action"]["action"]
    )
    for x, y in zip(
        jax.tree.leaves(one.learner.params), jax.tree.leaves(more.learner.params), strict=True
    ):
        np.testing.assert_allclose(x, y, atol=1e-7)


def test_a_run_stopped_before_its_first_update_resumes_exactly() -> None:
    loops = device_loop(), host_loop(), host_loop()
    whole, stopped, ours = loops[1], loops[2], loops[0]
    until(whole, 32), until(stopped, 20)
    saved = stopped.get_arrays()[0], stopped.get_counters()
    ours.set_state(jax.device_get(stopped.learner.state), *saved)
    until(ours, 32)
    assert ours.step == 32
    tiny_run.assert_same(stored(ours), stored(whole))


def test_what_cannot_be_restored_from_a_save_of_the_host_loop_is_noted() -> None:
    theirs = host_loop()
    until(theirs, 60)
    arrays, counters = theirs.get_arrays()[0], theirs.get_counters()
    arrays["pending"] = jax.tree.map(lambda x: np.concatenate([x] * 2), arrays["pending"])
    assert counters["ratio"]["remainder"] > 0
    note = device_loop().set_state(jax.device_get(theirs.learner.state), arrays, counters)
    assert note == "not restored: latents still to be written, updates half owed"


@pytest.mark.skipif(jax.__version_info__ < (0, 11), reason="jax 0.10 copies them all the same")
def test_no_ring_is_copied() -> None:
    loop = device_loop("replay.capacity=4948")
    until(loop, 48)
    program = loop._program(loop.next_call(2**63))
    program = program.lower(loop.learner.state, loop._world, np.int32(0)).compile().as_text()
    assert "1237" in program
    copies = [line for line in program.splitlines() if re.search(r" = \S*4,1237\S* copy\(", line)]
    assert not copies


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ((), (5, 1)),
        (("replay.train_ratio=16",), (1, 4)),
        (("replay.train_ratio=6",), (2, 3)),
        (("replay.train_ratio=0.00125",), (3200, 1)),
        (("replay.train_ratio=6000",), (1, 1500)),
    ],
)
def test_a_cycle_meets_the_ratio_exactly(changes: tuple, expected: tuple) -> None:
    assert cycle(config(*changes)) == expected


def test_numbers_that_do_not_fit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for ratio in ("0.0003", "0.031416", "800.25"):  # too rarely, too odd, too many in a cycle
        with pytest.raises(UserError, match=rf"replay.train_ratio={ratio} is .* run.loop=host"):
            cycle(config(f"replay.train_ratio={ratio}"))
    with pytest.raises(UserError, match=r"env.num_envs=3 cannot be spread over 2 devices"):
        device_loop("env.num_envs=3", devices=2)
    monkeypatch.setattr(mesh, "memory_limit", lambda device: 1_000_000)
    with pytest.raises(UserError, match=r"replay.capacity=40000 needs .* on each device but"):
        device_loop("replay.capacity=40000")
    monkeypatch.setattr(mesh, "memory_limit", lambda device: None)
    with pytest.raises(UserError, match=r"replay.capacity=1000000000 needs .* of memory but on"):
        DeviceLoop(config("replay.capacity=1e9"), jax.devices()[:1])
    with pytest.raises(UserError, match=r"run.loop=device needs environments written in JAX, wh"):
        DeviceLoop(tiny_run.config(Path("unused")), mesh.local_devices("cpu", 1, 4))


@pytest.mark.parametrize(
    "option",
    [
        *("replay.where=host", "replay.folder=x", "replay.prefetch=thread"),
        *("run.policy_device=cpu", "run.policy_lag=2"),
    ],
)
def test_options_of_the_host_loop_are_refused(option: str) -> None:
    with pytest.raises(UserError, match=f"^{option} is for environments on the host.*loop=host$"):
        DeviceLoop(config(option), jax.devices()[:1])
