from typing import Any

import dm_env
import numpy as np
import pytest
from dm_env import specs

from dreamer.envs.base import FIRST, LAST, MID, Restart
from dreamer.envs.check import CheckError, Endings, check, check_all


class Fake:
    """Two environments with episodes of two steps; `wrong` maps a time step to a broken one."""

    num_envs = 2
    restarts: tuple = ()

    def __init__(self, wrong: Any = None, low: float = -1.0) -> None:
        self._wrong = wrong or (lambda step, time: step)
        self._low = low
        self._time = 0
        self.buffer = np.zeros((2, 3), np.float32)

    def observation_spec(self) -> dict:
        return {"x": specs.BoundedArray((3,), np.float32, 0, 9)}

    def action_spec(self) -> dict:
        return {"action": specs.BoundedArray((1,), np.float32, self._low, 1)}

    def reset(self) -> dm_env.TimeStep:
        self._time = 0
        return self._now()

    def step(self, action: Any) -> dm_env.TimeStep:
        assert set(action) == {"action"}
        self._time += 1
        return self._now()

    def _now(self) -> dm_env.TimeStep:
        kind = (FIRST, MID, LAST)[self._time % 3]
        step = dm_env.TimeStep(
            np.full(2, kind, np.int32),
            np.full(2, kind != FIRST, np.float32),
            np.full(2, kind != LAST, np.float32),
            {"x": np.full((2, 3), self._time % 3, np.float32)},
        )
        return self._wrong(step, self._time)

    def get_state(self) -> dict:
        return {"time": self._time}

    def set_state(self, state: Any) -> tuple[np.ndarray, dm_env.TimeStep]:
        self._time = state["time"]
        return np.ones(2, bool), self._now()

    def render(self) -> None:
        return None

    def close(self) -> None:
        pass


def at(time: int, **changes: Any) -> Any:
    return lambda step, now: step._replace(**changes) if now == time else step


FLOATS = np.zeros((2, 3), np.float32)


def test_a_correct_environment_passes():
    assert check(Fake(), 10) == Endings(terminated=6, truncated=0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (at(0, step_type=np.full(2, MID, np.int32)), "reset must give FIRST"),
        (
            at(4, step_type=np.full(2, FIRST, np.int32), reward=np.zeros(2, np.float32)),
            "only LAST",
        ),
        (at(3, step_type=np.full(2, MID, np.int32)), "FIRST must follow LAST"),
        (at(4, step_type=np.full(2, 7, np.int32)), "unknown step_type"),
        (at(4, step_type=np.full(2, MID, np.int64)), "step_type is int64"),
        (at(4, reward=np.zeros(2)), "reward is float64"),
        (at(4, reward=np.zeros((2, 1), np.float32)), "reward is"),
        (at(4, reward=np.full(2, np.nan, np.float32)), "reward is not finite"),
        (at(3, reward=np.ones(2, np.float32)), "reward must be 0 at FIRST"),
        (at(3, discount=np.zeros(2, np.float32)), "discount must be 1 at FIRST"),
        (at(4, discount=np.full(2, 0.9, np.float32)), "discount must be 0 or 1"),
        (at(4, observation={"y": FLOATS}), "has keys"),
        (at(4, observation={"x": FLOATS[:, :2]}), "must be float32"),
        (at(4, observation={"x": FLOATS.astype(float)}), "must be float32"),
        (at(4, observation={"x": FLOATS + np.nan}), "not finite"),
        (at(4, observation={"x": FLOATS + 10}), "outside its spec"),
    ],
)
def test_a_broken_time_step_is_named(wrong: Any, message: str):
    with pytest.raises(CheckError, match=message):
        check(Fake(wrong), 10)


def test_unscaled_actions_are_named():
    with pytest.raises(CheckError, match=r"must be in \[-1, 1\]"):
        check(Fake(low=-2.0), 10)


def test_reused_buffers_are_named():
    buffer = np.zeros((2, 3), np.float32)

    def reuse(step: dm_env.TimeStep, time: int) -> dm_env.TimeStep:
        buffer[:] = step.observation["x"]
        return step._replace(observation={"x": buffer})

    with pytest.raises(CheckError, match="overwritten"):
        check(Fake(reuse), 10)


def test_one_that_fails_is_refused_although_it_is_restarted():
    class Restarted(Fake):
        def __init__(self, fails_at: int) -> None:
            super().__init__()
            self._fails_at = fails_at

        @property
        def restarts(self) -> tuple:
            restart = Restart(1, "environment 1 broke; restarted, 1 of env.restarts=10", True)
            return (restart,) if self._time >= self._fails_at else ()

    for where, *made in (
        ("reset", Restarted(0)),
        ("step 2", Restarted(3)),
        ("step 3 of another environment", Fake(), Restarted(3)),
        ("with a time limit of 5 steps", Fake(), Fake(), Restarted(0)),
    ):
        with pytest.raises(CheckError, match=f"^{where}: environment 1 broke; an environment must"):
            check_all(lambda made=made, **_: made.pop(0), 20)


def test_unrepeatable_environments_are_named():
    class Forgetful(Fake):
        def set_state(self, state: Any) -> tuple[np.ndarray, dm_env.TimeStep]:
            return np.array([True, False]), super().set_state(state)[1]

    class Untrue(Fake):
        def set_state(self, state: Any) -> tuple[np.ndarray, dm_env.TimeStep]:
            restored, step = super().set_state(state)
            return restored, step._replace(reward=step.reward + 1)

    class Elsewhere(Fake):
        def set_state(self, state: Any) -> tuple[np.ndarray, dm_env.TimeStep]:
            result = super().set_state(state)
            self._time += 1
            return result

    with pytest.raises(CheckError, match="another observation"):
        check(Forgetful(), 10)
    with pytest.raises(CheckError, match="did not give the saved time step"):
        check(Untrue(), 10)
    with pytest.raises(CheckError, match="step after set_state differs"):
        check(Elsewhere(), 10)


class Long(Fake):
    """Two environments that count up to an end at step 7, or at the limit before that.

    `drift` is added to the observations of the second instance, `limited` is how a limit ends
    an episode, or whether it does.
    """

    made = 0

    def __init__(self, drift: float = 0, limited: Any = 1, time_limit: int = 0) -> None:
        super().__init__()
        self._end, self._limited = time_limit or 7, limited if time_limit else 0
        self._drift = drift if Long.made == 1 else 0
        Long.made += 1

    def reset(self) -> dm_env.TimeStep:
        self._time = 0
        return self._now()

    def _now(self) -> dm_env.TimeStep:
        time = self._time % (self._end + 1)
        kind = FIRST if time == 0 else LAST if time == self._end else MID
        kind = MID if self._limited is None and kind == LAST else kind
        return dm_env.TimeStep(
            np.full(2, kind, np.int32),
            np.full(2, kind != FIRST, np.float32),
            np.full(2, self._limited if kind == LAST else 1, np.float32),
            {"x": np.full((2, 3), time + self._drift, np.float32)},
        )


def make_long(**options: Any) -> Any:
    Long.made = 0
    return lambda **changes: Long(**options, **changes)


def test_environments_of_equal_behaviour_pass():
    assert check_all(make_long(), 20) == Endings(4, 0, repeats=True, limited=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"drift": 1.0}, "observation 'x' of step 0 differs between two environments of one seed"),
        ({"limited": 0}, r"limit of 5 steps, environment 0: the discount .* no termination, got 0"),
        ({"limited": None}, "with a time limit of 5 steps, environment 0: the episode continues"),
    ],
)
def test_differences_between_environments_of_one_seed_are_named(options: dict, message: str):
    with pytest.raises(CheckError, match=message):
        check_all(make_long(**options), 20)


class Masked(Fake):
    """A discrete action of three classes and a mask of it."""

    def __init__(self, mask: Any, length: int = 3) -> None:
        super().__init__()
        self._mask, self._length = mask, length
        self.done: set[int] = set()

    def observation_spec(self) -> dict:
        mask = specs.BoundedArray((self._length,), bool, False, True)
        return super().observation_spec() | {"action_mask": mask}

    def action_spec(self) -> dict:
        return {"action": specs.DiscreteArray(3)}

    def step(self, action: Any) -> dm_env.TimeStep:
        self.done |= set(action["action"].tolist())
        return super().step(action)

    def _now(self) -> dm_env.TimeStep:
        step = super()._now()
        mask = np.tile(np.array(self._mask, bool), (2, 1))
        return step._replace(observation=step.observation | {"action_mask": mask})


def test_only_valid_actions_are_taken():
    env = Masked([True, False, True])
    check(env, 30)
    assert env.done == {0, 2}


def test_masks_of_the_wrong_length_and_masks_of_everything_are_named():
    with pytest.raises(CheckError, match=r"'action_mask' of booleans \(4,\) .* action_mask \(3,\)"):
        check(Masked([True] * 4, length=4), 10)
    with pytest.raises(
        CheckError, match="reset, environment 0: observation 'action_mask' allows no"
    ):
        check(Masked([False] * 3), 10)


def test_the_environment_that_is_wrong_is_named():
    values = np.stack([FLOATS[0], FLOATS[0] + 12])
    with pytest.raises(CheckError) as error:
        check(Fake(at(4, observation={"x": values})), 10)
    assert "step 3, environment 1: observation 'x'" in str(error.value)
    assert "[0.0, 12.0], outside its spec, expected [0.0, 9.0]" in str(error.value)
