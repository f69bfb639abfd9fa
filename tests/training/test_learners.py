"""Replay of the host loop in memory, in files and on devices; actions from older weights."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from dreamer.distributed import mesh
from dreamer.errors import UserError
from dreamer.training.device_learner import DeviceLearner
from dreamer.training.host_learner import HostLearner
from dreamer.training.host_loop import ActingWeights, HostLoop
from tests import tiny_run
from tests.training import test_device_loop
from tests.training.test_device_loop import stored, until

# The queue has a window for every sequence of every batch, see `test_device_loop`.
HOST = "run.loop=host"


def host_loop(*changes: str, devices: int = 1) -> HostLoop:
    made = HostLoop(test_device_loop.config(HOST, *changes), jax.devices()[:devices])
    made.start()
    return made


@pytest.fixture(scope="module")
def loops() -> dict[str, HostLoop]:
    """After three updates, three and a half iterations before the next."""
    made = {
        "memory": host_loop(),
        "device": host_loop("replay.where=device"),
        "two devices": host_loop("replay.where=device", devices=2),
    }
    for loop in made.values():
        until(loop, 92)
    return made


@pytest.fixture(scope="module")
def later() -> list[np.ndarray]:
    """Weights of a loop that continued to the next update."""
    loop = host_loop()
    until(loop, 112)
    return jax.tree.leaves(jax.device_get(loop.learner.params))


def test_where_the_replay_is_stored_makes_no_difference(loops: dict[str, HostLoop]) -> None:
    ours, theirs = loops["device"], loops["memory"]
    assert isinstance(ours.learner, DeviceLearner)
    assert isinstance(theirs.learner, HostLearner)
    assert ours.learner.updates == theirs.learner.updates == 3
    tiny_run.assert_same(ours.get_arrays()[0]["env"], theirs.get_arrays()[0]["env"])
    params = [jax.tree.leaves(jax.device_get(loop.learner.params)) for loop in (ours, theirs)]
    for one, other in zip(*params, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-6)
    saved, others = stored(ours), stored(theirs)
    tiny_run.assert_same(saved["counters"], others["counters"])
    for name in ("observation", "action", "reward", "is_first", "is_last", "is_terminal"):
        tiny_run.assert_same(saved["rings"][name], others["rings"][name])
    latents = saved["rings"]["latent"]["deter"], others["rings"]["latent"]["deter"]
    np.testing.assert_allclose(*latents, atol=1e-5)
    assert np.abs(latents[0][:, 1:20]).min() > 0  # written, not the initial zeros
    # Two devices sample other windows, but until the first update they see the same.
    spread = stored(loops["two devices"])["rings"]
    for name in ("observation", "action"):
        ring, expected = spread[name][name], others["rings"][name][name]
        np.testing.assert_array_equal(ring[:, :8], expected[:, :8])


@pytest.mark.parametrize("source", ["memory", "device", "two devices"])
@pytest.mark.parametrize("target", ["host", "device"])
def test_a_save_of_any_learner_resumes_in_any_other(
    source: str, target: str, loops: dict[str, HostLoop], later: list[np.ndarray]
) -> None:
    saved = loops[source]
    other = host_loop(f"replay.where={target}")
    arrays = deepcopy(saved.get_arrays()[0])
    state = jax.device_get(saved.learner.state)
    assert other.set_state(state, arrays, saved.get_counters()) == ""
    again, expected = other.get_arrays()[0], saved.get_arrays()[0]
    tiny_run.assert_same(again["replay"], expected["replay"])
    tiny_run.assert_same(again["pending"], expected["pending"])
    until(other, 112)
    assert other.learner.updates == 4  # of a batch from the restored queue
    if source != "two devices":  # whose uniform draws were others
        for ours, theirs in zip(jax.tree.leaves(other.learner.params), later, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("target", ["host", "device"])
def test_a_larger_capacity_samples_only_stored_steps(
    target: str, loops: dict[str, HostLoop]
) -> None:
    small = host_loop("replay.capacity=80")
    until(small, 92)  # 23 steps of each environment, in rings of 20
    other = host_loop(f"replay.where={target}")
    arrays, state = deepcopy(small.get_arrays()[0]), jax.device_get(small.learner.state)
    other.set_state(state, arrays, small.get_counters())
    saved = stored(other)
    assert saved["counters"]["oldest"][0] == 3
    seen = other.learner.sequences(200, (0, 1))["observation"]["observation"]
    assert np.abs(seen).max(-1).min() > 0


def test_lost_batches_taken_ahead_are_noted(loops: dict[str, HostLoop]) -> None:
    ahead = host_loop("replay.prefetch=thread")
    until(ahead, 52)
    state, counters = jax.device_get(ahead.learner.state), ahead.get_counters()

    def note(*changes: str) -> str:
        return host_loop(*changes).set_state(state, deepcopy(ahead.get_arrays()[0]), counters)

    assert note() == note("replay.prefetch=thread") == ""
    assert note("replay.where=device") == "not restored: batches taken ahead"
    assert note("run.updates_per_call=2") == "not restored: batches taken ahead"
    both = "not restored: latents still to be written, batches taken ahead"
    assert note("replay.batch_length=5") == both


def test_sequences_of_device_memory_change_nothing(loops: dict[str, HostLoop]) -> None:
    loop = loops["device"]
    before = stored(loop)
    first, again = (loop.learner.sequences(3, (0, 1)) for _ in range(2))
    assert first["observation"]["observation"].shape == (3, 5, 4)
    tiny_run.assert_same(first, again)
    tiny_run.assert_same(stored(loop), before)
    assert host_loop("replay.where=device").learner.sequences(3, (0, 1)) is None


@pytest.mark.parametrize(
    ("limit", "options", "expected"),
    [
        (None, (), HostLearner),  # no memory of its own
        (10**9, (), DeviceLearner),
        (10**6, ("replay.capacity=40000",), HostLearner),  # too small
        (10**9, ("replay.where=host",), HostLearner),
        (10**9, ("env.num_envs=3",), HostLearner),  # for two devices
        (10**9, ("replay.folder=.",), HostLearner),
    ],
)
def test_auto_takes_the_device_whose_memory_holds_the_capacity(
    limit: int | None, options: tuple[str, ...], expected: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mesh, "memory_limit", lambda device: limit)
    loop = HostLoop(test_device_loop.config(HOST, *options), jax.devices()[:2])
    assert type(loop.learner) is expected
    loop.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("replay.where=device", "replay.capacity=40000"),
            r"needs .* on each device but .*or set replay.where=host",
        ),
        (("replay.where=device", "env.num_envs=3"), "or set replay.where=host"),
        (("replay.folder=/nowhere/at/all",), "replay.folder=/nowhere/at/all is no folder"),
        (("replay.folder=/proc",), "replay.folder=/proc"),
        (
            ("replay.folder=.", "replay.capacity=1e12"),
            r"in replay.folder=.* are free there; the largest capacity that fits",
        ),
        (("replay.folder=.", "replay.where=device"), "leave out one of them"),
        (("run.policy_lag=1",), "run.policy_lag=1 gains nothing .*; add run.policy_device=cpu"),
    ],
)
def test_a_replay_that_fits_nowhere_is_refused(
    options: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mesh, "memory_limit", lambda device: 10**6)
    with pytest.raises(UserError, match=message):
        HostLoop(test_device_loop.config(HOST, *options), jax.devices()[:2])


def test_files_of_a_replay_have_no_name(tmp_path: Path) -> None:
    loop = host_loop(f"replay.folder={tmp_path}")
    assert all(isinstance(ring, np.memmap) for ring in loop.learner.replay.rings.values())
    assert loop.learner.stored == f"files of {tmp_path}"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("lag", [0, 1, 2])
def test_actions_come_from_weights_of_earlier_calls(lag: int, loops: dict[str, HostLoop]) -> None:
    loop = loops["memory"]
    config = test_device_loop.config(HOST, f"run.policy_lag={lag}", "run.policy_device=cpu")
    weights = ActingWeights(config, loop.agent, jax.devices()[:1])
    calls = [jax.tree.map(lambda x, n=n: x * n, loop.learner.params) for n in range(4)]
    for number, params in enumerate(calls):
        weights.add(params)
        used = calls[max(0, number - lag)]
        assert weights.current.keys() == {"encoder", "rssm", "actor"}
        for name, part in weights.current.items():
            jax.tree.map(np.testing.assert_array_equal, part, used[name])
        weights.set_arrays(weights.get_arrays(), params)  # a restart changes nothing


def test_a_policy_on_cpu_needs_that_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(backend: str) -> Any:
        raise RuntimeError(backend)

    monkeypatch.setattr(jax, "local_devices", missing)
    with pytest.raises(UserError, match="JAX_PLATFORMS=cuda,cpu"):
        mesh.cpu_device()
