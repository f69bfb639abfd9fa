"""Saved episodes: read back as they were saved, or refused in one line."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dm_env import specs
from gymnasium import spaces

from dreamer.config import trust
from dreamer.datasets import recorded
from dreamer.datasets.recorded import Spaces
from dreamer.envs import registry
from dreamer.envs.base import Specs
from dreamer.envs.spaces import action_codec, observation_codec
from dreamer.errors import UserError
from tests import probe_envs, recordings

ACTION = specs.DiscreteArray(3, np.int32, "action")
WANTED = Spaces(
    "Walk",
    {"observation": specs.Array((3,), np.float32)},
    {"action": ACTION},
    spaces.Discrete(3),
)


def test_episodes_are_read_as_they_were_saved(tmp_path: Path) -> None:
    folder = recordings.folder(tmp_path / "episodes", [4, 6, 1])
    found = recorded.open_folder(folder, WANTED)
    assert found.lengths == [4, 6, 1]
    assert found.rows == 11
    for _ in range(2):  # as often as needed
        for number, episode in enumerate(found.read()):
            expected = recordings.episode(found.lengths[number], number, number % 2 == 0)
            assert episode.keys() == expected.keys()
            for name, value in expected.items():
                np.testing.assert_array_equal(episode[name], value, strict=True)
    assert [path.name for path in sorted(folder.iterdir())] == [
        f"{number:06}.npz" for number in range(3)
    ]


def test_only_used_arrays_are_read(tmp_path: Path) -> None:
    recorded.save(tmp_path, 0, {**recordings.episode(3), "observation.camera": np.zeros((3, 8))})
    (episode,) = recorded.open_folder(tmp_path, WANTED).read()
    assert episode.keys() == recordings.episode(3).keys()


def test_an_episode_without_its_first_rows_starts_with_is_first(tmp_path: Path) -> None:
    lost = {name: value[1:] for name, value in recordings.episode(4).items()}
    assert not lost["is_first"].any()
    recorded.save(tmp_path, 0, lost)
    (episode,) = recorded.open_folder(tmp_path, WANTED).read()
    assert episode["is_first"].tolist() == [True, False, False]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"is_last": None}, "has no array is_last; it needs observation.observation, action.actio"),
        (
            {"observation.observation": np.zeros((4, 5), np.float32)},
            r"does not fit the environment Walk: a row of observation.observation is float32 \[5\] "
            r"in the recording and float32 \[3\] in the environment; choose",
        ),
        (
            {"reward": np.zeros(4)},
            r"a row of reward is float64 \[\] in the recording and float32",
        ),
        ({"is_first": np.zeros(3, bool)}, "the same number of rows, .* reward 4, is_first 3"),
        ({"reward": np.array([0, 0, np.nan, 0], np.float32)}, "reward in row 2 is not finite"),
        (
            {"action.action": np.array([0, 1, 2, 3], np.int32)},
            "action.action in row 3 is not between 0 and 2",
        ),
    ],
)
def test_an_episode_that_does_not_fit_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    arrays = {k: v for k, v in (recordings.episode(4) | changes).items() if v is not None}
    recorded.save(tmp_path, 0, arrays)
    with pytest.raises(UserError, match=message) as caught:
        list(recorded.open_folder(tmp_path, WANTED).read())
    assert str(tmp_path / "000000.npz") in str(caught.value)


@pytest.mark.parametrize("content", [b"not a zip file", b""])
def test_a_file_without_an_episode_is_refused(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no saved episodes \(\*.npz\); save some with"):
        recorded.open_folder(tmp_path, WANTED)
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"a.npz cannot be read as a saved episode"):
        recorded.open_folder(tmp_path, WANTED)
    np.savez(tmp_path / "a.npz", x=np.zeros(3))
    with pytest.raises(UserError, match=r"a.npz cannot be read .* no item named 'reward.npy'"):
        recorded.open_folder(tmp_path, WANTED)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (
            {"observation.observation": specs.BoundedArray((8, 8, 3), np.uint8, 0, 255)},
            r"is uint8 \[8, 8, 3\] in the recording and float32 \[3\] in the environment; choose",
        ),
        (
            {"observation.observation": None},
            "observation.observation is missing in the rec",
        ),
        (
            {"action.action": specs.DiscreteArray(4)},
            r"action.action is int32 \[\] of 4 classes in the recording and int32 \[\] of 3",
        ),
        ({"action.other": ACTION}, r"action.other is int32 .* in the recording and missing in"),
    ],
)
def test_spaces_are_compared(found: dict[str, Any], message: str) -> None:
    ours: dict[str, Any] = {
        "observation.observation": specs.Array((3,), np.float32),
        "action.action": ACTION,
    }
    extra = {"observation.camera": specs.Array((5,), np.float32)}  # unused
    recorded.compare("minari:x", ours | extra, WANTED)
    theirs = {key: leaf for key, leaf in (ours | found).items() if leaf is not None}
    start = "^minari:x does not fit the environment Walk: "
    with pytest.raises(UserError, match=f"{start}.*{message}"):
        recorded.compare("minari:x", theirs, WANTED)


@pytest.mark.parametrize(
    "leaves",
    [
        {"observation": specs.Array((3,), np.float32)},
        {"image": specs.BoundedArray((8, 9, 3), np.uint8, 0, 255)},
        {"observation": specs.BoundedArray((8, 9, 3), np.uint8, 0, 255)},
        {"observation": specs.DiscreteArray(5, np.int32)},
        {"speed": specs.Array((), np.float32), "board": specs.BoundedArray((2, 2), np.int32, 0, 3)},
    ],
)
def test_a_space_made_of_specs_has_these_specs(leaves: Specs) -> None:
    found = observation_codec(recorded.space_of(leaves)).specs
    assert found.keys() == leaves.keys()
    for key, leaf in leaves.items():
        assert recorded.describe(found[key]) == recorded.describe(leaf)


def test_the_spaces_of_an_environment_know_its_units() -> None:
    from dreamer.config.env import GymnasiumEnv

    config = GymnasiumEnv(task="tests.probe_envs:probe/Steered-v0")
    env = registry.make(trust.allow(config), 1, 0)
    found = recorded.spaces_of(env, "Steered")
    env.close()
    assert found.native == probe_envs.Steered.action_space
    assert action_codec(found.native).specs == found.actions
    used = recorded.spaces_of(env, "Steered", {"a": ACTION})
    assert used.observations == {"a": ACTION}
