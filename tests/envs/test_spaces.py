import json

import gymnasium
import numpy as np
import pytest
from dm_env import specs
from gymnasium import spaces
from gymnasium.vector.utils import batch_space

from dreamer.envs.spaces import Mask, action_codec, action_units, observation_codec
from dreamer.errors import UserError

F32, I32, U8 = np.float32, np.int32, np.uint8

# space, {key: (shape, dtype, classes or None)}
OBSERVATIONS = [
    (spaces.Box(-1, 1, (3,), np.float64), {"observation": ((3,), F32, None)}),
    (spaces.Box(-np.inf, np.inf, (2, 3)), {"observation": ((2, 3), F32, None)}),
    (spaces.Box(0, 1, ()), {"observation": ((), F32, None)}),
    (spaces.Box(0, 255, (8, 6, 3), U8), {"image": ((8, 6, 3), U8, 256)}),
    (spaces.Box(0, 255, (8, 6), U8), {"image": ((8, 6, 1), U8, 256)}),
    (spaces.Box(0, 3, (8, 6), U8), {"observation": ((8, 6), I32, 4)}),
    (spaces.Box(-2, 3, (4,), np.int64), {"observation": ((4,), I32, 6)}),
    (spaces.Box(0, 10_000, (4,), np.int64), {"observation": ((4,), F32, None)}),
    (spaces.Box(0, 1, (2,), np.bool_), {"observation": ((2,), I32, 2)}),
    (spaces.Discrete(5), {"observation": ((), I32, 5)}),
    (spaces.Discrete(5, start=3), {"observation": ((), I32, 5)}),
    (spaces.MultiDiscrete([4, 4]), {"observation": ((2,), I32, 4)}),
    (spaces.MultiDiscrete([4, 4], start=[1, -7]), {"observation": ((2,), I32, 4)}),
    (spaces.MultiDiscrete([[2, 2], [2, 2]]), {"observation": ((2, 2), I32, 2)}),
    (
        spaces.MultiDiscrete([4, 2]),
        {"observation_0": ((), I32, 4), "observation_1": ((), I32, 2)},
    ),
    (spaces.MultiBinary(3), {"observation": ((3,), I32, 2)}),
    (spaces.MultiBinary((2, 3, 4)), {"observation": ((2, 12), I32, 2)}),
    (spaces.Box(0, 1, (3, 3, 2, 2), np.bool_), {"observation": ((3, 12), I32, 2)}),
    (Mask((3, 2)), {"observation": ((3, 2), np.bool_, 2)}),
    (
        spaces.Dict(
            {
                "a/b": spaces.Discrete(2),
                "in": spaces.Dict({"x": spaces.Box(0, 255, (4, 4, 1), U8)}),
                "pair": spaces.Tuple([spaces.Discrete(3), spaces.Box(0, 1, (2,))]),
                "nothing": spaces.Box(0, 1, (0,)),
            }
        ),
        {
            "a_b": ((), I32, 2),
            "in_x": ((4, 4, 1), U8, 256),
            "pair_0": ((), I32, 3),
            "pair_1": ((2,), F32, None),
        },
    ),
]

ACTIONS = [
    (spaces.Discrete(5), {"action": ((), I32, 5)}),
    (spaces.Discrete(5, start=3), {"action": ((), I32, 5)}),
    (spaces.MultiDiscrete([4, 4]), {"action": ((2,), I32, 4)}),
    (
        spaces.MultiDiscrete([4, 2], start=[1, 5]),
        {"action_0": ((), I32, 4), "action_1": ((), I32, 2)},
    ),
    (
        spaces.MultiDiscrete([[2, 2], [2, 2]]),
        {f"action_{i}": ((), I32, 2) for i in range(4)},
    ),
    (spaces.MultiBinary(3), {"action": ((3,), I32, 2)}),
    (spaces.Box(-2, 5, (3,)), {"action": ((3,), F32, None)}),
    (spaces.Box(-2, 5, (2, 2), np.float64), {"action": ((4,), F32, None)}),
    (spaces.Box(-1000, 7, (2, 1, 2), np.int16), {"action": ((4,), F32, None)}),
    (spaces.Box(0, 1, (2,), np.bool_), {"action": ((2,), I32, 2)}),
    (
        spaces.Dict({"move": spaces.Box(0, 1, (1,)), "in": spaces.Tuple([spaces.Discrete(3)])}),
        {"move": ((1,), F32, None), "in_0": ((), I32, 3)},
    ),
    (
        spaces.Tuple([spaces.Box(0, 1, (0,)), spaces.Discrete(2)]),
        {"1": ((), I32, 2)},
    ),
]


def check_specs(found: dict[str, specs.Array], expected: dict) -> None:
    assert found.keys() == expected.keys()
    for key, (shape, dtype, classes) in expected.items():
        leaf = found[key]
        assert (leaf.shape, leaf.dtype) == (shape, dtype), key
        if classes is None:
            assert not isinstance(leaf, specs.BoundedArray) or dtype == F32
        else:
            assert isinstance(leaf, specs.BoundedArray)
            assert (leaf.minimum, leaf.maximum) == (0, classes - 1), key


@pytest.mark.parametrize(("space", "expected"), OBSERVATIONS, ids=lambda x: str(x)[:60])
def test_observations_have_the_specs_and_stay_inside(space: gymnasium.Space, expected: dict):
    codec = observation_codec(space)
    check_specs(codec.specs, expected)
    batched = batch_space(space, 3)
    batched.seed(0)
    for _ in range(20):
        encoded = codec.convert(batched.sample())
        assert encoded.keys() == expected.keys()
        for key, value in encoded.items():
            assert value.shape == (3, *codec.specs[key].shape)
            for row in value:
                codec.specs[key].validate(row)


def test_observation_values_count_from_zero():
    space = spaces.Dict(
        {
            "d": spaces.Discrete(5, start=3),
            "m": spaces.MultiDiscrete([4, 2], start=[1, -5]),
            "b": spaces.Box(-2, 3, (2,), np.int8),
        }
    )
    batch = {
        "d": np.array([3, 7]),
        "m": np.array([[1, -5], [4, -4]]),
        "b": np.array([[-2, 3], [0, 1]], np.int8),
    }
    encoded = observation_codec(space).convert(batch)
    np.testing.assert_array_equal(encoded["d"], [0, 4])
    np.testing.assert_array_equal(encoded["m_0"], [0, 3])
    np.testing.assert_array_equal(encoded["m_1"], [0, 1])
    np.testing.assert_array_equal(encoded["b"], [[0, 5], [2, 3]])


@pytest.mark.parametrize(("space", "expected"), OBSERVATIONS, ids=lambda x: str(x)[:60])
def test_observations_are_copies(space: gymnasium.Space, expected: dict):
    batched = batch_space(space, 2)
    batch = batched.sample()
    for value in observation_codec(space).convert(batch).values():
        assert not any(np.shares_memory(value, leaf) for leaf in leaves(batch))


def leaves(batch: object) -> list[np.ndarray]:
    if isinstance(batch, dict):
        batch = tuple(batch.values())
    if isinstance(batch, tuple):
        return [leaf for part in batch for leaf in leaves(part)]
    return [np.asarray(batch)]


@pytest.mark.parametrize(("space", "expected"), ACTIONS, ids=lambda x: str(x)[:60])
def test_actions_have_the_specs_and_reach_the_whole_space(space: gymnasium.Space, expected: dict):
    codec = action_codec(space)
    check_specs(codec.specs, expected)
    batched = batch_space(space, 4)
    for end in ("minimum", "maximum"):
        action = {
            key: np.full((4, *leaf.shape), getattr(leaf, end), leaf.dtype)
            for key, leaf in codec.specs.items()
        }
        native = codec.convert(action)
        assert batched.contains(native), native
        flat = np.concatenate([leaf.reshape(4, -1) for leaf in leaves(native)], 1)
        bounds = np.concatenate([leaf.ravel() for leaf in leaves(extreme(space, end == "maximum"))])
        np.testing.assert_array_equal(flat, np.tile(bounds, (4, 1)))


@pytest.mark.parametrize(("space", "expected"), ACTIONS, ids=lambda x: str(x)[:60])
def test_the_units_of_actions_are_those_of_the_space(space: gymnasium.Space, expected: dict):
    units = action_units(space)
    assert units.keys() == expected.keys()
    for key, (shape, dtype, _) in expected.items():
        assert set(units[key]) == ({"low", "high"} if dtype == F32 else {"start"})
        assert all(np.shape(value) == shape for value in units[key].values())
    first = [unit.get("low", unit.get("start")) for unit in units.values()]
    least = [leaf.ravel() for leaf in leaves(extreme(space, high=False))]
    np.testing.assert_array_equal(np.concatenate([np.ravel(x) for x in first]), np.hstack(least))
    json.dumps(units)


def test_the_highest_actions_are_known():
    space = spaces.Dict({"a": spaces.Box(-1, np.array([2, 5], F32)), "b": spaces.Discrete(2)})
    assert action_units(space)["a"] == {"low": [-1, -1], "high": [2, 5]}


def extreme(space: gymnasium.Space, high: bool) -> object:
    """The smallest or largest element of a space."""
    if isinstance(space, spaces.Dict):
        return {key: extreme(part, high) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(extreme(part, high) for part in space.spaces)
    if isinstance(space, spaces.Discrete):
        return np.asarray(space.start + (space.n - 1 if high else 0))
    if isinstance(space, spaces.MultiDiscrete):
        return space.start + (space.nvec - 1 if high else 0)
    if isinstance(space, spaces.MultiBinary):
        return np.full(space.shape, int(high))
    return space.high if high else space.low


def test_whole_numbers_without_classes_are_rounded():
    native = action_codec(spaces.Box(0, 1000, (1,), np.int64)).convert(
        {"action": np.array([[-0.9991], [0.0004], [1.0]], F32)}
    )
    np.testing.assert_array_equal(native, [[0], [500], [1000]])


def test_continuous_actions_are_clipped_then_scaled():
    codec = action_codec(spaces.Box(np.array([-2, 0], F32), np.array([2, 10], F32)))
    native = codec.convert({"action": np.array([[0, -0.5], [0.5, 7], [-9, -1]], F32)})
    np.testing.assert_allclose(native, [[0, 2.5], [1, 10], [-2, 0]], rtol=1e-6)
    assert native.dtype == F32


@pytest.mark.parametrize(
    ("codec", "space", "words"),
    [
        (observation_codec, spaces.Dict({"say": spaces.Text(5)}), ["observation", "'say'", "Text"]),
        (observation_codec, spaces.Box(0, 1, (8, 8, 3)), ["(8, 8, 3)", "uint8 from 0", "cast"]),
        (observation_codec, spaces.Box(0, 255, (3, 84, 84), U8), ["(3, 84, 84)", "first"]),
        (
            observation_codec,
            spaces.Discrete(2**40),
            ["'observation'", "1,099,511,627,776"],
        ),
        (action_codec, spaces.Dict({"a": spaces.Text(5)}), ["action", "'a'", "Text"]),
        (action_codec, spaces.Box(-np.inf, 1, (3,)), ["'action'", "(3,)", "infinite", "wrapper"]),
        (action_codec, spaces.Box(-(2**63), 2**63 - 1, (1,), np.int64), ["infinite", "wrapper"]),
        (observation_codec, spaces.Sequence(spaces.Discrete(2)), ["Sequence", "in a wrapper"]),
        (
            observation_codec,
            spaces.Graph(spaces.Discrete(2), None),
            ["Graph", "in a wrapper"],
        ),
        (action_codec, spaces.Sequence(spaces.Discrete(2)), ["Sequence", "in a wrapper"]),
        (
            observation_codec,
            spaces.Dict({"a_b": spaces.Discrete(2), "a": spaces.Dict({"b": spaces.Discrete(2)})}),
            ["'a_b'", "rename"],
        ),
    ],
)
def test_unsupported_spaces_are_named(codec, space: gymnasium.Space, words: list[str]):
    with pytest.raises(UserError) as error:
        codec(space)
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value)
