from typing import Any

import numpy as np
import pytest
from ale_py import ALEInterface, LoggerMode, roms
from PIL import Image

from dreamer.config.env import AtariEnv
from dreamer.envs import atari, registry
from dreamer.envs.base import LAST, MID, episode_seed
from dreamer.envs.check import check
from dreamer.errors import UserError
from tests.envs.probe_envs import played


def plain_episode(config: AtariEnv, seed: int, choose: Any, limit: int) -> list[tuple]:
    """An independent loop over the emulator: (image, reward, over, frames) of every step.

    It keeps every raw frame of a step and pools afterwards, unlike the code it tests.
    """
    ALEInterface.setLoggerMode(LoggerMode.Error)
    rng = np.random.default_rng(episode_seed(seed, 0, 0))
    ale = ALEInterface()
    ale.setInt("random_seed", int(rng.integers(2**31)))
    ale.setFloat("repeat_action_probability", config.sticky)
    ale.loadROM(roms.get_rom_path(config.task))
    ale.reset_game()
    legal = ale.getLegalActionSet() if config.actions == "all" else ale.getMinimalActionSet()
    for _ in range(int(rng.integers(0, config.noops, endpoint=True))):
        ale.act(0)
    shown = [ale.getScreenRGB()] * config.pooling
    steps = [(observe(config, shown), 0.0, False, 0)]
    while not steps[-1][2] and len(steps) <= limit:
        reward, frames = 0, []
        action = legal[choose(len(steps) - 1)]
        while len(frames) < config.repeat and not ale.game_over():
            reward += ale.act(action)
            frames.append(ale.getScreenRGB())
        shown = (shown + frames[config.repeat - config.pooling :])[-config.pooling :]
        steps.append((observe(config, shown), float(reward), ale.game_over(), len(frames)))
    return steps


def observe(config: AtariEnv, frames: list[np.ndarray]) -> np.ndarray:
    height, width = config.image_size
    pooled = np.stack(frames).max(0)
    image = np.asarray(Image.fromarray(pooled).resize((width, height), Image.BILINEAR))
    if not config.gray:
        return image
    gray = (image * np.array([0.299, 0.587, 1 - (0.299 + 0.587)])).sum(-1)
    return np.trunc(gray).astype(np.uint8)[..., None]


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({}, 120),
        ({"sticky": 0.0, "gray": False, "actions": "needed", "image_size": (64, 64)}, 120),
        ({"task": "breakout", "actions": "needed", "image_size": (40, 48)}, 400),  # to its end
        ({"task": "ms_pacman", "repeat": 3, "pooling": 3, "noops": 5}, 60),
        ({"task": "seaquest", "repeat": 2, "pooling": 1, "noops": 0}, 60),
    ],
    ids=lambda value: value.get("task", "pong") if isinstance(value, dict) else "",
)
def test_every_frame_equals_a_plain_emulator_loop(options: dict, steps: int):
    config = AtariEnv(**options)
    env = registry.make(config, 1, seed=3)
    classes = env.action_spec()["action"].num_values
    actions = np.random.default_rng(0).integers(0, classes, steps)
    expected = plain_episode(config, 3, lambda i: actions[i], steps)
    found = [env.reset(), *(env.step({"action": actions[[i]]}) for i in range(len(expected) - 1))]
    for number, (step, (image, reward, over, _)) in enumerate(zip(found, expected, strict=True)):
        np.testing.assert_array_equal(step.observation["image"][0], image, err_msg=f"step {number}")
        assert step.reward[0] == reward
        assert (step.step_type[0] == LAST) == over
        assert step.discount[0] == 1 - over
    assert config.task != "breakout" or over, "this case is meant to reach the end of a game"
    assert len({step.observation["image"].tobytes() for step in found}) > steps / 10


@pytest.mark.parametrize("game_seed", range(6))
def test_the_last_image_of_a_game(game_seed: int):
    """Games end inside a repeat, at any of its raw frames; it shows the newest captured."""
    config = AtariEnv(task="breakout", actions="needed", noops=game_seed, sticky=0.0)
    actions = np.random.default_rng(game_seed).integers(0, 4, 400)
    expected = plain_episode(config, 0, lambda i: actions[i], 400)
    env = registry.make(config, 1, 0)
    env.reset()
    for i in range(len(expected) - 1):
        step = env.step({"action": actions[[i]]})
    assert step.step_type[0] == LAST
    np.testing.assert_array_equal(step.observation["image"][0], expected[-1][0])


def test_grays_stay_the_same_value():
    values = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    np.testing.assert_array_equal(atari.luminance(np.repeat(values, 3, -1)), values)
    red = np.zeros((1, 1, 3), np.uint8)
    red[..., 0] = 255
    assert atari.luminance(red) == 76  # 76.2 truncated


def test_specs():
    env = registry.make(AtariEnv(image_size=(64, 80)), 1, 0)
    assert env.observation_spec()["image"].shape == (64, 80, 1)
    assert env.action_spec()["action"].num_values == 18
    config = AtariEnv(gray=False, actions="needed")
    env = registry.make(config, 1, 0)
    assert env.observation_spec()["image"].shape == (96, 96, 3)
    assert env.action_spec()["action"].num_values == 6


@pytest.mark.parametrize("workers", ["serial", "process"])
def test_the_contract_holds(workers: str):
    env = registry.make(AtariEnv(task="breakout", workers=workers, time_limit=15), 2, 0)
    check(env, 20)
    env.close()


def test_noops_are_uniform_from_none_to_the_most():
    game = make_game(task="pong", noops=2)
    counts = []
    for seed in range(16):
        game.reset(seed=seed)
        counts.append(game._ale.getEpisodeFrameNumber())
    assert set(counts) == {0, 1, 2}


def make_game(**options: Any) -> atari.Game:
    """The one game inside the environment that the suite makes."""
    env = registry.make(AtariEnv(**options), 1, 0)
    env.reset()
    return played(env)[0].unwrapped


@pytest.mark.parametrize(("repeat", "frames"), [(4, 12), (3, 9)])
def test_time_limit_is_a_truncation(repeat: int, frames: int):
    env = registry.make(AtariEnv(time_limit=3, repeat=repeat), 1, 0)
    env.reset()
    steps = [env.step({"action": np.zeros(1, np.int32)}) for _ in range(3)]
    assert [int(step.step_type[0]) for step in steps] == [MID, MID, LAST]
    assert steps[-1].discount.tolist() == [1]
    assert played(env)[0].unwrapped._played == frames


def test_default_limit_is_half_an_hour_of_raw_frames():
    assert make_game()._max_frames == 108_000
    assert make_game(time_limit=0, repeat=2)._max_frames == 108_000


@pytest.mark.parametrize("lives", ["unused", "discount", "reset"])
def test_losing_a_life(lives: str):
    """In Breakout, shooting the ball and standing still loses a life after each serve."""
    config = AtariEnv(task="breakout", actions="needed", lives=lives, sticky=0.0, noops=0)
    env = registry.make(config, 1, 0)
    env.reset()
    game = played(env)[0].unwrapped
    fire = {"action": np.array([1], np.int32)}
    before = game._ale.lives()
    for _ in range(200):
        step = env.step(fire)
        if game._ale.lives() < before:
            break
    assert (before, game._ale.lives()) == (5, 4)
    expected = {"unused": (MID, 1), "discount": (MID, 0), "reset": (LAST, 0)}[lives]
    assert (step.step_type[0], step.discount[0]) == expected
    following = env.step(fire)
    assert following.discount[0] == 1, "only the step that lost the life is terminal"
    assert game._ale.lives() == (5 if lives == "reset" else 4)


def test_rewards_may_be_clipped():
    totals = {}
    for clip in (False, True):
        config = AtariEnv(task="ms_pacman", clip_reward=clip, sticky=0.0, noops=0)
        env = registry.make(config, 1, 0)
        env.reset()
        left = {"action": np.array([4], np.int32)}
        totals[clip] = np.array([env.step(left).reward[0] for _ in range(100)])
    assert totals[False].max() >= 10
    np.testing.assert_array_equal(totals[True], np.sign(totals[False]))


def test_render_is_the_raw_screen():
    env = registry.make(AtariEnv(), 1, 0, render=True)
    env.reset()
    frames = env.render()
    assert frames is not None
    assert frames.shape == (1, 210, 160, 3)
    raw = played(env)[0].unwrapped._ale.getScreenRGB()
    np.testing.assert_array_equal(frames[0], raw)


def test_unknown_game_names_the_nearest():
    with pytest.raises(UserError, match=r"env.task=Pongg .*did you mean pong\?"):
        registry.make(AtariEnv(task="Pongg"), 1, 0)
