import dm_env
import gymnasium
import numpy as np
import pytest
from dm_env import specs
from gymnasium import spaces

from dreamer.config.env import EnvBase
from dreamer.envs import check
from dreamer.envs.dm_adapter import FromDMEnv, to_space
from dreamer.envs.vector import VectorEnv
from dreamer.errors import UserError


class Walk(dm_env.Environment):
    """Starts at a drawn place; ends as a terminal state beyond 3, and as a truncation at step 6."""

    def __init__(self, seed: int) -> None:
        self.closed = False
        self.seed(seed)

    def seed(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def observation_spec(self) -> dict[str, specs.Array]:
        return {
            "place": specs.Array((), np.float64),
            "inner": {"kind": specs.DiscreteArray(3, np.int64)},
        }

    def action_spec(self) -> specs.BoundedArray:
        return specs.BoundedArray((1,), np.float64, -2.0, 2.0)

    def reset(self) -> dm_env.TimeStep:
        self._place, self._steps = self._rng.normal(), 0
        return dm_env.restart(self._observe())

    def step(self, action: np.ndarray) -> dm_env.TimeStep:
        self._place += float(action[0])
        self._steps += 1
        if self._place > 3:
            return dm_env.termination(1.0, self._observe())
        if self._steps == 6:
            return dm_env.truncation(0.5, self._observe())
        return dm_env.transition(-0.5, self._observe())

    def _observe(self) -> dict:
        return {"place": np.float64(self._place), "inner": {"kind": np.int64(self._steps % 3)}}

    def close(self) -> None:
        self.closed = True


def reseed(env: Walk, seed: int) -> None:
    env.seed(seed)


@pytest.mark.parametrize("how", [None, reseed])
def test_an_environment_passes_the_check_and_trains_like_any_other(how) -> None:
    env = VectorEnv(lambda: FromDMEnv(Walk, how), EnvBase(task="walk"), 2, 0, False)
    check.check(env, steps=60)
    assert env.observation_spec().keys() == {"place", "inner_kind"}
    env.close()


def test_ends_are_terminal_or_truncated_by_their_discount() -> None:
    env = FromDMEnv(Walk)
    env.reset(seed=3)
    ends = []
    for push in (2.0, -0.1):
        env.reset(seed=3)
        for _ in range(6):
            _, reward, terminated, truncated, _ = env.step(np.array([push]))
            if terminated or truncated:
                ends.append((reward, terminated, truncated))
                break
    assert ends == [(1.0, True, False), (0.5, False, True)]


def test_a_seed_determines_the_episode_and_closes_the_old_environment() -> None:
    env = FromDMEnv(Walk)
    first, _ = env.reset(seed=5)
    old = env._env
    again, _ = env.reset(seed=5)
    other, _ = env.reset(seed=6)
    assert old.closed
    assert first["place"] == again["place"] != other["place"]


def test_spaces_of_every_kind_of_spec() -> None:
    spec = {
        "free": specs.Array((2,), np.float32),
        "whole": specs.Array((), np.int32),
        "flag": specs.Array((), bool),
        "unit": specs.BoundedArray((2,), np.float32, [-1, 0], 1),
        "parts": [specs.DiscreteArray(4)],
    }
    space = to_space(spec, "observation")
    assert isinstance(space, spaces.Dict)
    assert space["free"] == spaces.Box(-np.inf, np.inf, (2,), np.float32)
    assert (space["whole"].low, space["whole"].high) == (-(2**31), 2**31 - 1)
    assert (space["flag"].low, space["flag"].high) == (False, True)
    np.testing.assert_array_equal(space["unit"].low, [-1, 0])
    assert space["parts"] == spaces.Tuple([spaces.Discrete(4)])
    with pytest.raises(UserError, match="observation name has the spec"):
        to_space({"name": specs.StringArray(())}, "observation")


def test_there_is_no_render_mode_without_render() -> None:
    assert FromDMEnv(Walk).render_mode is None
    drawn = FromDMEnv(Walk, render=lambda env, observation: np.zeros((2, 2, 3), np.uint8))
    assert drawn.render().shape == (2, 2, 3)
    assert isinstance(drawn, gymnasium.Env)
