"""Episodes: how they are counted, divided among environments, recorded."""

from typing import Any

import dm_env
import numpy as np
import pytest

from dreamer.config import trust
from dreamer.config.env import GymnasiumEnv
from dreamer.rollout.driver import EpisodeStats
from dreamer.rollout.evaluate import EvaluationResult, Recorder, evaluate
from tests import probe_envs

FIRST, MID, LAST = 0, 1, 2


def time_step(types: list[int], rewards: list[float], **observation: np.ndarray) -> dm_env.TimeStep:
    return dm_env.TimeStep(
        np.array(types, np.int32),
        np.array(rewards, np.float32),
        np.ones(len(types), np.float32),
        observation,
    )


def test_episodes_by_hand() -> None:
    """Environment 0 has episodes of 2 and 1 steps, environment 1 one of 3."""
    steps = [
        ([FIRST, FIRST], [0, 0], []),
        ([MID, MID], [1, -1], []),
        ([LAST, MID], [2, 5], [(0, 3.0, 2)]),
        ([FIRST, LAST], [0, 0.5], [(1, 4.5, 3)]),
        ([LAST, FIRST], [-4, 0], [(0, -4.0, 1)]),
        ([FIRST, MID], [0, 7], []),
    ]
    episodes = EpisodeStats.start(2)
    for types, rewards, ended in steps:
        assert episodes.add(time_step(types, rewards)) == ended
    assert episodes.get_state() == {"returns": [0.0, 7.0], "lengths": [0, 1]}


def test_two_episodes_may_end_together() -> None:
    episodes = EpisodeStats.start(2)
    episodes.add(time_step([FIRST, FIRST], [0, 0]))
    assert episodes.add(time_step([LAST, LAST], [1, 2])) == [(0, 1.0, 1), (1, 2.0, 1)]


def test_running_episodes_are_restored_and_reset() -> None:
    first, second = EpisodeStats.start(2), EpisodeStats.start(2)
    for types in ([FIRST, FIRST], [MID, MID]):
        first.add(time_step(types, [3, 4]))
    second.set_state(first.get_state())
    second.forget(np.array([True, False]))
    assert second.get_state() == {"returns": [0.0, 4.0], "lengths": [0, 1]}
    assert second.add(time_step([LAST, LAST], [1, 1])) == [(0, 1.0, 1), (1, 5.0, 2)]


class Idle:
    """A policy for N environments that always takes action 1, and must be reset first."""

    def __init__(self, num_envs: int) -> None:
        self.num_envs = num_envs
        self.steps: list[int] = []

    def reset(self, key: Any) -> None:
        assert not self.steps

    def __call__(self, params: Any, time_step: dm_env.TimeStep, step: int) -> Any:
        self.steps.append(step)
        return {"action": np.ones(self.num_envs, np.int32)}, {}


def play(
    name: str, num_envs: int, episodes: int, record: bool = False, seed: int = 0
) -> EvaluationResult:
    task = probe_envs.task(name).split("=")[1]
    config = trust.allow(GymnasiumEnv(task=task, image_size=(16, 16)))
    policy: Any = Idle(num_envs)
    result = evaluate(policy, None, config, episodes, seed, record)
    assert result is not None
    assert policy.steps == list(range(len(policy.steps)))
    return result


@pytest.mark.parametrize(
    ("num_envs", "episodes", "lengths"),
    [
        (1, 2, [2, 2]),
        (2, 2, [2, 9]),
        (2, 5, [2, 2, 2, 9, 9]),
        (3, 4, [2, 2, 9, 16]),
        (3, 8, [2, 2, 2, 9, 9, 9, 16, 16]),
    ],
)
def test_short_episodes_are_not_favoured(num_envs: int, episodes: int, lengths: list[int]) -> None:
    """Environments play the same number of episodes, although their lengths differ."""
    result = play("Uneven", num_envs, episodes, seed=probe_envs.SEED)
    assert result.lengths.tolist() == lengths
    assert result.returns.tolist() == lengths
    assert result.frames is None


def test_a_broken_episode_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second environment fails once in its third step, and plays two episodes nevertheless."""
    step, left = probe_envs.Uneven.step, [5]

    def breaking(env: probe_envs.Uneven, action: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            raise RuntimeError("broke")
        return step(env, action)

    monkeypatch.setattr(probe_envs.Uneven, "step", breaking)
    result = play("Uneven", 2, 4, seed=probe_envs.SEED)
    assert result.lengths.tolist() == result.returns.tolist() == [2, 2, 9, 9]
    (restart,) = result.restarts
    assert restart.line.startswith("environment 1 failed in its step with RuntimeError: broke (")


def test_environments_follow_from_the_seed() -> None:
    one, same, other = (play("Walk", 2, 4, seed=seed) for seed in (1, 1, 2))
    assert one.returns.tolist() == same.returns.tolist()
    assert one.returns.tolist() != other.returns.tolist()


def test_the_first_episode_is_recorded_from_its_first_to_its_last_step() -> None:
    result = play("Drawn", 2, 4, record=True)
    assert result.frames is not None
    steps = result.lengths[0]
    assert result.frames.shape == (steps + 1, 20, 30, 3)
    assert result.frames[:, 0, 0, 0].tolist() == list(range(steps + 1))


def test_images_are_recorded_where_nothing_is_rendered() -> None:
    result = play("Picture", 1, 1, record=True)
    assert result.frames is not None
    assert result.frames.shape == (result.lengths[0] + 1, 16, 16, 3)
    assert set(np.unique(result.frames)) == {0, 255}


def test_there_are_no_frames_without_images() -> None:
    assert play("Walk", 1, 1, record=True).frames is None


def test_an_interrupted_evaluation_has_no_result() -> None:
    config = trust.allow(GymnasiumEnv(task=probe_envs.task("Walk").split("=")[1]))
    policy: Any = Idle(2)
    assert evaluate(policy, None, config, 50, 0, interrupted=lambda: len(policy.steps) == 4) is None
    assert policy.steps == [0, 1, 2, 3]


class Screen:
    """Renders a frame that is overwritten by the next."""

    def __init__(self, frame: np.ndarray | None) -> None:
        self.frame = frame

    def render(self) -> np.ndarray | None:
        return None if self.frame is None else self.frame[None]


def test_recorder_keeps_copies_until_environment_0_ends() -> None:
    env: Any = Screen(np.zeros((2, 2, 3), np.uint8))
    recorder = Recorder(env)
    for number, types in enumerate(([FIRST, FIRST], [MID, LAST], [LAST, FIRST], [FIRST, MID])):
        env.frame[:] = number
        recorder.add(time_step(types, [0, 0]))
    assert [int(frame.max()) for frame in recorder.frames] == [0, 1, 2]


@pytest.mark.parametrize("channels", [1, 3, 4, 12])
def test_recorder_shows_three_channels_of_an_observed_image(channels: int) -> None:
    env: Any = Screen(None)
    recorder = Recorder(env)
    image = np.arange(2 * 4 * 5 * channels, dtype=np.uint8).reshape(2, 4, 5, channels)
    recorder.add(time_step([FIRST, FIRST], [0, 0], vector=np.zeros((2, 3)), image=image))
    shown = image[:1, ..., :3] if channels >= 3 else image[:1].repeat(3, -1)
    np.testing.assert_array_equal(recorder.frames, shown)
