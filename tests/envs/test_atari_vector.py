"""The suite `atari` over ale_py's vector environment, against a plain loop over the emulator."""

from typing import Any

import numpy as np
import pytest
from ale_py import ALEInterface, LoggerMode, roms

from dreamer.config.env import AtariEnv
from dreamer.envs import registry
from dreamer.envs.base import FIRST, LAST, MID, episode_seed, random_action
from dreamer.envs.check import check
from dreamer.errors import UserError


def make(num_envs: int = 1, seed: int = 0, **options: Any) -> Any:
    return registry.make(AtariEnv(backend="vector", **options), num_envs, seed)


def act(env: Any, *actions: int) -> Any:
    return env.step({"action": np.array(actions, np.int32)})


@pytest.mark.parametrize(
    "options",
    [
        {"task": "breakout", "time_limit": 9},
        {"task": "breakout", "time_limit": 9, "workers": "serial", "lives": "reset"},
        {"gray": False, "actions": "needed", "image_size": (64, 80), "sticky": 0.0},
    ],
)
def test_the_contract_holds(options: dict):
    env = make(3, **options)
    check(env, 21)
    env.close()
    env.close()


def plain_episode(config: AtariEnv, emulated_seed: int, noops: int, actions: list[int]) -> list:
    """The emulator alone: (raw screen, reward, over, lives) after every step."""
    ALEInterface.setLoggerMode(LoggerMode.Error)
    ale = ALEInterface()
    ale.setFloat("repeat_action_probability", config.sticky)
    ale.setInt("random_seed", emulated_seed)
    ale.loadROM(roms.get_rom_path(config.task))
    ale.reset_game()
    for _ in range(noops):
        ale.act(0)
    found = [(ale.getScreenRGB(), 0.0, False, ale.lives())]
    for action in actions:
        reward = 0.0
        for _ in range(config.repeat):
            reward += ale.act(ale.getLegalActionSet()[action])
            if ale.game_over():
                break
        found.append((ale.getScreenRGB(), reward, ale.game_over(), ale.lives()))
    return found


@pytest.mark.parametrize("sticky", [0.0, 0.25])
def test_games_are_those_of_the_emulator(sticky: float):
    """Without resizing and pooling even the pictures are the same, but for the last."""
    options = {"sticky": sticky, "noops": 0, "pooling": 1, "gray": False, "image_size": (210, 160)}
    config = AtariEnv(task="breakout", **options)
    env = make(2, 5, task="breakout", **options)
    actions = np.random.default_rng(0).integers(0, 18, (500, 2))
    expected = [
        plain_episode(config, episode_seed(5, index, 0), 0, actions[:, index]) for index in (0, 1)
    ]
    found, over = [env.reset(), *(act(env, *row) for row in actions)], [False, False]
    for number, step in enumerate(found):
        for i, (image, reward, ends, _) in enumerate(one[number] for one in expected):
            if over[i]:
                continue
            assert step.reward[i] == reward
            assert (step.step_type[i] == LAST) == ends
            if not ends:
                np.testing.assert_array_equal(step.observation["image"][i], image)
            over[i] = ends
    assert all(over), "this test is meant to reach the end of both games"


def test_noops_are_uniform_from_none_to_the_most():
    env = make(12, noops=2)
    frames = env._vector.reset(seed=np.arange(12))[1]["episode_frame_number"]
    assert set(frames.tolist()) == {0, 1, 2}


def test_episodes_differ_and_repeat_with_the_seed():
    """The second episode too, which ale_py itself would seed at random."""
    runs = []
    for seed in (1, 1, 2):
        env = make(2, seed, task="breakout", actions="needed", time_limit=20)
        steps = [env.reset(), *(act(env, 1, 1) for _ in range(41))]
        assert [int(step.step_type[0]) for step in steps[19:23]] == [MID, LAST, FIRST, MID]
        runs.append(np.stack([step.observation["image"] for step in steps]))
    np.testing.assert_array_equal(runs[0], runs[1])
    first, second = runs[0][:21], runs[0][21:]
    assert not np.array_equal(first[:, 0], first[:, 1])
    assert not np.array_equal(first, second)
    assert not np.array_equal(runs[0], runs[2])
    env = make(2, 1, task="breakout", actions="needed", time_limit=20)
    env.reset()
    again = [env.reset(), *(act(env, 1, 1) for _ in range(20))]
    np.testing.assert_array_equal(second, [step.observation["image"] for step in again])


@pytest.mark.parametrize(("repeat", "pooling"), [(4, 2), (3, 2), (1, 1)])
def test_time_limit_is_a_truncation(repeat: int, pooling: int):
    env = make(time_limit=3, repeat=repeat, pooling=pooling)
    env.reset()
    steps = [act(env, 0) for _ in range(4)]
    assert [int(step.step_type[0]) for step in steps] == [MID, MID, LAST, FIRST]
    assert [float(step.discount[0]) for step in steps] == [1, 1, 1, 1]


@pytest.mark.parametrize("lives", ["unused", "discount", "reset"])
def test_losing_a_life(lives: str):
    """In Breakout, shooting the ball and standing still loses a life after each serve."""
    env = make(task="breakout", actions="needed", lives=lives, sticky=0.0, noops=0)
    env.reset()
    assert env._lives.tolist() == [5]
    for _ in range(200):
        step = act(env, 1)
        if env._lives < 5:
            break
    assert env._lives.tolist() == [4]
    expected = {"unused": (MID, 1), "discount": (MID, 0), "reset": (LAST, 0)}[lives]
    assert (step.step_type[0], step.discount[0]) == expected
    following = act(env, 1)
    assert following.step_type[0] == (FIRST if lives == "reset" else MID)
    assert following.discount[0] == 1, "only the step that lost the life is terminal"
    assert env._lives.tolist() == [5 if lives == "reset" else 4]


def test_rewards_may_be_clipped():
    totals = {}
    for clip in (False, True):
        env = make(task="ms_pacman", clip_reward=clip, sticky=0.0, noops=0)
        env.reset()
        totals[clip] = np.array([act(env, 4).reward[0] for _ in range(100)])
    assert totals[False].max() >= 10
    np.testing.assert_array_equal(totals[True], np.sign(totals[False]))


def test_pictures_are_nearly_those_of_the_default():
    options = {"task": "pong", "sticky": 0.0, "noops": 0, "image_size": (64, 64), "gray": False}
    ours, theirs = registry.make(AtariEnv(**options), 1, 0), make(1, 0, **options)
    ours.reset(), theirs.reset()
    for number in range(60):
        image, other = (
            act(env, number % 6).observation["image"].astype(int) for env in (ours, theirs)
        )
        assert np.abs(image - other).mean() < 4


def test_environments_at_different_places_are_restored():
    """One is at an end, one in its second episode, one in its first, which a fourth loses."""
    options = {"task": "breakout", "actions": "needed", "lives": "reset"}
    env, rng = make(4, 3, **options), np.random.default_rng(0)
    time_step = env.reset()
    while not (time_step.step_type == LAST).any() or (env._episode == 0).all():
        time_step = env.step(random_action(env.action_spec(), 4, rng))
    state = env.get_state()
    lengths = {len(one["actions"]) for one in state["episodes"]}
    assert len(lengths) > 1
    lost = int(np.argmin(env._episode))
    state["episodes"][lost]["digest"] = "another"
    other = make(4, 3, **options)
    restored, again = other.set_state(state)
    assert restored.tolist() == [i != lost for i in range(4)]
    for field in range(3):
        np.testing.assert_array_equal(again[field][restored], time_step[field][restored])
    expected = time_step.observation["image"][restored]
    np.testing.assert_array_equal(again.observation["image"][restored], expected)
    assert again.step_type[lost] == FIRST
    assert other._episode[lost] == env._episode[lost] + 1
    for _ in range(20):
        action = random_action(env.action_spec(), 4, rng)
        left, right = env.step(action), other.step(action)
        for name in ("step_type", "reward", "discount"):
            np.testing.assert_array_equal(
                getattr(left, name)[restored], getattr(right, name)[restored]
            )
        np.testing.assert_array_equal(
            left.observation["image"][restored], right.observation["image"][restored]
        )


@pytest.mark.parametrize("backends", [("emulator", "vector"), ("vector", "emulator")])
def test_a_state_of_the_other_backend_starts_new_episodes(backends: tuple[str, str]):
    env, other = (registry.make(AtariEnv(backend=backend), 1, 0) for backend in backends)
    env.reset()
    act(env, 1)
    restored, time_step = other.set_state(env.get_state())
    assert (restored.tolist(), time_step.step_type.tolist()) == ([False], [FIRST])


def test_a_state_of_another_number_is_refused():
    env = make(2)
    env.reset()
    with pytest.raises(ValueError, match="state of 2 environments given to 1"):
        make(1).set_state(env.get_state())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooling": 3}, r"env.pooling=3: .* at most 2 of the 4 raw frames .* set env.pooling=2"),
        ({"repeat": 1}, r"env.pooling=2: .* at most 1 of the 1 raw frames .* or env.backend=emul"),
        ({"workers": "process"}, r"env.workers=process: .* leave out env.workers, or set env.back"),
        ({"timeout": 9}, r"env.timeout=9: .* leave out env.timeout, or set env.backend=emulator"),
    ],
)
def test_unsupported_options_are_refused(options: dict, message: str):
    with pytest.raises(UserError, match=message):
        make(**options)
