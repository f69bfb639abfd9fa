"""Evaluation statistics against hand values and scipy, and their files."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from dreamer.errors import UserError
from dreamer.logs.summary import interquartile_mean, render, summarize, write_json


def test_hand_values() -> None:
    found = summarize([1, 2, 3, 4, 100], [10, 10, 20, 20, 30])
    expected = {
        "episodes": 5,
        "mean": 22.0,
        "std": math.sqrt((21**2 + 20**2 + 19**2 + 18**2 + 78**2) / 5),
        "median": 3.0,
        "iqm": 3.0,  # one value cut on each side
        "min": 1.0,
        "max": 100.0,
        "length": 18.0,
    }
    assert found.keys() == expected.keys()
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 8, 10, 11, 20, 101])
def test_interquartile_mean_is_scipys_trimmed_mean(count: int) -> None:
    values = np.random.default_rng(count).normal(size=count) ** 3
    assert interquartile_mean(values) == pytest.approx(stats.trim_mean(values, 0.25), abs=1e-12)


def test_interquartile_mean_does_not_depend_on_order() -> None:
    assert interquartile_mean([100, -50, 3, 1]) == 2.0


def test_one_episode_has_no_spread() -> None:
    assert summarize([7.0], [3])["std"] == 0.0


@pytest.mark.parametrize(("returns", "lengths"), [([], []), ([1.0], [1, 2])])
def test_refuses_what_is_not_one_length_per_return(
    returns: list[float], lengths: list[int]
) -> None:
    with pytest.raises(ValueError, match="per episode"):
        summarize(returns, lengths)


def test_table_shows_every_statistic_in_plain_characters() -> None:
    text = render(summarize([1234.567, 0.0], [3, 4]), "CartPole-v1")
    assert text.isascii()
    assert max(map(len, text.splitlines())) <= 80
    assert text.splitlines()[0].strip() == "CartPole-v1"
    cells = dict(
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[3:]
    )
    assert cells["episodes"] == "2"
    assert cells["highest return"] == "1,234.57"
    assert cells["mean length"] == "3.50"
    assert len(cells) == 8


def test_json_is_strict_and_takes_numpy(tmp_path: Path) -> None:
    path = tmp_path / "new" / "eval.json"
    write_json(
        path, {"a": math.nan, "b": np.float32(0.5), "c": np.array([0, np.nan]), "d": (math.inf, 1)}
    )
    text = path.read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {
        "a": None,
        "b": 0.5,
        "c": [0, None],
        "d": [None, 1],
    }


def test_json_that_cannot_be_written_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"eval\.json"):
        write_json(tmp_path / "file" / "eval.json", {})


def test_json_replaces_a_file_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "eval.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="object"):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [item.name for item in tmp_path.iterdir()] == ["eval.json"]
