"""Environments that fail: their episode ends, and no other."""

import contextlib
import functools
import json
from collections.abc import Callable, Iterator

import dm_env
import numpy as np
import pytest

from dreamer.config.env import EnvBase
from dreamer.envs.base import FIRST, LAST, MID, episode_seed
from dreamer.envs.vector import VectorEnv
from dreamer.errors import EnvironmentFault
from tests.envs import probe_envs

Make = Callable[..., VectorEnv]
WORKERS = ["serial", "process"]
ACTIONS = np.random.default_rng(0).integers(0, 5, (8, 3)).astype(np.int32)
RAISED = "^environment 1 failed in its step with RuntimeError: simulator broke "
NAN = "^environment 1 gave NaN or infinity as"
FAULTS = [
    *((workers, "raise", RAISED) for workers in WORKERS),
    ("serial", "exit", "^environment 1 failed in its step with SystemExit: 3 "),
    ("serial", "shape", r"^environment 1 gave observation of shape \(2,\) and type float64"),
    ("serial", "nan", f"{NAN} observation"),
    ("process", "nan", f"{NAN} observation"),
    ("serial", "reward", f"{NAN} reward"),
    ("process", "die", "^the process of environment 1 died with exit code -9 "),
    ("process", "hang", "^the process of environment 1 hung for longer than env.timeout allows"),
]


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes three environments of seed 0, closed after the test; the limit for a process is short
    once it has begun its first episode."""
    with contextlib.ExitStack() as stack:

        def function(maker: Callable, workers: str = "serial", **options: object) -> VectorEnv:
            config = EnvBase(task="probe", workers=workers, **options)
            return stack.enter_context(
                contextlib.closing(VectorEnv(maker, config, 3, 0, render=False))
            )

        yield function


def faulty(how: str) -> Callable:
    return functools.partial(probe_envs.Faulty, how)


def impatient(env: VectorEnv, seconds: int) -> None:
    """Lowers `timeout` after the start, which may take longer."""
    env._pool._config = env._pool._config.model_copy(update={"timeout": seconds})


def play(env: VectorEnv, start: int, stop: int) -> list[dm_env.TimeStep]:
    return [env.step({"action": ACTIONS[number]}) for number in range(start, stop)]


def rows(steps: list[dm_env.TimeStep], *envs: int) -> list[list]:
    """Step type, reward, discount and observation of some environments, by time."""
    return [
        [
            [*(leaf[i].item() for leaf in step[:3]), *step.observation["observation"][i].tolist()]
            for i in envs
        ]
        for step in steps
    ]


def drawn(episode: int) -> float:
    """The number that environment 1 draws at the reset of an episode."""
    return float(np.float32(np.random.default_rng(episode_seed(0, 1, episode)).random()))


@pytest.mark.parametrize(("workers", "how", "message"), FAULTS)
def test_a_broken_episode_is_closed_and_no_other_is_disturbed(
    make: Make, workers: str, how: str, message: str
):
    env, whole = make(faulty(how), workers), make(probe_envs.Counter)
    steps = [env.reset(), *play(env, 0, 1)]
    workers_before = list(env._pool.workers)
    impatient(env, 1)
    steps += play(env, 1, 2)
    impatient(env, 300)
    steps += play(env, 2, 5)
    expected = [whole.reset(), *play(whole, 0, 5)]
    assert rows(steps, 0, 2) == rows(expected, 0, 2)
    # Its actions count from -2; the third is for a reset.
    first, _, _, fourth, fifth = (float(action) - 2 for action in ACTIONS[:5, 1])
    assert rows(steps, 1) == [
        [[FIRST, 0, 1, 0, 0, drawn(0)]],
        [[MID, first, 1, 1, first, drawn(0)]],
        [[LAST, 0, 1, 1, first, drawn(0)]],
        [[FIRST, 0, 1, 0, 0, drawn(1)]],
        [[MID, fourth, 1, 1, fourth, drawn(1)]],
        [[MID, fifth, 1, 2, fourth + fifth, drawn(1)]],
    ]
    pairs = zip(env._pool.workers, workers_before, strict=True)
    assert [now is before for now, before in pairs] == [True, False, True]
    (restart,) = env.restarts
    assert (restart.env, restart.failed) == (1, True)
    with pytest.raises(EnvironmentFault, match=f"{message}.*; restarted, 1 of env.restarts=10$"):
        raise EnvironmentFault(restart.line)


@pytest.mark.parametrize("workers", WORKERS)
def test_an_episode_that_cannot_start_is_skipped(make: Make, workers: str):
    env = make(faulty("reset"), workers)
    step = env.reset()
    assert rows([step], 1) == [[[FIRST, 0, 1, 0, 0, drawn(1)]]]
    assert [one["episode"] for one in env.get_state()["episodes"]] == [0, 1, 0]
    assert env.restarts[0].line.startswith("environment 1 failed in its reset with RuntimeError: d")


def test_several_may_fail_in_one_step(make: Make):
    env = make(functools.partial(probe_envs.Undefined, "observation"))
    env.reset()
    steps = play(env, 0, 3)
    assert [step.step_type.tolist() for step in steps] == [[MID] * 3, [LAST] * 3, [FIRST] * 3]
    assert [restart.env for restart in env.restarts] == [0, 1, 2]
    assert env.restarts[2].line.endswith("restarted, 3 of env.restarts=10")


def test_past_the_limit_the_fault_is_raised(make: Make):
    env = make(functools.partial(probe_envs.Undefined, "reward"), restarts=2)
    env.reset()
    play(env, 0, 1)
    with pytest.raises(
        EnvironmentFault,
        match=f"{NAN.replace('1', '2')} reward, .*; failure 3 of the run, with env.restarts=2$",
    ):
        play(env, 1, 2)
    other = make(probe_envs.Counter)
    restored, step = other.set_state(json.loads(json.dumps(env.get_state())))
    assert not restored.any()
    assert rows([step], 1) == [[[FIRST, 0, 1, 0, 0, drawn(1)]]]
    assert other.restarts == env.restarts, "their count continues"


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("taken", [2, 3, 4])
def test_a_state_after_a_fault_is_restored(make: Make, workers: str, taken: int):
    """At the end of the failed episode, at the start of the next, and within it."""
    env = make(faulty("raise"))
    env.reset()
    last = play(env, 0, taken)[-1]
    assert last.step_type[1] == [LAST, FIRST, MID][taken - 2]
    state = json.loads(json.dumps(env.get_state()))
    expected = [last, *play(env, taken, 6)]
    other = make(faulty("raise"), workers)
    restored, again = other.set_state(state)
    assert restored.tolist() == [True, True, True]
    assert rows([again, *play(other, taken, 6)], 0, 1, 2) == rows(expected, 0, 1, 2)
    assert other.restarts == env.restarts
    assert len(env.restarts) == 1


def test_an_environment_that_dies_while_it_is_restored_starts_the_next_episode(make: Make):
    env = make(probe_envs.Counter)
    env.reset()
    last = play(env, 0, 3)[-1]
    other = make(faulty("die"), "process")
    restored, step = other.set_state(env.get_state())
    assert restored.tolist() == [True, False, True]
    assert rows([step], 0, 2) == rows([last], 0, 2)
    assert rows([step], 1) == [[[FIRST, 0, 1, 0, 0, drawn(1)]]]
    assert [restart.env for restart in other.restarts] == [1]


def test_a_process_that_grows_too_large_is_restarted_between_episodes(make: Make):
    """It loses nothing and is no failure."""
    maker = functools.partial(probe_envs.Counter, terminate=2)
    env, whole = make(maker, "process", max_memory=0.001, restarts=0), make(maker, max_memory=0.001)
    steps, expected = ([one.reset(), *play(one, 0, 4)] for one in (env, whole))
    assert rows(steps, 0, 1, 2) == rows(expected, 0, 1, 2)
    assert steps[3].step_type.tolist() == [FIRST] * 3
    assert [restart.env for restart in env.restarts] == [0, 1, 2]
    assert not any(restart.failed for restart in env.restarts)
    assert env.restarts[0].line.startswith("environment 0 took 0.")
    assert env.restarts[0].line.endswith(" GiB, with env.max_memory=0.001; restarted")
    assert whole.restarts == (), "it has no process of its own"


def test_frames_continue_while_one_is_restarted():
    """With the last frame, where there is one."""

    class Drawn(probe_envs.Drawn):
        def step(self, action):
            self.shade = 7
            if action:
                raise RuntimeError("broke")
            return super().step(action)

        def render(self):
            return np.full((2, 2, 3), getattr(self, "shade", 0), np.uint8)

    config = EnvBase(task="probe", workers="serial")
    env = VectorEnv(functools.partial(Drawn, "rgb_array"), config, 2, 0, render=True)
    env.reset()
    env.step({"action": np.zeros(2, np.int32)})
    assert env.render()[:, 0, 0, 0].tolist() == [7, 7]
    env.step({"action": np.array([1, 0], np.int32)})
    assert env.render()[:, 0, 0, 0].tolist() == [7, 7]
    env.step({"action": np.zeros(2, np.int32)})
    assert env.render()[:, 0, 0, 0].tolist() == [0, 7]
