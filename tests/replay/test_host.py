"""The host replay against a slow reference that keeps every step in a Python list."""

import ml_dtypes
import numpy as np
import pytest

from dreamer.errors import UserError
from dreamer.replay import host, memory, tree
from tests.replay.reference import SPEC, Reference, values


def filled(steps, num_envs=2, capacity=40, length=5, online=True, seed=0):
    rng = np.random.default_rng(seed)
    replay = host.init(SPEC, capacity, num_envs, length, online)
    for _ in range(steps):
        replay = host.add(replay, values(rng, SPEC, (num_envs,)))
    return replay


def assert_same(actual, expected):
    actual, expected = tree.flatten(actual), tree.flatten(expected)
    assert actual.keys() == expected.keys()
    for path, leaf in expected.items():
        assert np.asarray(actual[path]).dtype == np.asarray(leaf).dtype, path
        np.testing.assert_array_equal(actual[path], leaf, err_msg=str(path))


@pytest.mark.parametrize("schedule", range(12))
def test_agrees_with_the_reference_on_random_schedules(schedule):
    rng = np.random.default_rng(schedule)
    num_envs, length, batch_size = (int(rng.integers(low, 5)) for low in (1, 2, 1))
    slots, online = int(rng.integers(length, 4 * length)), bool(schedule % 3)
    capacity = slots * num_envs + int(rng.integers(num_envs))  # the remainder is unused
    replay = host.init(SPEC, capacity, num_envs, length, online)
    reference = Reference(num_envs, slots, length, online)
    pending = []
    for turn in range(120):
        transition = values(rng, SPEC, (num_envs,))
        replay = host.add(replay, transition)
        reference.add(transition)
        windows = reference.windows()
        assert host.num_items(replay) == len(windows)
        if windows and rng.random() < 0.4:
            expected_queue, reference.queue = (
                reference.queue[:batch_size],
                reference.queue[batch_size:],
            )
            replay, batch, index = host.sample(replay, (schedule, turn), batch_size)
            assert index.dtype == np.int64
            assert index.shape == (batch_size, 2)
            chosen = [tuple(window) for window in index.tolist()]
            assert chosen[: len(expected_queue)] == expected_queue
            assert set(chosen) <= windows
            flat = tree.flatten(batch)
            for window, (env, first) in enumerate(chosen):
                for t, row in enumerate(reference.read(env, first)):
                    for path, leaf in row.items():
                        if path[0] == "latent" and t:  # only the context row has them
                            assert flat[path].shape[1] == 1
                            continue
                        np.testing.assert_array_equal(
                            flat[path][window, t], leaf, err_msg=f"{path} {t}"
                        )
            pending.append(index)
        if pending and rng.random() < 0.5:  # late updates skip overwritten rows
            index = pending.pop(int(rng.integers(len(pending))))
            latent = values(rng, SPEC["latent"], (batch_size, length - 1))
            replay = host.update(replay, index, latent)
            reference.update(index.tolist(), latent)


def test_windows_are_drawn_uniformly():
    replay = filled(
        steps=33, capacity=40, online=False
    )  # rings of 20 wrapped; 16 windows in each of 2
    counts: dict[tuple[int, int], int] = {}
    for draw in range(200):
        replay, _, index = host.sample(replay, (7, draw), 32)
        for window in map(tuple, index.tolist()):
            counts[window] = counts.get(window, 0) + 1
    assert set(counts) == {(env, first) for env in range(2) for first in range(13, 29)}
    expected = 200 * 32 / 32
    chi_square = sum((count - expected) ** 2 / expected for count in counts.values())
    assert chi_square < 61.1  # the 0.1% point of 31 degrees of freedom


def test_same_content_and_seed_give_the_same_batch_and_another_seed_another():
    batches = [
        host.sample(filled(30, online=False), seed, 8)[1:] for seed in ((3, 1), (3, 1), (3, 2))
    ]
    assert_same(batches[0][0], batches[1][0])
    np.testing.assert_array_equal(batches[0][1], batches[1][1])
    assert not np.array_equal(batches[0][1], batches[2][1])


def test_every_new_window_is_served_once_in_order_before_uniform_ones():
    replay = filled(steps=12, num_envs=2, length=5)
    replay, _, index = host.sample(replay, (0,), 3)
    assert index.tolist() == [[0, 0], [1, 0], [0, 5]]
    replay, _, index = host.sample(replay, (1,), 3)
    assert index.tolist()[0] == [1, 5]
    replay, _, index = host.sample(replay, (2,), 64)
    assert len({tuple(window) for window in index.tolist()}) > 4  # uniform again


def test_queued_windows_that_were_overwritten_are_dropped():
    replay = filled(steps=27, num_envs=1, capacity=12, length=5)  # steps 15..26 are left
    replay, _, index = host.sample(replay, (0,), 2)
    assert index.tolist() == [[0, 15], [0, 20]]


def test_a_batch_is_a_copy():
    replay = filled(20)
    before = host.get_state(replay)
    replay, batch, _ = host.sample(replay, (0,), 4)
    for leaf in tree.flatten(batch).values():
        leaf[...] = 0
    assert_same(host.get_state(replay)["rings"], before["rings"])


def test_the_last_window_wins_where_updated_rows_overlap():
    replay = filled(steps=20, num_envs=2, length=5)
    index = np.array([[1, 3], [1, 5], [1, 3]])
    deter = np.arange(3)[:, None, None] + np.zeros((3, 4, 4))
    latent = {"deter": deter.astype(ml_dtypes.bfloat16), "stoch": deter[..., :2].astype(np.uint8)}
    host.update(replay, index, latent)
    written = replay.rings["latent", "stoch"][1, :, 0]
    assert written[4:10].tolist() == [2, 2, 2, 2, 1, 1]


@pytest.mark.parametrize("steps", [3, 18, 47])
@pytest.mark.parametrize("copy", [True, False])
def test_every_later_sample_is_the_same_after_a_round_trip(steps, copy):
    original = filled(steps)
    if steps > 5:
        original, _, _ = host.sample(original, (9,), 3)  # part of the queue is taken
    restored = host.set_state(filled(7, seed=1), host.get_state(original, copy))
    rng = np.random.default_rng(2)
    for turn in range(30):
        transition = values(rng, SPEC, (2,))
        original, restored = host.add(original, transition), host.add(restored, transition)
        if host.num_items(original):
            original, batch, index = host.sample(original, (turn,), 3)
            restored, same_batch, same_index = host.sample(restored, (turn,), 3)
            np.testing.assert_array_equal(index, same_index)
            assert_same(batch, same_batch)
            latent = values(rng, SPEC["latent"], (3, 4))
            original = host.update(original, index, latent)
            restored = host.update(restored, index, latent)


def test_a_saved_state_holds_little_more_than_is_filled_and_does_not_change_later():
    replay = filled(steps=1030, num_envs=2, capacity=6000)
    state = host.get_state(replay)
    assert state["rings"]["observation"]["image"].shape == (2, 2048, 2, 2, 1)
    assert all(leaf.flags.c_contiguous for leaf in tree.flatten(state).values())
    before = {path: leaf.copy() for path, leaf in tree.flatten(state).items()}
    for leaf in replay.rings.values():
        leaf[...] = 1
    assert_same(state, tree.unflatten(before))
    view = host.get_state(replay, copy=False)["rings"]["reward"]
    assert np.shares_memory(view, replay.rings["reward",])
    assert not view.flags.writeable


@pytest.mark.parametrize(("capacity", "first_kept"), [(24, 35), (40, 27), (400, 27)])
def test_restores_into_another_capacity_keeping_the_newest(capacity, first_kept):
    original = filled(steps=47, num_envs=2, capacity=40, length=5)
    restored = host.set_state(host.init(SPEC, capacity, 2, 5), host.get_state(original))
    assert host.num_items(restored) == 2 * (47 - first_kept - 5 + 1)
    transition = values(np.random.default_rng(5), SPEC, (2,))
    for replay in (original, restored):
        host.add(replay, transition)
    for env in range(2):
        for step in range(first_kept + 1, 48):
            for path, ring in original.rings.items():
                kept = restored.rings[path]
                np.testing.assert_array_equal(ring[env, step % 20], kept[env, step % kept.shape[1]])


def test_a_queue_of_another_window_length_is_dropped_on_restore():
    original = filled(steps=18, num_envs=2, length=5, online=True)
    restored = host.set_state(host.init(SPEC, 40, 2, 6), host.get_state(original))
    transition = values(np.random.default_rng(5), SPEC, (2,))
    for _ in range(6):
        host.add(restored, transition)
    _, _, index = host.sample(restored, (0,), 2)
    assert index.tolist() == [[0, 18], [1, 18]]


def test_refuses_a_state_of_another_spec_naming_the_key():
    state = host.get_state(filled(8))
    narrow = {**SPEC, "observation": {**SPEC["observation"], "position": ((2,), np.float32)}}
    with pytest.raises(UserError, match=r"observation\.position was saved as float32 \[3\]"):
        host.set_state(host.init(narrow, 40, 2, 5), state)
    more = {**SPEC, "extra": ((), np.float32)}
    with pytest.raises(UserError, match="only the run has the key extra"):
        host.set_state(host.init(more, 40, 2, 5), state)
    with pytest.raises(UserError, match=r"env\.num_envs=2 but the run has env\.num_envs=4"):
        host.set_state(host.init(SPEC, 40, 4, 5), state)


def test_refuses_data_that_is_not_the_specs():
    replay = filled(8)
    good = values(np.random.default_rng(0), SPEC, (2,))
    with pytest.raises(ValueError, match="reward is float64"):
        host.add(replay, {**good, "reward": good["reward"].astype(np.float64)})
    with pytest.raises(ValueError, match=r"reward is float32 \[\], the spec says float32 \[2\]"):
        host.add(replay, {**good, "reward": np.float32(0)})
    with pytest.raises(ValueError, match=r"latent\.deter, latent\.stoch"):
        host.add(replay, {key: leaf for key, leaf in good.items() if key != "latent"})
    replay, _, index = host.sample(replay, (0,), 3)
    latent = values(np.random.default_rng(0), SPEC["latent"], (3, 5))
    with pytest.raises(ValueError, match=r"latent\.deter"):
        host.update(replay, index, latent)  # the context row is not written


def test_sampling_needs_a_complete_window():
    assert host.num_items(filled(4)) == 0
    with pytest.raises(ValueError, match="no complete window"):
        host.sample(filled(4), (0,), 1)
    assert host.num_items(filled(5)) == 2


def test_refuses_a_capacity_below_one_window_per_environment():
    with pytest.raises(ValueError, match="capacity=19 holds no window of 5 steps in 4 rings"):
        host.init(SPEC, 19, 4, 5)
    assert host.init(SPEC, 20, 4, 5).slots == 5


def test_estimates_memory_and_refuses_what_does_not_fit(monkeypatch):
    per_step = 4 + 12 + 4 + 4 + 3 + 8 + 2
    assert memory.nbytes(SPEC, 1000) == 1000 * per_step
    assert sum(ring.nbytes for ring in filled(0, capacity=40).rings.values()) == memory.nbytes(
        SPEC, 40
    )
    monkeypatch.setattr(memory, "available", lambda: 1000 * per_step)
    with pytest.raises(UserError, match=r"replay\.capacity=901 .* fits is replay\.capacity=900$"):
        host.init(SPEC, 901, 1, 5)
    host.init(SPEC, 900, 1, 5)


def test_available_memory_respects_the_control_group(monkeypatch, tmp_path):
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(memory, "_CGROUP_LIMITS", (str(limit), str(tmp_path / "missing")))
    limit.write_text("max\n")
    free = memory.available()
    assert free > 2**26
    limit.write_text(f"{2**40}\n")
    assert memory.available() > 2**26
    limit.write_text("1024\n")  # less than this process takes already
    assert memory.available() == 0


def test_paths_round_trip():
    nested = {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
    assert tree.flatten(nested) == {("a", "b"): 1, ("a", "c", "d"): 2, ("e",): 3}
    assert tree.unflatten(tree.flatten(nested)) == nested
