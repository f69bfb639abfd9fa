import functools

import gymnasium
import pytest

from dreamer.config.env import CrafterEnv, GymnasiumEnv
from dreamer.envs import single
from dreamer.envs.check import check
from dreamer.errors import UserError


def counter(config: GymnasiumEnv) -> gymnasium.Env:
    return single.finish(gymnasium.make("dreamer/Counter-v0", disable_env_checker=True), config)


def test_repeat_and_time_limit_are_applied() -> None:
    config = GymnasiumEnv(repeat=2, time_limit=3)
    env = single.batch(functools.partial(counter, config), config, 2, 0, False)
    endings = check(env, 8)
    assert (endings.terminated, endings.truncated) == (0, 4)
    env.close()


def test_an_unknown_task_names_the_nearest_and_where_many_are_listed() -> None:
    with pytest.raises(UserError, match="task=rewad is no task of crafter; did you mean reward?"):
        single.check_task(CrafterEnv(task="rewad"), "crafter", ("reward", "noreward"))
    many = [f"task{number}" for number in range(31)]
    with pytest.raises(UserError, match="tasks are listed by python -m dreamer.envs crafter$"):
        single.check_task(CrafterEnv(task="rewad"), "crafter", many)


def test_errors_name_the_task() -> None:
    def broken() -> gymnasium.Env:
        raise UserError("it does not work")

    with pytest.raises(UserError, match="^env.task=CartPole-v1: it does not work$"):
        single.batch(broken, GymnasiumEnv(), 1, 0, False)
