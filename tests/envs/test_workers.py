import contextlib
import functools
import os
import signal
import time

import psutil

from dreamer.envs.base import FIRST, MID
from dreamer.envs.episodes import Episodes, Memory, allocate_rows, view_rows
from dreamer.envs.workers import Process, context_of_workers
from tests.envs import probe_envs

SPACE = probe_envs.Counter.observation_space


def episodes(maker: type, memory: Memory, index: int) -> Episodes:
    return Episodes(maker, 0, index, view_rows(SPACE, 2, memory))


def test_a_process_answers_and_its_observations_are_seen_here():
    memory = allocate_rows(SPACE, 2, functools.partial(context_of_workers().RawArray, "B"))
    worker = Process(functools.partial(episodes, probe_envs.Counter), memory, 1)
    worker.send("begin", 0)
    assert worker.receive() == (FIRST, 0, 1)
    worker.send("step", 2)
    assert worker.receive(iter(range(60))) == (MID, 2, 1)
    assert view_rows(SPACE, 2, memory)[:, :2].tolist() == [[0, 0], [1, 2]]
    assert 0.001 < worker.memory() < 10
    worker.leave()
    worker.close()
    assert worker.process.exitcode == 0
    assert worker.memory() == 0
    worker.close()


def test_signals_that_reach_every_process_of_the_program_end_no_worker():
    memory = allocate_rows(SPACE, 2, functools.partial(context_of_workers().RawArray, "B"))
    worker = Process(functools.partial(episodes, probe_envs.Counter), memory, 0)
    worker.send("begin", 0)
    worker.receive()
    server = psutil.Process(worker.process.pid).ppid()
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        for pid in (worker.process.pid, server):
            os.kill(pid, number)
        worker.send("step", 2)
        assert worker.receive(iter(range(60)))[0] == MID
        assert alive(server)
    worker.leave()
    worker.close()
    assert worker.process.exitcode == 0


def test_child_processes_count_as_memory_and_die_with_the_worker():
    memory = allocate_rows(SPACE, 2, functools.partial(context_of_workers().RawArray, "B"))
    worker = Process(functools.partial(episodes, probe_envs.Parent), memory, 0)
    worker.send("begin", 0)
    worker.receive()
    own = psutil.Process(worker.process.pid).memory_info().rss / 2**30
    whole = worker.memory()
    child = int(view_rows(SPACE, 2, memory)[0, 2])
    assert alive(child)
    worker.send("step", 0)
    worker.leave()  # amid a step
    worker.close()
    deadline = time.monotonic() + 10
    while alive(child):
        assert time.monotonic() < deadline, "it outlives the worker"
        time.sleep(0.05)
    assert whole > own + 0.0002  # which even `sleep` takes


def alive(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False
