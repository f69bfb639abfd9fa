import functools
import json
import multiprocessing.forkserver
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from gymnasium import spaces

from dreamer.config.env import EnvBase
from dreamer.envs import vector
from dreamer.envs.base import FIRST, LAST, MID, episode_seed, random_action
from dreamer.envs.check import check
from dreamer.envs.vector import VectorEnv
from dreamer.envs.workers import SIGNALS, Process, Serial
from dreamer.errors import EnvironmentFault, UserError
from tests.envs import probe_envs
from tests.envs.probe_envs import played

Make = Callable[..., VectorEnv]
WORKERS = ["serial", "process"]


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes environments that are closed after the test."""
    made: list[VectorEnv] = []

    def function(
        maker: Callable, num_envs: int = 2, seed: int = 0, workers="serial", render=False, **options
    ):
        config = EnvBase(task="probe", workers=workers, **{"restarts": 0, **options})
        made.append(VectorEnv(maker, config, num_envs, seed, render))
        return made[-1]

    yield function
    for env in made:
        env.close()


def processes(env: VectorEnv) -> list:
    return [worker.process for worker in env._pool.workers if isinstance(worker, Process)]


def counter(**ends: int) -> functools.partial:
    return functools.partial(probe_envs.Counter, **ends)


def act(*values: int) -> dict[str, np.ndarray]:
    return {"action": np.array(values, np.int32)}


def drawn(seed: int, index: int, episode: int) -> np.float32:
    """The number that Counter draws at the reset of an episode."""
    return np.float32(np.random.default_rng(episode_seed(seed, index, episode)).random())


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize(("ends", "discount"), [({"terminate": 2}, 0), ({"truncate": 2}, 1)])
def test_one_episode_step_by_step(make: Make, workers: str, ends: dict, discount: int):
    env = make(counter(**ends), seed=7, workers=workers)
    steps = [env.reset(), *(env.step(act(4, 1)) for _ in range(4))]
    # Action 4 is +2 and action 1 is -1: the space starts at -2. The third action is ignored.
    expected = [
        (FIRST, [0, 0], [1, 1], [[0, 0], [0, 0]], 0),
        (MID, [2, -1], [1, 1], [[1, 2], [1, -1]], 0),
        (LAST, [2, -1], [discount] * 2, [[2, 4], [2, -2]], 0),
        (FIRST, [0, 0], [1, 1], [[0, 0], [0, 0]], 1),
        (MID, [2, -1], [1, 1], [[1, 2], [1, -1]], 1),
    ]
    for step, (kind, reward, discounts, counts, episode) in zip(steps, expected, strict=True):
        np.testing.assert_array_equal(step.step_type, [kind, kind])
        np.testing.assert_array_equal(step.reward, reward)
        np.testing.assert_array_equal(step.discount, discounts)
        np.testing.assert_array_equal(step.observation["observation"][:, :2], counts)
        numbers = [drawn(7, 0, episode), drawn(7, 1, episode)]
        np.testing.assert_array_equal(step.observation["observation"][:, 2], numbers)
        dtypes = [leaf.dtype for leaf in (step.step_type, step.reward, step.discount)]
        assert dtypes == [np.int32, np.float32, np.float32]


def test_termination_wins_over_truncation_at_the_same_step(make: Make):
    env = make(counter(terminate=1, truncate=1), 1)
    env.reset()
    step = env.step(act(0))
    assert (step.step_type, step.discount) == (LAST, 0)


def test_terminal_state_inside_an_episode_has_discount_0_at_mid(make: Make):
    env = make(counter(lose=1, terminate=3), 1)
    env.reset()
    steps = [env.step(act(0)) for _ in range(3)]
    assert [int(step.step_type[0]) for step in steps] == [MID, MID, LAST]
    assert [float(step.discount[0]) for step in steps] == [0, 1, 0]


def test_reset_starts_the_next_episode(make: Make):
    env = make(counter(), 1)
    for episode in range(3):
        step = env.reset()
        assert step.step_type == FIRST
        assert step.observation["observation"][0, 2] == drawn(0, 0, episode)
        env.step(act(0))


@pytest.mark.parametrize("workers", WORKERS)
def test_the_contract_holds(make: Make, workers: str):
    check(make(counter(terminate=5), workers=workers), steps=12)


def test_nested_actions_and_observations_pass_the_check(make: Make):
    observation = spaces.Dict(
        {
            "image": spaces.Box(0, 255, (4, 4, 3), np.uint8),
            "flags": spaces.MultiBinary(2),
            "in": spaces.Dict({"pair": spaces.MultiDiscrete([2, 5], start=[1, 1])}),
        }
    )
    action = spaces.Dict({"move": spaces.Box(-3, 1, (2,)), "pick": spaces.MultiDiscrete([2, 3])})
    env = make(functools.partial(probe_envs.Probe, observation, action, terminate=5))
    assert list(env.observation_spec()) == ["flags", "image", "in_pair_0", "in_pair_1"]
    assert list(env.action_spec()) == ["move", "pick_0", "pick_1"]
    check(env, steps=12)


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("taken", [0, 1, 3, 4, 6])
def test_state_restores_in_a_new_environment_and_continues(make: Make, workers: str, taken: int):
    """Episodes last 3 steps, so states are FIRST, MID, LAST, FIRST and MID of the second."""
    maker = counter(terminate=3)
    env = make(maker, seed=5, workers=workers)
    rng = np.random.default_rng(0)
    last = env.reset()
    for _ in range(taken):
        last = env.step(random_action(env.action_spec(), 2, rng))
    state = json.loads(json.dumps(env.get_state()))
    actions = [random_action(env.action_spec(), 2, rng) for _ in range(5)]
    expected = [last, *(env.step(action) for action in actions)]
    other = make(maker, seed=5, workers=workers)
    restored, first = other.set_state(state)
    assert restored.tolist() == [True, True]
    again = [first, *(other.step(action) for action in actions)]
    for left, right in zip(expected, again, strict=True):
        for field in ("step_type", "reward", "discount"):
            np.testing.assert_array_equal(getattr(left, field), getattr(right, field))
        left, right = left.observation["observation"], right.observation["observation"]
        np.testing.assert_array_equal(left, right)


def test_continuous_actions_are_restored_bit_for_bit(make: Make):
    box = spaces.Box(-0.3, 0.7, (2,), np.float32)
    maker = functools.partial(probe_envs.Probe, spaces.Box(0, 1, (1,)), box)
    env = make(maker, 1)
    env.reset()
    sent = []
    for number in (0.1, -1 / 3, 0.77):
        env.step({"action": np.full((1, 2), number, np.float32)})
        sent.append(played(env)[0].unwrapped.received)
    state = json.loads(json.dumps(env.get_state()))
    actions = box.from_jsonable(state["episodes"][0]["actions"])
    np.testing.assert_array_equal(actions, sent)
    assert env.set_state(state)[0].all()


@pytest.mark.parametrize("workers", WORKERS)
def test_unrepeatable_environment_starts_a_new_episode(make: Make, workers: str):
    env = make(probe_envs.Unseeded, workers=workers)
    env.reset()
    env.step(act(3, 3))
    state = env.get_state()
    restored, step = env.set_state(state)
    assert restored.tolist() == [False, False]
    assert step.step_type.tolist() == [FIRST, FIRST]
    assert step.reward.tolist() == [0, 0]
    np.testing.assert_array_equal(step.observation["observation"][:, :2], 0)
    assert [episode["episode"] for episode in env.get_state()["episodes"]] == [1, 1]
    assert env.step(act(3, 3)).step_type.tolist() == [MID, MID]


def test_only_the_environments_that_differ_start_new_episodes(make: Make):
    env = make(counter())
    env.reset()
    kept = env.step(act(4, 4))
    state = env.get_state()
    state["episodes"][1]["digest"] = "another"
    restored, step = env.set_state(state)
    assert restored.tolist() == [True, False]
    assert step.step_type.tolist() == [MID, FIRST]
    assert step.reward.tolist() == [2, 0]
    np.testing.assert_array_equal(
        step.observation["observation"][0], kept.observation["observation"][0]
    )
    assert step.observation["observation"][1].tolist() == [0, 0, drawn(0, 1, 1)]


def test_an_episode_that_ends_earlier_than_before_is_not_restored(make: Make):
    probe_envs.Early.starts = 0
    env = make(probe_envs.Early, 1)
    env.reset()
    for _ in range(5):
        env.step(act(2))
    restored, step = env.set_state(env.get_state())
    assert restored.tolist() == [False]
    assert step.step_type.tolist() == [FIRST]
    assert env.get_state()["episodes"][0]["episode"] == 1, "the rest of the actions is dropped"


def test_state_of_another_number_of_environments_is_refused(make: Make):
    env = make(counter(), 2)
    env.reset()
    with pytest.raises(ValueError, match="2 environments given to 1"):
        make(counter(), 1).set_state(env.get_state())


@pytest.mark.parametrize("workers", WORKERS)
def test_render(make: Make, workers: str):
    maker = functools.partial(probe_envs.Drawn, render_mode="rgb_array")
    env = make(maker, workers=workers, render=True)
    env.reset()
    frames = env.render()
    assert frames is not None
    assert (frames.shape, frames.dtype) == ((2, 20, 40, 3), np.uint8)
    assert (frames[:, :, :20] == 255).all()
    assert (frames[:, :, 20:] == 0).all()
    assert make(maker).render() is None
    assert make(counter(), render=True).render() is None


@pytest.mark.parametrize(
    ("images", "num_envs", "cores", "expected"),
    [(True, 2, 3, Process), (True, 2, 2, Serial), (True, 1, 3, Serial), (False, 2, 3, Serial)],
)
def test_auto_workers(
    make: Make,
    images: bool,
    num_envs: int,
    cores: int,
    expected: type,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(vector, "_cores", lambda: cores)
    space = spaces.Box(0, 255, (4, 4, 3), np.uint8) if images else spaces.Box(0, 1, (4,))
    env = make(functools.partial(probe_envs.Probe, space), num_envs, workers="auto")
    assert [type(worker) for worker in env._pool.workers] == [expected] * num_envs


def test_an_environment_without_actions_is_refused(make: Make):
    with pytest.raises(UserError, match=r"the action space Dict\(\) is empty"):
        make(functools.partial(probe_envs.Probe, spaces.Discrete(2), spaces.Dict()))


def test_unsupported_space_is_refused_before_processes_start(make: Make):
    with pytest.raises(UserError, match="Text"):
        make(functools.partial(probe_envs.Probe, spaces.Text(4)), workers="process")


def test_workers_leave_signals_to_the_main_program(make: Make):
    env = make(counter(), workers="process")
    env.reset()
    for process in processes(env):
        for number in SIGNALS:
            os.kill(process.pid, number)
    assert env.step(act(4, 4)).reward.tolist() == [2, 2]


def test_a_dead_worker_is_named(make: Make):
    env = make(counter(), workers="process")
    env.reset()
    processes(env)[1].kill()
    assert [one["episode"] for one in env.get_state()["episodes"]] == [0, 0], "saved without it"
    with pytest.raises(EnvironmentFault, match="process of environment 1 died with exit code -9"):
        env.step(act(0, 0))
    starts_new_episodes(make(counter()), env.get_state())


def starts_new_episodes(other: VectorEnv, state: dict) -> None:
    """From a state after a fault, all environments start the episodes after the saved ones."""
    restored, step = other.set_state(json.loads(json.dumps(state)))
    assert restored.tolist() == [False, False]
    assert step.step_type.tolist() == [FIRST, FIRST]
    assert step.observation["observation"][:, 2].tolist() == [drawn(0, 0, 1), drawn(0, 1, 1)]


def test_signals_to_the_group_spare_workers_that_are_starting(make: Make):
    """Workers start with the blocked signals of their server."""
    make(counter(), workers="process")
    server = multiprocessing.forkserver._forkserver._forkserver_pid
    for number in SIGNALS:
        os.kill(server, number)
    make(counter(), workers="process").reset()
    assert multiprocessing.forkserver._forkserver._forkserver_pid == server
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & set(SIGNALS)


def test_close_ends_a_worker_that_hangs(make: Make):
    env = make(probe_envs.Hanging, workers="process")
    env.reset()
    env._pool.workers[0].send("step", 0)
    env.close()
    assert not any(process.is_alive() for process in processes(env))


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("what", ["observation", "reward"])
def test_nan_is_refused_where_it_comes_from(make: Make, workers: str, what: str):
    env = make(functools.partial(probe_envs.Undefined, what), workers=workers)
    env.reset()
    assert env.step(act(0, 0)).reward.tolist() == [-2, -2]
    with pytest.raises(EnvironmentFault, match=f"environment . gave NaN or infinity as {what}, wh"):
        env.step(act(0, 0))


def test_close_ends_workers_and_may_be_called_twice(make: Make):
    env = make(counter(), workers="process")
    env.close()
    env.close()
    assert not any(process.is_alive() for process in processes(env))


def test_close_after_a_worker_was_killed(make: Make):
    env = make(counter(), workers="process")
    env.reset()
    processes(env)[0].kill()
    processes(env)[0].join()
    env.close()
    assert not any(process.is_alive() for process in processes(env))


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize(
    ("how", "message"),
    [
        (
            "raise",
            "^environment 1 failed in its step with RuntimeError: simulator broke "
            rf"\({probe_envs.__file__}, line \d+, in step\)$",
        ),
        ("exit", "^environment 1 failed in its step with SystemExit: 3 "),
        (
            "shape",
            r"^environment 1 gave observation of shape \(2,\) and type float64, expected shape "
            r"\(3,\) and type float64$",
        ),
    ],
)
def test_a_fault_is_reported_in_one_line_and_ends_all_episodes(
    make: Make, workers: str, how: str, message: str
):
    """Environment 0 was stepped before the other failed."""
    env = make(functools.partial(probe_envs.Faulty, how), workers=workers)
    env.reset()
    env.step(act(0, 0))
    with pytest.raises(EnvironmentFault, match=message):
        env.step(act(0, 0))
    starts_new_episodes(make(counter()), env.get_state())
    env.close()
    assert not any(process.is_alive() for process in processes(env))


def test_an_episode_that_no_longer_repeats_is_replaced(make: Make):
    """The code of the environment changed since, and fails now."""
    env = make(counter())
    env.reset()
    for _ in range(3):
        env.step(act(0, 0))
    restored, step = make(functools.partial(probe_envs.Faulty, "raise")).set_state(env.get_state())
    assert restored.tolist() == [True, False]
    assert step.step_type.tolist() == [MID, FIRST]
    assert step.observation["observation"][1, 2] == drawn(0, 1, 1)


def test_makers_that_take_a_seed_get_one_each(make: Make):
    def maker(seed: int) -> probe_envs.Counter:
        given.append(seed)
        return probe_envs.Counter()

    given: list[int] = []
    env = VectorEnv(maker, EnvBase(task="probe"), 2, 5, False, seeded=True)
    env.reset()
    env.close()
    assert given == [episode_seed(5, 0, 0), episode_seed(5, 0, 0), episode_seed(5, 1, 0)]


MAIN = """
import sys, time
import only_main  # at the top of the program and unguarded, as an import of jax would be
import numpy as np
from tests.envs import probe_envs
from dreamer.config.env import EnvBase
from dreamer.envs.vector import VectorEnv
print("started", flush=True)
env = VectorEnv(probe_envs.Modules, EnvBase(task="probe", workers="process"), 2, 0, False)
print(*env.reset().observation["observation"].astype(int).ravel(), flush=True)
time.sleep(60)
"""


def test_workers_import_no_jax_nor_the_main_program_and_die_with_it(tmp_path: Path):
    (tmp_path / "main.py").write_text(textwrap.dedent(MAIN))
    (tmp_path / "only_main.py").write_text("")
    folders = [str(tmp_path), *sys.path]
    main = subprocess.Popen(
        [sys.executable, str(tmp_path / "main.py")],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(folders)},
    )
    try:
        assert main.stdout is not None
        assert main.stdout.readline() == "started\n"
        values = np.array(main.stdout.readline().split(), int).reshape(2, 3)
        assert values[:, :2].tolist() == [[0, 0], [0, 0]]
        pids = values[:, 2].tolist()
        assert all(alive(pid) for pid in pids)
    finally:
        main.kill()  # SIGKILL: no handler of the main program runs
        main.communicate()
    deadline = time.monotonic() + 10
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < deadline, "workers outlive the main program"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
