"""The device replay against the slow reference, and in turns with the host replay."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer.replay import device, host, tree
from tests.replay.reference import SPEC, Reference, values

add, update = jax.jit(device.add), jax.jit(device.update)
sample = partial(jax.jit, static_argnums=2)(device.sample)


@pytest.mark.parametrize("schedule", range(6))
def test_agrees_with_the_reference_on_random_schedules(schedule: int) -> None:
    rng = np.random.default_rng(schedule)
    num_envs, length, batch_size = (int(rng.integers(low, 5)) for low in (1, 2, 1))
    slots, online = int(rng.integers(length, 4 * length)), bool(schedule % 3)
    replay = device.init(SPEC, slots * num_envs, num_envs, length, online)
    reference = Reference(num_envs, slots, length, online)
    pending = []
    for turn in range(80):
        transition = values(rng, SPEC, (num_envs,))
        replay = add(replay, transition)
        reference.add(transition)
        windows = reference.windows()
        assert device.num_items(replay) == len(windows)
        if windows and rng.random() < 0.4:
            queued = reference.queue[:batch_size]
            reference.queue = reference.queue[batch_size:]
            replay, batch, index = sample(replay, jax.random.key(turn), batch_size)
            chosen = [tuple(window) for window in index.tolist()]
            assert chosen[: len(queued)] == queued
            assert set(chosen) <= windows
            check_rows(batch, [reference.read(*window) for window in chosen])
            pending.append(index)
        if pending and rng.random() < 0.5:  # late updates skip overwritten rows
            index = pending.pop(int(rng.integers(len(pending))))
            latent = values(rng, SPEC["latent"], (batch_size, length - 1))
            replay = update(replay, index, latent)
            reference.update(index.tolist(), latent)


def check_rows(batch: dict, expected: list[list[dict]]) -> None:
    flat = tree.flatten(batch)
    for window, rows in enumerate(expected):
        for t, row in enumerate(rows):
            for path, leaf in row.items():
                if path[0] == "latent" and t:  # only the context row has them
                    assert flat[path].shape[1] == 1
                    continue
                assert flat[path].dtype == leaf.dtype
                np.testing.assert_array_equal(
                    np.asarray(flat[path][window, t]), leaf, err_msg=f"{path} {t}"
                )


def test_stores_and_queues_exactly_what_the_host_replay_does() -> None:
    rng = np.random.default_rng(0)
    ours, theirs = device.init(SPEC, 40, 2, 5), host.init(SPEC, 40, 2, 5)
    for turn in range(50):
        transition = values(rng, SPEC, (2,))
        ours, theirs = add(ours, transition), host.add(theirs, transition)
        if turn % 5 == 4:  # both queues hold exactly two windows
            ours, batch, index = sample(ours, jax.random.key(0), 2)
            theirs, expected, same = host.sample(theirs, (0,), 2)
            np.testing.assert_array_equal(index, same)
            jax.tree.map(np.testing.assert_array_equal, batch, expected)
            latent = values(rng, SPEC["latent"], (2, 4))
            ours, theirs = update(ours, index, latent), host.update(theirs, same, latent)
    stored = host.get_state(theirs)["rings"]
    jax.tree.map(np.testing.assert_array_equal, ours.rings, stored)


def test_windows_are_drawn_uniformly() -> None:
    replay = device.init(SPEC, 40, 2, 5, online=False)
    for step in range(33):  # rings of 20 wrapped; 16 windows in each of 2
        replay = add(replay, values(np.random.default_rng(step), SPEC, (2,)))
    _, _, index = sample(replay, jax.random.key(1), 6400)
    windows, counts = np.unique(np.asarray(index), axis=0, return_counts=True)
    assert sorted(map(tuple, windows.tolist())) == [(e, f) for e in range(2) for f in range(13, 29)]
    assert ((counts - 200) ** 2 / 200).sum() < 61.1  # the 0.1% point of 31 degrees of freedom


def test_of_several_latents_for_a_row_the_last_is_kept() -> None:
    replay = device.init(SPEC, 20, 1, 5)
    for _ in range(10):
        replay = add(replay, values(np.random.default_rng(0), SPEC, (1,)))
    index = jnp.array([[0, 1], [0, 3], [0, 2]])
    latent = {
        "deter": jnp.arange(3.0, dtype=jnp.bfloat16)[:, None, None] + jnp.zeros((3, 4, 4)),
        "stoch": jnp.zeros((3, 4, 2), jnp.uint8),
    }
    latent["deter"] = latent["deter"].astype(jnp.bfloat16)
    deter = update(replay, index, latent).rings["latent"]["deter"][0, :, 0]
    assert deter[2:8].tolist() == [0, 2, 2, 2, 2, 1]


def test_a_replay_can_be_donated() -> None:
    row = values(np.random.default_rng(0), SPEC, (1,))
    put = jax.jit(device.add, donate_argnums=0)
    assert put(put(device.init(SPEC, 20, 1, 5), row), row).steps == 2


def test_a_dtype_that_is_not_the_rings_is_refused() -> None:
    row = values(np.random.default_rng(0), SPEC, (1,))
    with pytest.raises(AssertionError, match="float64 for a ring of float32"):
        device.add(device.init(SPEC, 20, 1, 5), row | {"reward": np.zeros(1)})


def test_a_capacity_of_less_than_a_window_is_refused() -> None:
    with pytest.raises(ValueError, match="holds no window of 5 steps in 2 rings"):
        device.init(SPEC, 9, 2, 5)
