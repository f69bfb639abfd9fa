"""Updates owed and given, latents written back one call late, and any number of devices."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer.distributed import mesh
from dreamer.logs.metrics import SKIPPED
from dreamer.ops.packing import Packing
from dreamer.replay import host
from dreamer.training.host_learner import HostLearner
from tests import tiny, tiny_run

BATCH, LENGTH = 4, 4


@pytest.fixture(scope="module")
def agent() -> Any:
    one = {"layers": 1}
    return tiny.agent(
        *(tiny.VECTOR, tiny.DISCRETE),
        **{"encoder": one, "decoder": one, "actor": one, "critic": one, "optimizer": {"warmup": 0}},
    )


def make(
    agent: Any, devices: int = 1, per_call: int = 1, seed: int = 0, batch: int = BATCH
) -> HostLearner:
    """With a replay that is filled, always with the same rows."""
    sizes = f"replay.batch_size={batch}", f"replay.batch_length={LENGTH}"
    options = (f"run.updates_per_call={per_call}", f"seed={seed}")
    config = tiny_run.config(Path("unused"), *sizes, *options)
    made = HostLearner(config, agent, jax.local_devices()[:devices])
    made.replay = tiny.filled(agent, LENGTH)
    return made


def restore(
    learner: HostLearner, state: Any, counters: dict[str, int], pending: Any = None
) -> None:
    arrays = {"replay": host.get_state(learner.replay), "pending": pending or {}}
    learner.set_state(state, arrays, counters)


def pending_of(learner: HostLearner) -> Any:
    return learner.get_arrays()[0]["pending"]


def latents(replay: host.Replay) -> dict[str, np.ndarray]:
    return jax.tree.map(np.copy, host.get_state(replay)["rings"]["latent"])


# ------------------------------------------------------------------- bookkeeping, without networks


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Instead of learning, call number n gives latents n; what it was given is kept."""
    made: list[Any] = []

    def compile_updates(step: Callable, devices: Any) -> Callable:
        def update(state: Any, batches: Any, key: Any) -> Any:
            made.append(batches)
            shape = (*batches["is_first"].shape[:3], LENGTH)
            number = len(made)
            latent = {
                "deter": jnp.full((*shape, 16), number, jnp.float32),
                "stoch": jnp.full((*shape, 2), number, jnp.uint8),
            }
            return state, latent, jnp.zeros((shape[1], 1))

        return update

    monkeypatch.setattr(mesh, "compile_updates", compile_updates)
    return made


@pytest.fixture
def learner(agent: Any, calls: list[Any], monkeypatch: pytest.MonkeyPatch) -> Callable:
    params = SimpleNamespace(params=jnp.zeros(1))  # registered nowhere, so one leaf
    monkeypatch.setattr(mesh, "replicate", lambda *_: params)
    monkeypatch.setattr(mesh, "unreplicate", lambda tree: tree)

    def traced(per_call: int, devices: int = 1, seed: int = 0) -> HostLearner:
        made = make(agent, devices, per_call, seed)
        made.metrics.names = [SKIPPED]  # of the step that is not traced
        return made

    return traced


@pytest.mark.parametrize(
    ("per_call", "owed", "given"),
    [
        (1, [0, 1, 3, 0], [0, 1, 4, 4]),
        (2, [1, 0, 1, 4, 1], [0, 0, 2, 6, 6]),
        (3, [2, 2, 5], [0, 3, 9]),
    ],
)
def test_updates_come_in_whole_calls(
    per_call: int, owed: list[int], given: list[int], calls: list, learner: Callable
) -> None:
    made, done = learner(per_call), []
    for number in owed:
        made.train(number)
        done.append(made.updates)
    assert done == given
    assert len(calls) == given[-1] // per_call
    assert made.get_counters() == {"updates": given[-1], "owed": sum(owed) - given[-1]}


@pytest.mark.parametrize("devices", [1, 4])
def test_batches_are_stacked_by_update_and_split_by_device(
    devices: int, agent: Any, calls: list, learner: Callable
) -> None:
    learner(2, devices, seed=9).train(2)
    replay = tiny.filled(agent, LENGTH)
    sampled = [host.sample(replay, (9, update), BATCH)[1] for update in (0, 1)]
    for path in ("reward", "is_last"):
        batch = calls[0][path]
        assert batch.shape == (devices, 2, BATCH // devices, LENGTH + 1)
        for update in (0, 1):
            joined = batch[:, update].reshape(BATCH, LENGTH + 1)
            np.testing.assert_array_equal(joined, sampled[update][path])


def test_batches_do_not_depend_on_how_updates_are_grouped(calls: list, learner: Callable) -> None:
    learner(2).train(4)
    learner(1).train(4)
    two, ones = calls[:2], calls[2:]
    for update in range(4):
        np.testing.assert_array_equal(
            two[update // 2]["reward"][:, update % 2], ones[update]["reward"][:, 0]
        )


@pytest.mark.parametrize("devices", [1, 2])
def test_latents_are_written_back_one_call_late(
    devices: int, calls: list, learner: Callable
) -> None:
    made = learner(2, devices)
    before = latents(made.replay)
    made.train(2)
    for name, ring in latents(made.replay).items():
        np.testing.assert_array_equal(ring, before[name])
    pending = pending_of(made)
    assert pending["index"].shape == (2, BATCH, 2)
    assert pending["latent"]["stoch"].shape == (2, BATCH, LENGTH, 2)
    made.train(2)
    after = latents(made.replay)
    # The latents of the first call are stored at the trained steps, first + 1 to first + LENGTH.
    written = np.zeros(after["deter"].shape[:2], bool)
    for env, first in pending["index"].reshape(-1, 2):
        written[env, first + 1 : first + LENGTH + 1] = True
    assert 0 < written.sum() < written.size
    assert (after["deter"][written] == 1).all()
    assert (after["stoch"][written] == 1).all()
    np.testing.assert_array_equal(after["deter"][~written], before["deter"][~written])


def test_pending_latents_survive_a_restart(calls: list, learner: Callable) -> None:
    first, second, empty = learner(1), learner(1), learner(1)
    assert pending_of(first) == {}
    first.train(1)
    restore(second, None, first.get_counters(), pending_of(first))
    assert isinstance(pending_of(second)["latent"]["deter"], np.ndarray)
    second.train(1)
    assert (latents(second.replay)["deter"] == 1).any()
    assert second.updates == 2
    restore(empty, None, {"updates": 0, "owed": 1})
    assert pending_of(empty) == {}
    empty.train(0)
    assert empty.updates == 1


# --------------------------------------------------------------------------- learning, over devices


@pytest.fixture(scope="module")
def learned(agent: Any) -> dict[int, Any]:
    """Three updates on 1 and 4 devices: from and to which state, and what was left in replay."""
    found = {}
    for devices in (1, 4):
        learner, metrics = make(agent, devices), []
        before = jax.device_get(tiny.state(agent, learned=True))  # the learner donates its own
        restore(learner, before, {"updates": 0, "owed": 0})
        for _ in range(3):
            learner.train(1)
            metrics.append(learner.read_metrics().averages)
        after = jax.device_get(learner.state)
        pending = pending_of(learner)["latent"]
        found[devices] = SimpleNamespace(
            **{"before": before, "after": after, "pending": pending, "metrics": metrics},
            **{"latents": latents(learner.replay), "learner": learner},
        )
    return found


def changes(run: Any) -> list[np.ndarray]:
    return jax.tree.leaves(jax.tree.map(np.subtract, run.after.params, run.before.params))


@pytest.mark.parametrize("devices", [4])
def test_any_number_of_devices_learns_the_same(devices: int, learned: dict[int, Any]) -> None:
    """The optimiser divides by the size of the gradient, so entries whose gradient is noise of
    rounding are left out; sums in another order change the others by at most 1%."""
    one, several = learned[1], learned[devices]
    single, split = changes(one), changes(several)
    squares = jax.tree.leaves(Packing.of(one.after.params).unpack(one.after.optimizer[1].nu))
    compared = 0
    for ours, theirs, square in zip(split, single, squares, strict=True):
        gradient = np.sqrt(square)
        clear = gradient > 1e-2 * gradient.max()
        compared += clear.sum()
        np.testing.assert_allclose(ours[clear], theirs[clear], rtol=1e-2, atol=1e-7)
    assert compared > 0.5 * sum(change.size for change in single)
    np.testing.assert_allclose(several.after.percentiles, one.after.percentiles, rtol=1e-4)
    assert several.after.updates == one.after.updates == 3


@pytest.mark.parametrize("devices", [4])
def test_any_number_of_devices_writes_the_same_latents(
    devices: int, learned: dict[int, Any]
) -> None:
    for part in ("latents", "pending"):
        one, several = getattr(learned[1], part), getattr(learned[devices], part)
        # A class flips where two are equally likely.
        same = one["stoch"] == several["stoch"]
        assert same.mean() > 0.95
        whole = same.all(-1)
        close = np.isclose(one["deter"], several["deter"], rtol=1e-3, atol=1e-4).all(-1)
        assert close[whole].mean() > 0.95


@pytest.mark.parametrize("devices", [1, 4])
def test_metrics_are_read_one_call_late(devices: int, learned: dict[int, Any]) -> None:
    first, second, third = learned[devices].metrics
    assert first == {}
    assert second.keys() == third.keys() >= {"loss/total", "kl", "imagined_return"}
    assert second["loss/total"] != third["loss/total"]
    assert second["loss/total"] == pytest.approx(learned[1].metrics[1]["loss/total"], rel=1e-4)


def test_metrics_are_averages_since_the_last_reading(agent: Any, learned: dict[int, Any]) -> None:
    learner = learned[1].learner
    learner.replay = tiny.filled(agent, LENGTH)
    restore(learner, learned[1].before, {"updates": 0, "owed": 0})
    learner.read_metrics(wait=True)
    learner.train(3)
    together = learner.read_metrics().averages
    _, second, third = learned[1].metrics
    for name, value in together.items():
        assert value == pytest.approx((second[name] + third[name]) / 2, rel=1e-5, abs=1e-6), name
    assert learner.read_metrics().averages == {}
    assert learner.read_metrics(wait=True).averages.keys() == together.keys()
    assert learner.read_metrics(wait=True).averages == {}


def test_parameters_for_acting_are_the_newest_on_the_first_device(learned: dict[int, Any]) -> None:
    learner = learned[4].learner
    leaves = jax.tree.leaves(learner.params)
    assert {device for leaf in leaves for device in leaf.devices()} == {jax.local_devices()[0]}
    for leaf, newest in zip(leaves, jax.tree.leaves(learned[4].after.params), strict=True):
        np.testing.assert_array_equal(leaf, newest)
