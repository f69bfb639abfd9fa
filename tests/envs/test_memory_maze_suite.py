"""Memory Maze: the contract of every environment."""

import numpy as np
import pytest

from dreamer.config.env import MemoryMazeEnv
from dreamer.envs import headless, registry
from dreamer.envs.check import check
from dreamer.errors import UserError
from tests.envs import suites

memory_maze_suite = suites.module("memory_maze")


@pytest.mark.slow
def test_keeps_the_contract() -> None:
    suites.drawn()
    env = registry.make(MemoryMazeEnv(image_size=(16, 16), time_limit=6), 1, 0)
    assert check(env, 9).truncated == 1
    env.close()


@pytest.mark.slow
def test_seeds_draw_mazes_and_extra_observations_show_the_layout() -> None:
    suites.drawn()
    config = MemoryMazeEnv(task="9x9-ExtraObs", image_size=(16, 16))
    layouts = []
    for seed in (0, 0, 1):
        env = registry.make(config, 1, seed, render=True)
        found = env.reset().observation
        np.testing.assert_array_equal(env.render(), found["image"])
        layouts.append(found["maze_layout"])
        env.close()
    np.testing.assert_array_equal(layouts[0], layouts[1])
    assert (layouts[0] != layouts[2]).any()


def test_it_is_refused_where_nothing_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(headless.VARIABLE, headless.NONE)
    with pytest.raises(UserError, match="Memory Maze must be drawn"):
        registry.make(MemoryMazeEnv(), 1, 0)


def test_names_are_those_of_the_benchmark() -> None:
    assert memory_maze_suite.TASKS[:4] == ("9x9", "11x11", "13x13", "15x15")
    with pytest.raises(UserError, match=r"did you mean 9x9\?"):
        registry.make(MemoryMazeEnv(task="9x"), 1, 0)
