"""MiniGrid: the contract of every environment, cells as classes, missions as words."""

import gymnasium
import numpy as np
import pytest

from dreamer.config.env import MinigridEnv
from dreamer.envs import registry
from dreamer.envs.base import episode_seed
from dreamer.envs.check import check, check_all
from dreamer.errors import UserError
from tests.envs import suites

minigrid_suite = suites.module("minigrid")

VIEWS = ("symbolic", "symbolic_first_person", "rgb", "rgb_first_person")


@pytest.mark.parametrize("view", VIEWS)
def test_keeps_the_contract(view: str) -> None:
    def make(time_limit: int = 12):
        config = MinigridEnv(view=view, image_size=(20, 30), time_limit=time_limit)
        return registry.make(config, 2, 0)

    assert check_all(make, 30).truncated == 4
    spec = make().observation_spec()
    cells = (7, 7) if view == "symbolic_first_person" else (5, 5)
    if view.startswith("rgb"):
        assert spec["image"].shape == (20, 30, 3)
    else:
        assert [spec[name].shape for name in ("object", "colour", "state")] == [cells] * 3


def test_cells_and_mission_are_those_of_minigrid() -> None:
    task = "MiniGrid-Fetch-5x5-N2-v0"
    found = registry.make(MinigridEnv(task=task), 1, 5).reset().observation
    theirs = gymnasium.make(task)
    seen, _ = theirs.reset(seed=episode_seed(5, 0, 0))
    for layer, name in enumerate(("object", "colour", "state")):
        np.testing.assert_array_equal(found[name][0], seen["image"][..., layer])
    assert found["direction"] == seen["direction"]
    words = [minigrid_suite.WORDS[number - 1] for number in found["mission"][0] if number]
    assert " ".join(words) == seen["mission"]


def test_a_mission_that_is_always_the_same_is_left_out() -> None:
    spec = registry.make(MinigridEnv(task="MiniGrid-Empty-5x5-v0"), 1, 0).observation_spec()
    assert set(spec) == {"object", "colour", "state", "direction"}


def test_every_mission_can_be_read(capsys: pytest.CaptureFixture) -> None:
    """Some seeds of a task of every kind, among them those with the longest."""
    for task in minigrid_suite.TASKS:
        if not task.startswith("BabyAI") or "Boss" in task or "Synth" in task:
            env = minigrid_suite.make_env(MinigridEnv(task=task), False)
            for seed in range(2):
                env.reset(seed=seed)
    assert capsys.readouterr().out == "", "BabyAI prints every level that it discards"


def test_words_that_are_not_known_and_too_many_are_refused() -> None:
    with pytest.raises(UserError, match="mission 'sing a song' cannot be read"):
        minigrid_suite.read("sing a song", 16)
    with pytest.raises(UserError, match="at most 2 words"):
        minigrid_suite.read("go to you", 2)


def test_babyai_keeps_the_contract() -> None:
    check(registry.make(MinigridEnv(task="BabyAI-GoToObj-v0"), 2, 0), 20)


def test_an_unknown_task_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"did you mean MiniGrid-Empty-5x5-v0\?"):
        registry.make(MinigridEnv(task="MiniGrid-Empty-5x5"), 1, 0)
