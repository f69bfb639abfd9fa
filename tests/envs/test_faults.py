from pathlib import Path

import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector.utils import batch_space

from dreamer.envs.faults import checker, numbers, story, wrong_reward
from dreamer.errors import EnvironmentFault
from tests.envs.test_spaces import OBSERVATIONS

SPACE = spaces.Dict(
    {
        "box": spaces.Box(-1, 1, (2,)),
        "image": spaces.Box(0, 255, (2, 3, 1), np.uint8),
        "in": spaces.Tuple([spaces.Discrete(3, start=1), spaces.MultiDiscrete([2, 4])]),
    }
)


def good() -> dict:
    return {
        "box": np.array([0.5, 1.000001], np.float32),  # rounding is no fault
        "image": np.zeros((2, 3, 1), np.uint8),
        "in": (np.int64(3), np.array([1, 3])),
    }


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, ""),
        ({"in": (1, np.array([0, 0], np.int8))}, ""),
        ({"box": [0.5, 0.5]}, ""),
        (
            {"box": np.zeros(3)},
            "gave observation 'box' of shape (3,) and type float64, expected shape (2,) and type "
            "float32",
        ),
        ({"box": np.array([0, np.nan])}, "gave NaN or infinity as observation 'box', which"),
        ({"box": np.array([0, -np.inf])}, "gave NaN or infinity as observation 'box', which"),
        ({"box": np.array([0, 1e39])}, "gave NaN or infinity as observation 'box', which"),
        (
            {"box": np.array([0, 9])},
            "gave observation 'box' with the value 9, expected -1.0 to 1.0",
        ),
        (
            {"box": [[1], [2, 3]]},
            "gave observation 'box' of unequal parts, expected shape (2,)",
        ),
        ({"box": "ab"}, "gave observation 'box' of shape () and type <U2, expected"),
        (
            {"image": np.zeros((2, 3, 1))},
            "gave observation 'image' of shape (2, 3, 1) and type float64, expected shape "
            "(2, 3, 1) and type uint8",
        ),
        (
            {"in": (4, np.zeros(2, int))},
            "gave observation 'in_0' with the value 4, expected 1 to 3",
        ),
        ({"in": (0, np.zeros(2, int))}, "gave observation 'in_0' with the value 0, expected 1"),
        ({"in": (2.0, np.zeros(2, int))}, "gave observation 'in_0' of shape () and type float64"),
        ({"in": (1, np.array([1, 4]))}, "gave observation 'in_1' with the value 4, expected 0 to"),
        ({"in": (1,)}, "gave observation 'in' with 1 parts, expected a tuple of 2 parts"),
        ({"in": 1}, "gave observation 'in' with int, expected a tuple of 2 parts"),
        ({"more": 1}, "gave observation with keys box, image, in, more, expected keys box, image"),
    ],
)
def test_what_is_wrong_with_an_observation(change: dict, expected: str):
    found = checker(SPACE)(good() | change)
    assert found.startswith(expected)
    assert bool(found) == bool(expected)


def test_bounds_count_where_there_are_some():
    half = checker(spaces.Box(np.float32([0, -np.inf]), np.float32([np.inf, np.inf]), (2,)))
    assert half(np.array([1e30, -1e30])) == ""
    assert "with the value -1.0, expected" in half(np.array([-1.0, 0]))
    assert checker(spaces.Box(-np.inf, np.inf, (2,)))(np.array([1e30, -1e30])) == ""
    many = checker(spaces.Box(0, 1000, (1,), np.int64))
    assert many(np.array([1000])) == ""
    assert "with the value 1001, expected 0 to 1000" in many(np.array([1001]))


@pytest.mark.parametrize(
    ("reward", "got"),
    [
        (np.zeros(1), "of shape (1,) and type float64"),
        (None, "of shape () and type object"),
        ("1.5", "of shape () and type <U3"),
        ([[1], [2, 3]], "of unequal parts"),
    ],
)
def test_a_reward_is_one_number(reward: object, got: str):
    assert numbers(np.float16(0.5)) == 0.5
    assert numbers(True) == 1
    with pytest.raises(EnvironmentFault) as caught:
        numbers(reward)
    assert str(caught.value) == f"gave a reward {got}, expected one number"


def test_a_missing_key_and_no_dict_at_all():
    partial = good()
    del partial["box"]
    assert "with keys image, in, expected keys box, image, in" in checker(SPACE)(partial)
    assert "with ndarray, expected keys box, image, in" in checker(SPACE)(np.zeros(3))


@pytest.mark.parametrize(("space", "_"), OBSERVATIONS, ids=lambda x: str(x)[:60])
def test_samples_of_a_space_are_valid(space: object, _: dict):
    for one in (space, batch_space(space, 3)):
        one.seed(0)
        assert all(checker(one)(one.sample()) == "" for _ in range(5))


def test_rewards():
    assert wrong_reward(1.5) == wrong_reward(np.array([0, -3])) == ""
    for reward in (np.nan, np.array([0, np.inf]), 1e39):
        assert wrong_reward(reward).startswith("gave NaN or infinity as reward, which")


def test_an_exception_is_described_with_the_innermost_line_of_the_users_own(tmp_path: Path):
    path = tmp_path / "simulator.py"
    path.write_text("import numpy\ndef run():\n    numpy.stack(\n[])\n")
    code = compile(path.read_text(), str(path), "exec")
    names: dict = {}
    exec(code, names)
    with pytest.raises(ValueError, match="at least one") as caught:
        names["run"]()
    line = story(caught.value)
    assert line == f"ValueError: need at least one array to stack ({path}, line 3, in run)"
    assert story(KeyError()) == "KeyError"
