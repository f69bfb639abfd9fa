import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from dreamer.config.env import EnvBase
from dreamer.envs.check import check
from dreamer.envs.images import resize
from dreamer.envs.vector import VectorEnv
from dreamer.envs.wrappers import Pixels, Repeat, finish, resize_images
from dreamer.errors import UserError
from tests.envs import probe_envs


def test_repeat_sums_rewards():
    env = Repeat(probe_envs.Counter(), 3)
    env.reset(seed=0)
    observation, reward, *_ = env.step(2)
    assert (reward, observation[0]) == (6, 3)


@pytest.mark.parametrize("ends", [{"terminate": 2}, {"truncate": 2}])
def test_repeat_stops_at_the_end(ends: dict):
    env = Repeat(probe_envs.Counter(**ends), 3)
    env.reset(seed=0)
    observation, reward, terminated, truncated, _ = env.step(2)
    assert (reward, observation[0]) == (4, 2)
    assert (terminated, truncated) == ("terminate" in ends, "truncate" in ends)


def test_repeat_and_time_limit_are_applied():
    config = EnvBase(task="probe", repeat=2, time_limit=3)
    env = VectorEnv(lambda: finish(probe_envs.Counter(), config), config, 2, 0, False)
    endings = check(env, 8)
    assert (endings.terminated, endings.truncated) == (0, 4)


def test_images_are_resized_wherever_they_are():
    image = spaces.Box(0, 255, (20, 10, 3), np.uint8)
    space = spaces.Dict({"a": image, "b": spaces.Tuple([image, spaces.Discrete(2)])})
    inner = probe_envs.Probe(space)
    env = resize_images(inner, (8, 6))
    observation, _ = env.reset(seed=3)
    assert env.observation_space.contains(observation)
    assert observation["a"].shape == (8, 6, 3)
    inner.reset(seed=3)
    inner.observation_space.seed(3)
    raw = inner.observation_space.sample()
    np.testing.assert_array_equal(observation["a"], resize(raw["a"], (8, 6)))
    np.testing.assert_array_equal(observation["b"][0], resize(raw["b"][0], (8, 6)))
    assert observation["b"][1] == raw["b"][1]


def test_spaces_without_images_are_left_alone():
    env = resize_images(probe_envs.Counter(), (8, 6))
    assert env.observation_space == probe_envs.Counter.observation_space


def test_pixels_are_the_rendered_frame():
    env = Pixels(probe_envs.Drawn(render_mode="rgb_array"), (8, 16))
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    image = observation.pop("image")
    assert image.shape == (8, 16, 3)
    assert (image[:, :6] == 255).all()
    assert (image[:, 10:] == 0).all()
    assert not observation


@pytest.mark.parametrize("env", [probe_envs.Drawn(), probe_envs.Counter()])
def test_pixels_without_rendering_are_refused(env: gymnasium.Env):
    with pytest.raises(UserError, match="env.pixels=true.*rgb_array"):
        Pixels(env, (8, 8))
