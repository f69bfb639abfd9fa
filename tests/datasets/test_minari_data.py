"""Minari datasets: time alignment by hand, units of actions, and what is refused."""

import sys
from typing import Any

import gymnasium
import jax
import numpy as np
import pytest
from dm_env import specs
from gymnasium import spaces
from gymnasium.vector.utils import concatenate, create_empty_array

from dreamer.datasets import minari_data, recorded
from dreamer.datasets.recorded import Spaces
from dreamer.envs.spaces import action_codec
from dreamer.errors import UserError
from tests import probe_envs, recordings

VECTOR = specs.Array((3,), np.float32)
# By name: Minari writes down how the environment is made.
gymnasium.register("probe/Named-v0", entry_point="tests.probe_envs:Steered")
OBSERVATION = spaces.Box(-np.inf, np.inf, (3,), np.float64)
STEERED = spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, 1.0], np.float32))


@pytest.fixture
def minari(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Any:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return pytest.importorskip("minari")


def wanted(action: gymnasium.Space = STEERED, observation: Any = VECTOR) -> Spaces:
    key = "image" if observation.dtype == np.uint8 else "observation"
    return Spaces("Walk", {key: observation}, action_codec(action).specs, action)


def dataset(minari: Any, name: str, observations: Any, space: Any = OBSERVATION) -> None:
    """One episode of three steps that ends by a time limit, with two continuous actions."""
    buffer = minari.data_collector.EpisodeBuffer(
        observations=observations,
        actions=np.array([[-2, 0], [0, 0.5], [3, 1]], np.float32),
        rewards=[1.0, 2.0, 3.0],
        terminations=[False, False, False],
        truncations=[False, False, True],
    )
    spaces_of = {"observation_space": space, "action_space": STEERED}
    with pytest.warns(UserWarning, match="recommended|None"):
        minari.create_dataset_from_buffers(name, [buffer], **spaces_of)


def test_three_steps_by_hand(minari: Any) -> None:
    seen = np.arange(12.0).reshape(4, 3)
    dataset(minari, "by-hand-v0", seen)
    found = minari_data.open_dataset("by-hand-v0", wanted())
    (episode,) = found.read()
    assert found.lengths == [4]
    expected: dict[str, Any] = {
        "observation.observation": seen.astype(np.float32),
        # -2 to 2 and 0 to 1 in the environment's units, -1 to 1 here; 3 is clipped.
        "action.action": np.array([[-1, -1], [0, 0], [1, 1], [0, 0]], np.float32),
        "reward": np.array([0, 1, 2, 3], np.float32),
        "is_first": np.array([True, False, False, False]),
        "is_last": np.array([False, False, False, True]),
        "is_terminal": np.array([False, False, False, False]),
    }
    assert episode.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(episode[name], value, strict=True)


@pytest.mark.parametrize(
    ("terminations", "truncations", "last", "terminal"),
    [
        ([0, 1], [0, 0], [0, 0, 1], [0, 0, 1]),
        ([0, 0], [0, 0], [0, 0, 0], [0, 0, 0]),  # incomplete
        ([1, 0], [0, 1], [0, 0, 1], [0, 1, 0]),  # continues after a terminal state
        ([1, 0], [0, 0], [0, 0, 0], [0, 1, 0]),
    ],
)
def test_ends(terminations: list, truncations: list, last: list, terminal: list) -> None:
    class Data:
        observations = np.zeros((3, 3))
        actions = np.zeros((2, 2))
        rewards = np.zeros(2)

    data: Any = Data()
    data.terminations, data.truncations = (np.array(x, bool) for x in (terminations, truncations))
    found = minari_data.episode_of(data, OBSERVATION, STEERED)
    assert found["is_last"].astype(int).tolist() == last
    assert found["is_terminal"].astype(int).tolist() == terminal


@pytest.mark.parametrize(
    "space",
    [
        STEERED,
        spaces.Box(-3, 3, (2, 2), np.float64),
        spaces.Discrete(4, start=-1),
        spaces.MultiDiscrete([3, 3]),
        spaces.MultiDiscrete([2, 5]),
        spaces.MultiDiscrete([[2, 2, 2], [2, 2, 2]]),
        spaces.MultiBinary(3),
        spaces.Box(0, 4, (2,), np.int64),
        spaces.Dict({"a": spaces.Discrete(3), "b": spaces.Dict({"c": STEERED})}),
        spaces.Tuple([spaces.Discrete(3), STEERED]),
    ],
    ids=repr,
)
def test_encoding_actions_inverts_the_codec(space: gymnasium.Space) -> None:
    space.seed(0)
    codec = action_codec(space)
    samples = [space.sample() for _ in range(5)]
    native = concatenate(space, samples, create_empty_array(space, 5))
    encoded = minari_data.encode_actions(space, native)
    assert encoded.keys() == codec.specs.keys()
    for key, leaf in codec.specs.items():
        assert (encoded[key].shape, encoded[key].dtype) == ((5, *leaf.shape), leaf.dtype)
        leaf.validate(encoded[key][0])
    again, before = (jax.tree.leaves(x) for x in (codec.convert(encoded), native))
    for ours, theirs in zip(again, before, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_images_are_resized_to_those_of_the_environment(minari: Any) -> None:
    space = spaces.Box(0, 255, (8, 8, 3), np.uint8)
    seen = np.repeat(np.array([0, 50, 100, 255], np.uint8), 192).reshape(4, 8, 8, 3)
    dataset(minari, "images-v0", seen, space)
    image = specs.BoundedArray((4, 6, 3), np.uint8, 0, 255)
    (episode,) = minari_data.open_dataset("images-v0", wanted(observation=image)).read()
    assert episode["observation.image"].shape == (4, 4, 6, 3)
    assert episode["observation.image"][:, 0, 0, 0].tolist() == [0, 50, 100, 255]


def test_masks_are_kept(minari: Any) -> None:
    """Minari has them as classes."""
    masked = wanted(spaces.Discrete(3))
    masked.observations["action_mask"] = specs.BoundedArray((3,), bool, False, True)
    valid = np.array([[True, False, True], [False, True, True]])
    episode = recordings.episode(2) | {"observation.action_mask": valid}
    minari_data.create("masks-v0", [episode], masked, None)
    (found,) = minari_data.open_dataset("masks-v0", masked).read()
    np.testing.assert_array_equal(found["observation.action_mask"], valid, strict=True)


def test_another_environment_is_refused(minari: Any) -> None:
    dataset(minari, "space/walk-v0", np.zeros((4, 3)))

    def refusal(spaces: Spaces) -> str:
        with pytest.raises(UserError) as caught:
            minari_data.open_dataset("space/walk-v0", spaces)
        return str(caught.value)

    text = refusal(wanted(observation=specs.Array((4,), np.float32)))
    assert text.startswith("minari:space/walk-v0 does not fit the environment Walk: observation.")
    assert "is float32 [3] in the recording and float32 [4] in the environment" in text
    assert "action.action is float32 [2] in the recording and int32 [] of 3 cl" in refusal(
        wanted(spaces.Discrete(3))
    )
    other = spaces.Box(np.array([-2, 0], np.float32), np.array([2, 3], np.float32))
    assert "action.action is between -2 and 2 in the recording and between -2 and 3" in refusal(
        wanted(other)
    )


def test_a_missing_dataset_is_refused(minari: Any, tmp_path: Any) -> None:
    with pytest.raises(
        UserError,
        match=r"minari:no/such-v0 is not on this machine, in .*minari/no/such-v0; "
        r"get it with: minari download no/such-v0",
    ):
        minari_data.open_dataset("no/such-v0", wanted())
    (tmp_path / "minari" / "broken-v0" / "data").mkdir(parents=True)
    with pytest.raises(UserError, match="minari:broken-v0 cannot be read: .*No data found"):
        minari_data.open_dataset("broken-v0", wanted())


def test_minari_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "minari", None)
    with pytest.raises(UserError, match=r"not installed; pip install 'dreamer\[minari\]'"):
        minari_data.open_dataset("x-v0", wanted())


def test_a_written_dataset_is_read_back(minari: Any) -> None:
    discrete = wanted(spaces.Discrete(3))
    whole = [recordings.episode(5, 0), recordings.episode(1, 1), recordings.episode(3, 2, False)]
    for name, env_id in (("made/walk-v0", None), ("made/walk-v1", "probe/Named-v0")):
        assert minari_data.create(name, whole, discrete, env_id) == (2, 6)
        found = minari_data.open_dataset(name, discrete)
        assert found.lengths == [5, 3]
        for ours, theirs in zip(found.read(), (whole[0], whole[2]), strict=True):
            for key, value in theirs.items():
                np.testing.assert_array_equal(ours[key], value, strict=True)
    dataset = minari.load_dataset("made/walk-v1")
    assert dataset.env_spec.id == "probe/Named-v0"
    assert [one.terminations.tolist() for one in dataset] == [[0, 0, 0, 1], [0, 0]]
    assert [one.truncations.tolist() for one in dataset] == [[0, 0, 0, 0], [0, 1]]
    with pytest.raises(
        UserError, match="minari:made/walk-v0 exists already, in .*; choose another"
    ):
        minari_data.create("made/walk-v0", whole, discrete, None)
    with pytest.raises(UserError, match="minari:none-v0 would be empty"):
        minari_data.create("none-v0", [recordings.episode(1)], discrete, None)


def test_images_are_written_without_compression(minari: Any) -> None:
    """Minari would compress those of 32 pixels and more with losses."""
    image = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    seen = wanted(spaces.Discrete(3), specs.BoundedArray((32, 32, 3), np.uint8, 0, 255))
    episode = recordings.episode(3) | {"observation.image": image}
    minari_data.create("pictures-v0", [episode], seen, None)
    (found,) = minari_data.open_dataset("pictures-v0", seen).read()
    np.testing.assert_array_equal(found["observation.image"], image)


def test_continuous_actions_are_written_in_units_of_the_environment(minari: Any) -> None:
    episode = recordings.episode(3)
    episode["action.action"] = np.array([[-1, 0.5], [1, 1], [0, 0]], np.float32)
    minari_data.create("units-v0", [episode], wanted(), None)
    (data,) = minari.load_dataset("units-v0")
    np.testing.assert_allclose(data.actions, [[-2, 0.75], [2, 1]])


@pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning")  # by Minari
def test_episodes_that_minari_collects_are_read(minari: Any) -> None:
    env = minari.DataCollector(gymnasium.make("probe/Named-v0", disable_env_checker=True))
    rewards = []
    for seed in range(2):
        env.reset(seed=seed)
        over = False
        while not over:
            _, reward, terminated, truncated, _ = env.step(np.array([2, -1], np.float32))
            rewards.append(reward)
            over = terminated or truncated
    with pytest.warns(UserWarning, match="recommended|None"):
        env.create_dataset("collected-v0")
    env.close()
    steered = wanted(probe_envs.Steered.action_space)
    found = list(minari_data.open_dataset("collected-v0", steered).read())
    np.testing.assert_allclose(
        np.concatenate([episode["reward"][1:] for episode in found]), rewards, rtol=1e-6
    )
    for episode in found:
        assert recorded.checked("again", episode, steered).keys() == episode.keys()
        np.testing.assert_array_equal(episode["action.action"][:-1, 0], 1)
        np.testing.assert_array_equal(episode["action.action"][:-1, 1], -0.5)
        assert episode["is_last"].tolist() == [False] * (len(episode["reward"]) - 1) + [True]
