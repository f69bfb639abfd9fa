"""Injects faults into training runs and reports the outcome.

    python experiments/faults.py FOLDER [--times 5] [--seed 0] [--only WORD]

The run is the small one of `kill_anywhere.py`, which tests kills. It is trained once undisturbed;
then each fault is injected into equal runs at random moments, and a run that ended is resumed by
the same command. Prints a Markdown table: how often, how many runs completed, the most steps
repeated, and how many runs are bit-identical to the undisturbed one. Status 1 if a run did not
complete, or differs although it should not: only restarted environments continue differently.
"""

import argparse
import contextlib
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import psutil
from kill_anywhere import TINY, Trial, fingerprint

from dreamer.checkpoint import manager

LONGEST = 300.0  # seconds to wait for anything


@dataclass
class Run:
    """A run with a fault."""

    trial: Trial
    rng: random.Random
    process: subprocess.Popen | None = None
    lost: int = 0  # steps repeated

    def start(self) -> subprocess.Popen:
        self.process = self.trial.start()
        return self.process

    @property
    def step(self) -> int:
        file = self.trial.folder / "metrics.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        return max((int(line[9:].split(",")[0]) for line in lines if line[9:]), default=0)

    def begin(self) -> subprocess.Popen:
        """Starts it and waits for a random moment after its first checkpoint."""
        process, moment = self.start(), self.rng.randint(100, 500)
        self.wait(lambda: self.step >= moment)
        return process

    def wait(self, come: Callable[[], bool]) -> None:
        """Waits for a condition, or for the process to end."""
        end = time.monotonic() + LONGEST
        while self.process and self.process.poll() is None and not come():
            if time.monotonic() > end:
                raise TimeoutError(self.trial.output)
            time.sleep(0.001)

    def ended(self) -> int:
        """The exit status, once there is one."""
        assert self.process
        return self.process.wait(LONGEST)

    def resume(self) -> None:
        """Resumes it and counts the repeated steps."""
        before = self.step
        self.start()
        self.wait(lambda: "resumed" in self.trial.said())
        found = self.trial.said().partition("resumed ")[2].partition(" at step ")[2]
        self.lost = before - int(found.split()[0].rstrip(";").replace(",", ""))

    def worker(self) -> psutil.Process:
        """A worker process of an environment."""
        assert self.process
        below = psutil.Process(self.process.pid).children(recursive=True)
        return self.rng.choice([each for each in below if each.ppid() != self.process.pid])

    @property
    def newest(self) -> Path:
        checkpoints = self.trial.folder / "checkpoints"
        return checkpoints / str(manager.newest(checkpoints))


def terminated(run: Run) -> None:
    run.begin().send_signal(signal.SIGTERM)
    assert run.ended() == 0
    run.resume()


def saved_on_request(run: Run) -> None:
    run.begin().send_signal(signal.SIGUSR1)


def interrupted_twice(run: Run) -> None:
    process = run.begin()
    process.send_signal(signal.SIGINT)
    time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    run.ended()  # 130, or 0 where the first was enough
    run.resume()


def damaged(run: Run) -> None:
    run.begin().send_signal(signal.SIGTERM)
    assert run.ended() == 0
    file = run.rng.choice(sorted(path for path in run.newest.rglob("*") if path.is_file()))
    data = bytearray(file.read_bytes())
    how = run.rng.choice(["flip", "cut", "remove"])
    file.unlink()
    if how == "flip":
        data[run.rng.randrange(len(data))] ^= 1 << run.rng.randrange(8)
    if how != "remove":
        file.write_bytes(data[: len(data) // 2] if how == "cut" else data)
    run.resume()


def folder_removed(run: Run) -> None:
    run.begin()
    shutil.rmtree(run.trial.folder, ignore_errors=True)


def no_room(run: Run) -> None:
    """Limits files to 100 bytes for some seconds in which a checkpoint is due."""
    process = psutil.Process(run.begin().pid)
    process.rlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
    process.send_signal(signal.SIGUSR1)
    time.sleep(run.rng.uniform(0.5, 2))
    with contextlib.suppress(psutil.NoSuchProcess):  # which then has not reached its end
        process.rlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def started_twice(run: Run) -> None:
    first, offset = run.begin(), run.trial.offset
    first.send_signal(signal.SIGSTOP)  # or it might be done before the second has started
    assert run.start().wait(LONGEST) == 2
    first.send_signal(signal.SIGCONT)
    run.process, run.trial.offset = first, offset


def worker_killed(run: Run) -> None:
    run.begin()
    run.worker().kill()


def worker_hangs(run: Run) -> None:
    run.begin()
    run.worker().suspend()


@dataclass(frozen=True)
class Fault:
    """A fault to inject."""

    name: str
    happens: Callable[[Run], None]
    equal: bool = True  # whether the run ends as the undisturbed one
    options: tuple[str, ...] = ()


WORKERS = ("env.workers=process", "env.timeout=5")
FAULTS = (
    Fault("SIGTERM", terminated),
    Fault("SIGUSR1", saved_on_request),
    Fault("Ctrl-C twice", interrupted_twice),
    Fault("one file of the newest checkpoint with a flipped bit, truncated or removed", damaged),
    Fault("run folder removed while it trains", folder_removed),
    Fault("disk full while it trains", no_room),
    Fault("started a second time while it trains", started_twice),
    Fault("worker of an environment killed", worker_killed, False, WORKERS),
    Fault("worker of an environment hangs", worker_hangs, False, WORKERS),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="faults with this word in their name")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_platforms", "cpu")
    whole = Trial(args.folder / "whole", TINY)
    if whole.start().wait():
        raise SystemExit(f"{whole.output}: {whole.said().splitlines()[-1]}")
    expected, rng, well = fingerprint(whole.folder), random.Random(args.seed), True

    print("| fault | times | completed | most steps repeated | bit-identical |")
    print("|---|---|---|---|---|")
    for fault in (fault for fault in FAULTS if args.only in fault.name):
        reached = equal = lost = 0
        for time_ in range(args.times):
            name = f"{FAULTS.index(fault)}-{time_}"
            run = Run(Trial(args.folder / name, [*TINY, *fault.options]), rng)
            fault.happens(run)
            done = run.ended() == 0 and f"{run.newest.name}" == "600"
            reached += done
            equal += done and fingerprint(run.trial.folder) == expected
            lost = max(lost, run.lost)
        ends = f"{equal} of {args.times}" if fault.equal else "not asked"
        print(f"| {fault.name} | {args.times} | {reached} | {lost} | {ends} |", flush=True)
        well &= reached == args.times and (equal == args.times or not fault.equal)
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
