"""Episodes of a simulator whose every value is known: a counter with a given end."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dm_env import specs
from jax import Array

from dreamer.envs.jax.episodes import JaxEnv


class Counter:
    """Counts up by the action from a random start below 10; terminal from `end` on; the reward is
    the count."""

    observations = {"count": specs.Array((), np.float32, "count")}
    actions = {"action": specs.DiscreteArray(3, np.int32, "action")}

    def __init__(self, end: int = 1000, limit: int = 0) -> None:
        self.end, self.limit = end, limit

    def reset(self, key: Array) -> tuple[Any, Any]:
        count = jax.random.randint(key, (), 0, 10).astype(jnp.float32)
        return count, {"count": count}

    def step(self, key: Array, state: Array, action: Any) -> tuple[Any, Any, Array, Array]:
        count = state + action["action"]
        return count, {"count": count}, count, count >= self.end


def play(env: JaxEnv, steps: int, action: int = 1, seed: int = 0) -> list[Any]:
    state, time_step = env.reset(jax.random.key_data(jax.random.key(seed)))
    found = [time_step]
    step = jax.jit(env.step)
    for _ in range(steps):
        state, time_step = step(state, {"action": jnp.int32(action)})
        found.append(time_step)
    return found


def types(found: list[Any]) -> list[int]:
    return [int(x.step_type) for x in found]


def test_the_end_of_the_task_is_terminal_and_a_new_episode_follows() -> None:
    found = play(JaxEnv(Counter(end=12)), 30)
    start = int(found[0].observation["count"])
    last = 12 - start
    assert types(found)[: last + 2] == [0] + [1] * (last - 1) + [2, 0]
    assert found[last].discount == 0
    assert found[last].reward == 12
    assert found[last + 1].reward == 0
    assert found[last + 1].discount == 1
    starts = [int(x.observation["count"]) for x in found if x.step_type == 0]
    assert len(set(starts)) > 1, "every episode draws its own start"


def test_a_time_limit_is_a_truncation() -> None:
    for env in (JaxEnv(Counter(limit=3)), JaxEnv(Counter(), time_limit=3)):
        found = play(env, 8)
        assert types(found) == [0, 1, 1, 2, 0, 1, 1, 2, 0]
        assert all(x.discount == 1 for x in found)


def test_the_end_of_the_task_at_the_limit_is_terminal() -> None:
    start = int(play(JaxEnv(Counter()), 0)[0].observation["count"])
    found = play(JaxEnv(Counter(end=start + 3), time_limit=3), 3)
    assert types(found) == [0, 1, 1, 2]
    assert found[-1].discount == 0


def test_repeated_steps_add_up_and_stop_at_the_end() -> None:
    start = int(play(JaxEnv(Counter()), 0)[0].observation["count"])
    found = play(JaxEnv(Counter(end=start + 4), repeat=3), 2)
    assert types(found) == [0, 1, 2]
    assert found[1].reward == 3 * start + 1 + 2 + 3
    assert found[2].reward == start + 4, "of three steps the first has reached the end"
    assert found[2].observation["count"] == start + 4


def test_the_limit_is_counted_in_steps_of_the_agent() -> None:
    assert JaxEnv(Counter(limit=10), repeat=4).limit == 3
    assert JaxEnv(Counter(limit=10), repeat=4, time_limit=2).limit == 2
    assert JaxEnv(Counter(limit=10), repeat=4, time_limit=9).limit == 3
    assert JaxEnv(Counter(), time_limit=9).limit == 9


def test_an_episode_follows_from_its_key_and_number() -> None:
    env = JaxEnv(Counter(limit=2))
    third = env.reset(jax.random.key_data(jax.random.key(5)), 2)[1].observation["count"]
    found = play(env, 6, seed=5)
    assert found[6].step_type == 0
    assert found[6].observation["count"] == third


@pytest.mark.parametrize("num_envs", [1, 5, 40])
def test_slow_resets_give_the_same_steps(num_envs: int) -> None:
    """Some environments end alone, others many at a time, more than are restarted at once."""
    keys = jax.random.split(jax.random.key(1), num_envs)
    found = []
    for slow in (False, True):
        env = JaxEnv(Counter(end=12), time_limit=6, slow_reset=slow)
        states, time_step = jax.vmap(env.reset)(jax.random.key_data(keys))
        steps, step = [(states, time_step)], jax.jit(env.step_all)
        for number in range(25):
            action = {"action": (jnp.arange(num_envs) + number) % 3}
            steps.append(step(steps[-1][0], action))
        found.append(jax.device_get(steps))
    jax.tree.map(np.testing.assert_array_equal, *found)
    assert max(state.episode.max() for state, _ in found[0]) >= 3


def test_slow_resets_run_only_where_needed() -> None:
    done = []

    class Counted(Counter):
        def reset(self, key: Array) -> tuple[Any, Any]:
            jax.debug.callback(lambda _: done.append(1), key)
            return super().reset(key)

    env = JaxEnv(Counted(), time_limit=3, slow_reset=True)
    keys = jax.random.key_data(jax.random.split(jax.random.key(0), 4))
    states = jax.vmap(JaxEnv(Counter()).reset)(keys)[0]
    step = jax.jit(env.step_all)
    counts = []
    for _ in range(4):
        states, _ = step(states, {"action": jnp.ones(4, int)})
        jax.effects_barrier()
        counts.append(len(done))
    assert counts == [0, 0, 0, 4]
