import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dreamer.config import trust
from dreamer.config.env import GymnasiumEnv
from dreamer.envs import registry
from dreamer.envs.base import FIRST, LAST, MID, BatchedEnv, episode_seed
from dreamer.envs.check import check
from dreamer.errors import UserError

MODULE = '''
import dm_env
import gymnasium
import numpy as np
from dm_env import specs
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv


class Line(gymnasium.Env):
    """Observes how it was made and how far it came."""

    action_space = spaces.Discrete(2)
    observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float64)
    metadata = {"render_modes": ["rgb_array"]}

    def __init__(self, size=3, seed=0, render_mode=None):
        self.size, self.seed, self.render_mode = size, seed % 1000, render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = 0
        return np.array([self.size, self.seed, self.place], float), {}

    def step(self, action):
        self.place += int(action)
        over = self.place == self.size
        return np.array([self.size, self.seed, self.place], float), 1.0, over, False, {}

    def render(self):
        return np.full((32, 48, 3), 10 * self.place, np.uint8)


class Coin(dm_env.Environment):
    """Shows a number that its seed gives; ends after two steps."""

    def __init__(self, seed=None):
        self.rng = np.random.default_rng(seed)

    def observation_spec(self):
        return {"number": specs.BoundedArray((), np.float64, 0, 1)}

    def action_spec(self):
        return specs.DiscreteArray(2)

    def reset(self):
        self.left = 2
        return dm_env.restart({"number": self.rng.random()})

    def step(self, action):
        self.left -= 1
        seen = {"number": self.rng.random()}
        return dm_env.transition(1.0, seen) if self.left else dm_env.termination(1.0, seen)


def any_coin():
    return Coin()


def lines(num_envs, size=2):
    return SyncVectorEnv([lambda: Line(size)] * num_envs)


def three(num_envs):
    return lines(3)


def none():
    return None


def several():
    return lines(2)


def only(num_envs):
    return Line()


def fails():
    raise ValueError("no map\\nfound")


def missing():
    import not_there_at_all


number = 3
'''


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Modules of the working directory are imported, as `python -m` has it."""
    (tmp_path / "own_module.py").write_text(MODULE)
    (tmp_path / "own_broken.py").write_text("import json\njson.nothing\n")
    (tmp_path / "own_needy.py").write_text("import not_there_at_all\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in ("own_module", "own_broken", "own_needy"):
        __import__("sys").modules.pop(name, None)


def make(name: str, num_envs: int = 2, render: bool = False, **options: object) -> BatchedEnv:
    entry_point = name if ":" in name else f"own_module:{name}"
    config = GymnasiumEnv(entry_point=entry_point, **options)
    return registry.make(trust.allow(config), num_envs, 7, render)


def act(*values: int) -> dict[str, np.ndarray]:
    return {"action": np.array(values, np.int32)}


@pytest.mark.parametrize("workers", ["serial", "process"])
def test_one_environment_is_made_for_each_with_a_seed_of_its_own(workers: str):
    env = make("Line", kwargs={"size": 4}, workers=workers)
    seen = env.reset().observation["observation"]
    seeds = [episode_seed(7, i, 0) % 1000 for i in range(2)]
    assert seen.tolist() == [[4, seeds[0], 0], [4, seeds[1], 0]]
    check(env, 20)
    env.close()


def test_an_argument_that_is_configured_is_kept():
    env = make("Line", kwargs={"seed": 5})
    assert env.reset().observation["observation"][:, 1].tolist() == [5, 5]


def test_configured_wrappers_apply():
    env = make("Line", repeat=2, time_limit=3, kwargs={"size": 9}, pixels=True)
    assert env.observation_spec()["image"].shape == (64, 64, 3)
    env.reset()
    steps = [env.step(act(1, 0)) for _ in range(3)]
    assert steps[0].observation["image"].max((1, 2, 3)).tolist() == [20, 0]
    assert [step.step_type.tolist() for step in steps] == [[MID, MID], [MID, MID], [LAST, LAST]]
    assert steps[2].discount.tolist() == [1, 1]
    rendered = make("Line", render=True)
    rendered.reset()
    assert rendered.render().shape == (2, 32, 48, 3)


def test_a_dm_env_environment_with_a_seed_repeats():
    env = make("Coin")
    check(env, 8)
    assert list(env.observation_spec()) == ["number"]
    assert env.action_spec()["action"].num_values == 2


def test_a_dm_env_environment_without_a_seed_starts_new_episodes():
    env = make("any_coin")
    env.reset()
    assert env.step(act(0, 0)).step_type.tolist() == [MID, MID]
    last = env.step(act(0, 0))
    assert (last.step_type == LAST).all()
    assert (last.discount == 0).all()
    restored, step = env.set_state(env.get_state())
    assert not restored.any()
    assert (step.step_type == FIRST).all()


def test_several_at_once():
    env = make("lines", 3, kwargs={"size": 2})
    assert env.num_envs == 3
    env.reset()
    steps = [env.step(act(1, 1, 0)) for _ in range(3)]
    assert steps[1].step_type.tolist() == [LAST, LAST, MID]
    assert steps[2].step_type.tolist() == [FIRST, FIRST, MID]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("own_module:", {}, "expected module:function, such as my_module:make"),
        ("own_module.make:", {}, "expected module:function"),
        ("own_modul:make", {}, f"there is no module own_modul in {os.sep}"),
        ("own_module.deep:make", {}, "there is no module own_module.deep in"),
        ("own_broken:make", {}, "own_broken cannot be imported: AttributeError: module 'json' has"),
        ("own_needy:make", {}, "needs a package that is not installed; No module named 'not_the"),
        ("lin", {}, "own_module has no function lin; did you mean "),
        ("number", {}, "own_module has no function number"),
        (
            "none",
            {},
            "none makes None, which must be a gymnasium.Env, a gym.*; it may lack its `return`",
        ),
        ("several", {}, "makes several environments; let it take their number as num_envs"),
        ("only", {}, "takes num_envs, so it must make a gymnasium.vector.VectorEnv"),
        ("three", {}, "makes 3 environments instead of 2"),
        ("fails", {}, r"cannot be made: ValueError: no map found \(.*own_module.py, line 81, in f"),
        ("missing", {}, "needs a package that is not installed; No module named 'not_there_at_a"),
        (
            "Line",
            {"kwargs": {"siz": 3}},
            "env.kwargs has siz, but Line takes size, seed, render_mode; did you mean size",
        ),
        ("lines", {"repeat": 2}, "env.repeat is for single environments, but this makes several"),
        ("lines", {"restarts": 2}, "env.restarts is for single environments, but this makes sev"),
        ("Coin", {"pixels": True}, "env.pixels=true needs an environment that renders"),
    ],
)
def test_user_errors_are_reported_in_one_line(name: str, options: dict, message: str):
    with pytest.raises(UserError, match=message) as caught:
        make(name, **options)
    assert str(caught.value).startswith("env.entry_point=own_")
    assert "\n" not in str(caught.value)


def test_arguments_of_an_id():
    config = GymnasiumEnv(task="FrozenLake-v1", kwargs={"map_name": "8x8"})
    assert (
        registry.make(trust.allow(config), 1, 0).observation_spec()["observation"].num_values == 64
    )
    wrong = GymnasiumEnv(task="FrozenLake-v1", kwargs={"map_nam": "8x8"})
    with pytest.raises(UserError, match="env.kwargs has map_nam, but FrozenLakeEnv takes "):
        registry.make(trust.allow(wrong), 1, 0)
