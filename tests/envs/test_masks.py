from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from dreamer.config.env import EnvBase
from dreamer.envs import base
from dreamer.envs.masks import with_masks
from dreamer.envs.spaces import action_codec, observation_codec
from dreamer.envs.vector import VectorEnv
from dreamer.envs.wrappers import Pixels
from dreamer.errors import EnvironmentFault, UserError
from dreamer.nets import spaces as networks
from dreamer.nets.spaces import masked
from tests.envs.probe_envs import Hinting, played

FOUR = spaces.Discrete(4, start=1)
PAIR = spaces.MultiDiscrete([2, 3])
EQUAL = spaces.MultiDiscrete([2, 2])
MIXED = spaces.Dict(
    {
        "go": spaces.Discrete(2),
        "in": spaces.Tuple([spaces.Box(0, 1, (1,)), PAIR]),
        "push": spaces.Box(-1, 1, (2,)),
    }
)


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize(
    ("action", "given", "expected"),
    [
        (FOUR, np.array([1, 0, 0, 1], np.int8), {"action_mask": [1, 0, 0, 1]}),
        (FOUR, np.array([True, False, False, True]), {"action_mask": [1, 0, 0, 1]}),
        (FOUR, [0, 0, 1, 1], {"action_mask": [0, 0, 1, 1]}),
        (PAIR, ([1, 0], [0, 1, 1]), {"_action_0": [1, 0], "_action_1": [0, 1, 1]}),
        (PAIR, (np.array([1, 0]), np.ones(3)), {"_action_0": [1, 0], "_action_1": [1, 1, 1]}),
        (PAIR, np.array([1, 0, 0, 1, 1]), {"_action_0": [1, 0], "_action_1": [0, 1, 1]}),
        (EQUAL, np.array([[1, 0], [0, 1]]), {"action_mask": [[1, 0], [0, 1]]}),
        (EQUAL, [1, 0, 0, 1], {"action_mask": [[1, 0], [0, 1]]}),
        (spaces.MultiBinary(2), ([1, 0], [1, 1]), {"action_mask": [[1, 0], [1, 1]]}),
        (
            spaces.MultiDiscrete([[2, 2], [2, 2]]),
            (([1, 0], [0, 1]), ([1, 1], [0, 1])),
            {"_action_0": [1, 0], "_action_1": [0, 1], "_action_2": [1, 1], "_action_3": [0, 1]},
        ),
        (
            MIXED,
            {"go": [0, 1], "in": (None, ([1, 0], [0, 1, 1])), "push": None},
            {"_go": [0, 1], "_in_1_0": [1, 0], "_in_1_1": [0, 1, 1]},
        ),
        (MIXED, {"go": [0, 1]}, {"_go": [0, 1], "_in_1_0": [1, 1], "_in_1_1": [1, 1, 1]}),
        (
            spaces.Tuple([spaces.Discrete(2), spaces.Discrete(3)]),
            ([1, 0], [0, 1, 1]),
            {"_0": [1, 0], "_1": [0, 1, 1]},
        ),
    ],
    ids=lambda value: str(value)[:50],
)
def test_masks_are_observed_under_the_names_that_the_agent_knows(
    action: gymnasium.Space, given: Any, expected: dict, inside: bool
):
    env = with_masks(Hinting(action, given, inside))
    names = {key if key == "action_mask" else f"action_mask{key}": key for key in expected}
    codec, actions = observation_codec(env.observation_space), action_codec(env.action_space)
    assert masked(codec.specs, actions.specs).keys() <= actions.specs.keys()
    for seen in (env.reset(seed=0)[0], env.step(env.action_space.sample())[0]):
        assert env.observation_space.contains(seen)
        assert {key for key in seen if "mask" in key} == names.keys()
        for name, key in names.items():
            np.testing.assert_array_equal(seen[name], expected[key])
            assert codec.specs[name].dtype == np.bool_
        np.testing.assert_array_equal(seen["observation"], [0, 0])


def test_no_mask_leaves_the_environment_as_it_is():
    env = Hinting(FOUR, None, inside=False, gives=False)
    assert with_masks(env) is env


@pytest.mark.parametrize(
    ("space", "keys"),
    [
        (spaces.Box(0, 1, (2,)), {"observation"}),
        (spaces.Box(0, 255, (4, 5, 3), np.uint8), {"image"}),
        (spaces.Tuple([spaces.Discrete(2), spaces.Discrete(3)]), {"0", "1"}),
        (spaces.Dict({"a": spaces.Discrete(2)}), {"a"}),
    ],
)
def test_observations_keep_their_names_beside_masks(space: gymnasium.Space, keys: set):
    env = with_masks(Hinting(FOUR, [1, 1, 0, 1], inside=False, space=space))
    assert observation_codec(env.observation_space).specs.keys() == keys | {"action_mask"}
    assert observation_codec(space).specs.keys() == keys
    assert env.observation_space.contains(env.reset(seed=0)[0])


@pytest.mark.parametrize(
    ("action", "given", "message"),
    [
        (
            FOUR,
            [1, 0, 1],
            r"as \[1, 0, 1\], expected 1 or 0 for each of 4 classes",
        ),
        (FOUR, np.ones(3, int), r"as \[1 1 1\] of shape \(3,\), expected 1 or 0 for each of 4 "),
        (FOUR, [1, 0, 1, 2], "expected 1 or 0 for each of 4 classes"),
        (FOUR, {"a": 1}, "expected 1 or 0 for each of 4 classes"),
        (FOUR, "all", "expected 1 or 0 for each of 4 classes"),
        (PAIR, ([1, 0, 1], [1, 1]), r"as \(\[1, 0, 1\], \[1, 1\]\), expected .* of 2 \+ 3 classes"),
        (MIXED, {"gone": [1, 0]}, r"as \['gone'\], expected masks of \['go', 'in', 'p"),
        (MIXED, {"go": [1, 0, 1]}, r"go as \[1, 0, 1\], expected .* of 2 classes"),
        (MIXED, {"push": [1, 0]}, "push of an action that is not discrete"),
        (MIXED, [1, 0], r"as \[1, 0\], expected masks of"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(action: gymnasium.Space, given: Any, message: str):
    """At the start, and in the middle with the number of the environment."""
    with pytest.raises(UserError, match=message + ".*rename action_mask in a wrapper"):
        with_masks(Hinting(action, given, inside=False))
    valid = {} if action is MIXED else np.ones(5 if action is PAIR else 4)
    config = EnvBase(task="probe", workers="serial", restarts=0)
    env = VectorEnv(lambda: with_masks(Hinting(action, valid, inside=False)), config, 2, 0, False)
    env.reset()
    played(env)[1].unwrapped.mask = given
    with pytest.raises(EnvironmentFault, match=f"^environment 1 gave action_mask .*{message}"):
        env.reset()


def test_a_mask_may_be_missing_only_where_the_episode_is_over():
    env = with_masks(Hinting(FOUR, [1, 0, 0, 0], inside=False))
    env.reset(seed=0)
    env.unwrapped.gives, env.unwrapped.over = False, True
    np.testing.assert_array_equal(env.step(0)[0]["action_mask"], [1, 1, 1, 1])
    env.unwrapped.over = False
    with pytest.raises(EnvironmentFault, match="gave no action_mask in its info, expected at ev"):
        env.step(0)


@pytest.mark.parametrize("inside", [True, False])
def test_an_action_mask_that_is_no_mask_is_refused(inside: bool):
    with pytest.raises(UserError, match="but the actions are Box.*rename action_mask in a wr"):
        with_masks(Hinting(spaces.Box(-1, 1, (2,)), [1, 0], inside))


def test_a_name_that_is_taken_is_refused():
    space = spaces.Dict({"action_mask_go": spaces.Discrete(2)})
    with pytest.raises(UserError, match="observation 'action_mask_go' has the name of a mask"):
        with_masks(Hinting(MIXED, {}, inside=False, space=space))


@pytest.mark.parametrize("inside", [True, False])
def test_a_mask_allows_something_until_the_episode_is_over(inside: bool):
    env = with_masks(Hinting(MIXED, {"go": [0, 1]}, inside))
    env.reset(seed=0)
    env.unwrapped.mask = {"go": [0, 0]}
    env.unwrapped.over = True
    assert not env.step(env.action_space.sample())[0]["action_mask_go"].any()
    env.unwrapped.over = False
    with pytest.raises(EnvironmentFault, match="gave action_mask_go that allows no class, expect"):
        env.step(env.action_space.sample())


@pytest.mark.parametrize("at_reset", [True, False])
def test_a_mask_that_comes_later_is_refused(at_reset: bool):
    """As unused info."""
    hinting = Hinting(FOUR, [1, 0, 0, 0], inside=False, gives=False)
    config = EnvBase(task="probe", workers="serial", restarts=0)
    env = VectorEnv(lambda: with_masks(hinting), config, 1, 0, False)
    env.reset()
    hinting.gives = True
    with pytest.raises(EnvironmentFault, match="^environment 0 gave action_mask in its info, but"):
        env.reset() if at_reset else env.step({"action": np.array([0], np.int32)})


def test_masks_of_a_dict_have_names():
    """A tuple would mean the order of its keys, which is gymnasium's."""
    with pytest.raises(EnvironmentFault, match=r"expected masks of \['b', 'a'\]"):
        with_masks(Hinting(spaces.Dict(b=FOUR, a=FOUR), ([1, 0, 0, 0], [1] * 4), inside=False))


def test_masks_stay_beside_pixels():
    env = Pixels(with_masks(Hinting(FOUR, [1, 0, 0, 1], inside=True)), (8, 8))
    seen, _ = env.reset(seed=0)
    assert seen.keys() == {"image", "action_mask"}
    np.testing.assert_array_equal(seen["action_mask"], [1, 0, 0, 1])
    assert env.observation_space.contains(seen)


@pytest.mark.parametrize("action", ["action", "bed", "action_0"])
def test_networks_call_a_mask_as_environments_do(action: str) -> None:
    """They may not import one another."""
    assert networks.mask_key(action) == base.mask_key(action)
