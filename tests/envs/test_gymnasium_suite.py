import re
import sys

import gymnasium
import numpy as np
import pytest

from dreamer.config import trust
from dreamer.config.env import GymnasiumEnv
from dreamer.envs import registry
from dreamer.envs.base import FIRST, LAST, BatchedEnv, random_action
from dreamer.envs.check import check
from dreamer.envs.images import resize
from dreamer.errors import EnvironmentFault, UserError
from tests.envs.probe_envs import played


def run(env: BatchedEnv, steps: int) -> list:
    """Time steps under random actions."""
    rng = np.random.default_rng(0)
    spec = env.action_spec()
    return [env.reset(), *(env.step(random_action(spec, env.num_envs, rng)) for _ in range(steps))]


@pytest.mark.parametrize("workers", ["serial", "process"])
@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"task": "CartPole-v1"}, 60),
        ({"task": "Pendulum-v1"}, 210),
        ({"task": "CartPole-v1", "pixels": True, "image_size": (32, 48)}, 15),
        ({"task": "Blackjack-v1"}, 20),  # a Tuple observation
        ({"task": "CliffWalking-v1"}, 20),
        ({"task": "ale_py:ALE/Pong-v5"}, 3),  # from another package, with an image
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_real_tasks_keep_the_contract(options: dict, steps: int, workers: str):
    env = registry.make(trust.allow(GymnasiumEnv(workers=workers, **options)), 2, seed=1)
    check(env, steps)
    env.close()


def test_cartpole_terminates_and_pendulum_is_truncated():
    cartpole = registry.make(GymnasiumEnv(task="CartPole-v1"), 2, 0)
    ends = [step for step in run(cartpole, 100) if (step.step_type == LAST).any()]
    assert len(ends) >= 4
    assert all((step.discount[step.step_type == LAST] == 0).all() for step in ends)
    pendulum = registry.make(GymnasiumEnv(task="Pendulum-v1"), 2, 0)
    steps = run(pendulum, 201)
    assert steps[200].step_type.tolist() == [LAST, LAST]
    assert steps[200].discount.tolist() == [1, 1]
    assert steps[201].step_type.tolist() == [FIRST, FIRST]


def test_pendulum_receives_the_full_torque():
    env = registry.make(GymnasiumEnv(task="Pendulum-v1"), 2, 0)
    env.reset()
    env.step({"action": np.array([[1], [-1]], np.float32)})
    torques = [float(inner.unwrapped.last_u) for inner in played(env)]
    assert torques == [2, -2]


def test_seeds_repeat_and_differ():
    def path(seed: int) -> np.ndarray:
        env = registry.make(GymnasiumEnv(task="CartPole-v1"), 2, seed)
        return np.stack([step.observation["observation"] for step in run(env, 60)])

    first = path(0)
    np.testing.assert_array_equal(first, path(0))
    assert (first[0] != path(1)[0]).all()
    assert (first[0, 0] != first[0, 1]).all()


def test_repeat_and_time_limit_count_agent_steps():
    """The task's own limit is 4 raw steps; time_limit replaces it and counts after the repeat."""
    ends = {}
    for options in ({}, {"repeat": 2}, {"repeat": 2, "time_limit": 3}, {"time_limit": 6}):
        config = GymnasiumEnv(task="dreamer/Short-v0", **options)
        steps = run(registry.make(config, 1, 0), 7)
        last = next(i for i, step in enumerate(steps) if step.step_type[0] == LAST)
        assert steps[last].discount.tolist() == [1]
        raw = steps[last].observation["observation"][0, 0]
        ends[tuple(options.items())] = (last, raw)
    assert list(ends.values()) == [(4, 4), (2, 4), (3, 6), (6, 6)]


def test_pixels_show_the_state():
    config = GymnasiumEnv(task="CartPole-v1", pixels=True, image_size=(40, 60))
    env = registry.make(config, 1, 0, render=True)
    assert list(env.observation_spec()) == ["image"]
    assert env.observation_spec()["image"].shape == (40, 60, 3)
    steps = run(env, 3)
    frame = env.render()
    assert frame is not None
    assert frame.shape == (1, 400, 600, 3)
    expected = resize(frame[0], (40, 60))
    np.testing.assert_array_equal(steps[-1].observation["image"][0], expected)
    assert (steps[0].observation["image"] != steps[-1].observation["image"]).any()


def test_frames_of_vector_tasks_are_rendered_on_request():
    config = GymnasiumEnv(task="CartPole-v1")
    env = registry.make(config, 2, 0, render=True)
    assert list(env.observation_spec()) == ["observation"]
    env.reset()
    frames = env.render()
    assert frames is not None
    assert (frames.shape, frames.dtype) == ((2, 400, 600, 3), np.uint8)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"task": "CartPol-v1"}, ["env.task=CartPol-v1", "did you mean CartPole-v1?"]),
        ({"task": "CartPole-v9"}, ["env.task=CartPole-v9", "CartPole-v1"]),
        ({"task": "no_such_package:Foo-v1"}, ["pip install no_such_package"]),
        ({"task": "dreamer/Missing-v0"}, ["dreamer/Missing-v0", "pip install foo"]),
        ({"task": "dreamer/Counter-v0", "pixels": True}, ["dreamer/Counter-v0", "rgb_array"]),
        ({"task": "not an id"}, ["not an id"]),
    ],
    ids=lambda value: value["task"] if isinstance(value, dict) else "",
)
def test_user_errors_are_explained_in_one_line(options: dict, words: list[str]):
    with pytest.raises(UserError) as error:
        registry.make(trust.allow(GymnasiumEnv(**options)), 1, 0)
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("task", "package", "extra"),
    [("LunarLander-v3", "Box2D", "box2d"), ("HalfCheetah-v5", "mujoco", "mujoco")],
)
def test_missing_extra_names_the_command(
    task: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
):
    for name in [name for name in sys.modules if name.startswith(f"gymnasium.envs.{extra}")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)  # importing it raises ImportError
    problem = f"env.task={task} needs a package that is not installed"
    expected = f'{problem}; pip install "gymnasium[{extra}]"'
    with pytest.raises(UserError, match=f"^{re.escape(expected)}$"):
        registry.make(GymnasiumEnv(task=task), 1, 0)


def test_images_keep_their_size_unless_one_is_configured():
    for size, expected in ((None, (210, 160, 3)), ((32, 40), (32, 40, 3))):
        config = GymnasiumEnv(task="ale_py:ALE/Pong-v5", image_size=size)
        env = registry.make(trust.allow(config), 1, 0)
        assert env.observation_spec()["image"].shape == expected
        assert env.reset().observation["image"].shape == (1, *expected)


def test_masks_of_a_real_task_are_observed():
    env = registry.make(
        GymnasiumEnv(task=next(id for id in gymnasium.registry if "Taxi" in id)), 2, 0
    )
    mask = env.reset().observation["action_mask"]
    assert (mask.shape, mask.dtype) == ((2, 6), np.bool_)
    assert not mask.all()
    check(env, 20)


def test_actions_that_may_be_masked_are_not_repeated():
    task = next(id for id in gymnasium.registry if "Taxi" in id)
    with pytest.raises(UserError, match=r"env.repeat repeats actions that a mask may then forbid"):
        registry.make(GymnasiumEnv(task=task, repeat=2), 1, 0)


def test_bounds_are_checked_unless_disabled():
    def make(**options: object) -> BatchedEnv:
        entry = "tests.envs.probe_envs:Outside"
        return registry.make(trust.allow(GymnasiumEnv(entry_point=entry, **options)), 1, 0)

    with pytest.raises(EnvironmentFault, match=r"with the value 2.0, expected -1.0 to 1.0 as its"):
        make().reset()
    assert make(check_bounds=False).reset().observation["observation"].tolist() == [[2]]


def test_a_constructor_that_fails_names_its_line():
    with pytest.raises(UserError, match=r"env.task=dreamer/Bad-v0: cannot be made: ZeroDiv.*line"):
        registry.make(GymnasiumEnv(task="dreamer/Bad-v0"), 1, 0)
