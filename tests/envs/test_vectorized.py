from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from dreamer.datasets.recorded import spaces_of
from dreamer.envs.base import FIRST, LAST, MID
from dreamer.envs.vectorized import Vectorized
from dreamer.errors import EnvironmentFault, UserError
from tests.envs.probe_envs import Counter, Faulty, Hinting

MODES = list(AutoresetMode)


class Count(Counter):
    """Ends at the step of its number; counts the episodes and shows them in a Dict."""

    observation_space = spaces.Dict(
        {"x": Counter.observation_space, "episode": spaces.Discrete(99)}
    )

    def __init__(self, terminate: int) -> None:
        super().__init__(terminate=terminate)
        self.resets = -1

    def _seen(self, seen: Any) -> dict[str, Any]:
        return {"x": seen.copy(), "episode": self.resets}

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.resets += 1
        return self._seen(super().reset(seed=seed)[0]), {}

    def step(self, action: Any) -> Any:
        seen, *others = super().step(action)
        return self._seen(seen), *others


def make(*members: Any, mode: Any = AutoresetMode.NEXT_STEP, seed: int = 0) -> Vectorized:
    vector = SyncVectorEnv([lambda env=env: env for env in members], autoreset_mode=mode)
    return Vectorized(vector, len(members), seed, render=False)


def act(*values: int) -> dict[str, np.ndarray]:
    return {"action": np.array(values, np.int32)}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_gives_the_last_observation_and_then_the_first(mode: AutoresetMode):
    """One member ends at step 2, the other at step 3; every observation is returned."""
    env = make(Count(2), Count(3), mode=mode)
    steps = [env.reset(), *(env.step(act(4, 4)) for _ in range(9))]
    kinds = np.stack([step.step_type for step in steps], 1)
    assert kinds.tolist() == [
        [FIRST, MID, LAST, FIRST, MID, LAST, FIRST, MID, LAST, FIRST],
        [FIRST, MID, MID, LAST, FIRST, MID, MID, LAST, FIRST, MID],
    ]
    x = np.stack([step.observation["x"] for step in steps], 1)
    numbers = np.array([[0, 1, 2] * 3 + [0], [0, 1, 2, 3] * 2 + [0, 1]])
    np.testing.assert_array_equal(x[..., 0], numbers)
    np.testing.assert_array_equal(x[..., 1], 2 * numbers)
    rewards = np.stack([step.reward for step in steps], 1)
    np.testing.assert_array_equal(rewards, np.where(kinds == FIRST, 0, 2))
    discounts = np.stack([step.discount for step in steps], 1)
    np.testing.assert_array_equal(discounts, kinds != LAST)
    episodes = np.stack([step.observation["episode"] for step in steps], 1)
    assert (np.diff(episodes)[kinds[:, 1:] != FIRST] == 0).all()
    assert (np.diff(episodes)[kinds[:, 1:] == FIRST] > 0).all()


@pytest.mark.parametrize("mode", MODES)
def test_episodes_of_one_step(mode: AutoresetMode):
    env = make(Count(1), Count(1), mode=mode)
    env.reset()
    steps = [env.step(act(4, 4)) for _ in range(4)]
    assert [step.step_type.tolist() for step in steps] == [[LAST] * 2, [FIRST] * 2] * 2
    assert [step.observation["x"][0, 0] for step in steps] == [1, 0, 1, 0]
    assert [step.reward.tolist() for step in steps] == [[2, 2], [0, 0]] * 2


@pytest.mark.parametrize("mode", MODES)
def test_a_restored_state_starts_new_episodes(mode: AutoresetMode):
    env = make(Counter(), Counter(), mode=mode)
    first = env.reset().observation["observation"]
    env.step(act(4, 4))
    restored, step = env.set_state(env.get_state())
    assert restored.tolist() == [False, False]
    assert step.step_type.tolist() == [FIRST, FIRST]
    assert (step.observation["observation"][:, 2] != first[:, 2]).all()
    other = make(Counter(), Counter(), mode=mode)
    again = other.set_state(make_state := env.get_state())[1]
    assert make_state["episodes"][0]["episode"] == 1
    assert (again.observation["observation"] != step.observation["observation"])[:, 2].all()
    with pytest.raises(ValueError, match="2 environments given to 1"):
        make(Counter()).set_state(make_state)


def test_seeds_differ_and_repeat():
    numbers = [make(Counter(), seed=s).reset().observation["observation"][0, 2] for s in (0, 0, 1)]
    assert numbers[0] == numbers[1] != numbers[2]


def test_masks_in_the_observation():
    members = [Hinting(spaces.Discrete(3), [1, 0, 1], inside=True) for _ in range(2)]
    for member in members:
        member.observation_space["action_mask"] = spaces.MultiBinary(3)
        member.mask = np.array([1, 0, 1], np.int8)
    env = make(*members)
    assert env.observation_spec()["action_mask"].dtype == np.bool_
    seen = env.reset().observation["action_mask"]
    assert seen.tolist() == [[True, False, True]] * 2
    members[1].mask = np.array([1, 0, 2], np.int8)
    with pytest.raises(EnvironmentFault, match="environment 1 gave action_mask .*expected|value 2"):
        env.step(act(0, 0))


def test_masks_that_allow_nothing_are_refused():
    members = [Hinting(spaces.Discrete(2), np.array([1, 0], np.int8), inside=True) for _ in "ab"]
    for member in members:
        member.observation_space["action_mask"] = spaces.MultiBinary(2)
    env = make(*members)
    env.reset()
    members[1].mask = np.zeros(2, np.int8)
    with pytest.raises(EnvironmentFault, match="^environment 1 gave action_mask that allows no"):
        env.step(act(0, 0))
    with pytest.raises(EnvironmentFault, match="^environment 1 gave action_mask that allows no"):
        env.reset()


def test_masks_in_info_are_refused():
    env = make(Hinting(spaces.Discrete(3), np.ones(3), inside=False))
    with pytest.raises(EnvironmentFault, match="gave action_mask in info; .* put it there"):
        env.reset()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("raise", "^the environments failed in their step with RuntimeError: simulator broke "),
        ("exit", "^the environments failed in their step with SystemExit: 3 "),
        ("nan", "^environment 1 gave NaN or infinity as observation"),
    ],
)
def test_faults(how: str, message: str):
    class Wrong(Faulty):
        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            seen, info = super().reset(seed=seed)
            self._broken = self is members[1]
            return seen, info

        def step(self, action: Any) -> Any:
            if how == "nan" and self._broken and self._state[0] == 1:
                return np.full(3, np.nan), 0.0, False, False, {}
            return super().step(action)

    members = [Wrong(how), Wrong(how)]
    env = make(*members)
    env.reset()
    env.step(act(0, 0))
    with pytest.raises(EnvironmentFault, match=message):
        env.step(act(0, 0))
    restored, step = make(Counter(), Counter()).set_state(env.get_state())
    assert not restored.any()


def test_a_wrong_last_observation_of_the_same_step_is_found():
    class Ends(Counter):
        def step(self, action: Any) -> Any:
            return np.full(3, np.inf), 0.0, True, False, {}

    env = make(Ends(), mode=AutoresetMode.SAME_STEP)
    env.reset()
    with pytest.raises(EnvironmentFault, match="environment 0 gave NaN or infinity as observation"):
        env.step(act(0))


class Own(gymnasium.vector.VectorEnv):
    """Two counters that do not follow their mode."""

    num_envs = 2
    single_observation_space = spaces.Box(0, 99, (1,))
    single_action_space = spaces.Discrete(2)
    observation_space = spaces.Box(0, 99, (2, 1))
    action_space = spaces.MultiDiscrete([2, 2])

    def __init__(self, mode: Any, rewards: Any = (1, 1)) -> None:
        self.metadata = {"autoreset_mode": mode}
        self.rewards = rewards

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        self.count = np.array([[0], [5]], np.float32)
        return self.count.copy(), {}

    def step(self, actions: Any) -> Any:
        self.count += 1
        over = self.count[:, 0] == 2
        return self.count.copy(), self.rewards, over, np.zeros(2, bool), {}


def test_a_reset_of_all_members_is_an_error():
    env = Vectorized(Own(AutoresetMode.DISABLED), 2, 0, False)
    env.reset()
    env.step(act(0, 0))
    env.step(act(0, 0))
    with pytest.raises(EnvironmentFault, match="were all reset although reset_mask named some"):
        env.step(act(0, 0))


def test_a_missing_final_observation_is_an_error():
    env = Vectorized(Own("SameStep"), 2, 0, False)
    env.reset()
    env.step(act(0, 0))
    with pytest.raises(EnvironmentFault, match="gave no final_obs in the info of a step that"):
        env.step(act(0, 0))


@pytest.mark.parametrize("mode", [None, "sometimes"])
def test_an_unknown_mode_is_refused(mode: Any):
    with pytest.raises(UserError, match=f"autoreset_mode={mode}; expected one of AutoresetMode.NE"):
        Vectorized(Own(mode), 2, 0, False)


def test_rewards_of_another_shape_are_refused():
    env = Vectorized(Own(AutoresetMode.NEXT_STEP, np.ones((2, 1))), 2, 0, False)
    env.reset()
    with pytest.raises(
        EnvironmentFault, match=r"rewards of shape \(2, 1\) and type float64, expected 2 numbers"
    ):
        env.step(act(0, 0))


def test_actions_are_known_in_their_own_units():
    assert spaces_of(make(Count(1), Count(1)), "Count").native == Counter.action_space
