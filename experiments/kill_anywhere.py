"""Kills training by `kill -9` at random moments, resumes it by the same command, and compares.

    python experiments/kill_anywhere.py FOLDER [--kills 100] [--seed 0] [-- OPTION ...]

A small run is trained once without interruption (FOLDER/whole). Equal runs (FOLDER/0, FOLDER/1,
...) are killed repeatedly: half of the kills at random moments, the others while a given file is
being written. After every kill all checkpoints are compared with their checksums, and the next
start must resume the newest. A completed run must be bit-identical to the uninterrupted one:
weights, optimiser, replay, counters and environments. Prints a Markdown table of what the run was
doing when it was killed, and exits with status 1 on any mistake. OPTIONs are passed to training.
"""

import argparse
import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dreamer.checkpoint import arrays, manager, storage
from dreamer.checkpoint.storage import DOCUMENT

TINY = [
    *("env.task=CartPole-v1", "env.num_envs=2", "run.steps=600", "platform=cpu", "devices=1"),
    *("agent.compute_dtype=float32", "agent.units=16", "agent.depth=4"),
    *("agent.rssm.deter=16", "agent.rssm.hidden=8", "agent.rssm.stoch=2", "agent.rssm.classes=4"),
    *("agent.encoder.layers=1", "agent.decoder.layers=1", "agent.decoder.blocks=4"),
    *("agent.rssm.prior_layers=1", "agent.actor.layers=1", "agent.critic.layers=1"),
    *("agent.returns.imagination=3", "agent.optimizer.warmup=0", "replay.capacity=400"),
    *("replay.batch_size=4", "replay.batch_length=8", "replay.train_ratio=8"),
    *("checkpoint.every_steps=40", "log.video_every=60", "log.every_seconds=0"),
    *("log.progress=plain", "eval.num_envs=1"),
]
# The same program, which dumps its stack on a signal right before it is killed.
START = """
import faulthandler, runpy, signal, sys
faulthandler.register(signal.SIGUSR2, open(sys.argv.pop(1), "w"))
runpy.run_module("dreamer.train", run_name="__main__", alter_sys=True)
"""
# Files that exist while something is written.
WRITES = {
    "a checkpoint": "checkpoints/*.tmp/state",
    "the replay": "checkpoints/*.tmp/replay",
    "the checksums": "checkpoints/*.tmp/.*.tmp",
    "a video": "videos/.*.tmp",
}
# Part of the stack -> activity; the first match counts.
DOING = {
    r"video\.py|writers\.py.* in video": "writing a video",
    r"hooks/evaluation\.py": "recording a video",
    r"in (_save|save|get_arrays)$": "starting to save",
    r"in (train|sample|_take)$": "updating",
    r"policy\.py": "acting",
    r"in advance": "stepping and adding to replay",
    r"in (after|run|notify|on_step)$": "logging",
    r"": "starting",
}


@dataclass
class Row:
    """Results of the kills during one activity."""

    kills: int = 0
    lost: int = 0  # steps, at most
    again: float = 0.0  # seconds from the next start until it has resumed, at most


@dataclass
class Trial:
    """A run that is killed."""

    folder: Path
    options: list[str]
    newest: int = -1  # checkpoint at the last kill
    logged: int = 0  # step at the last kill
    doing: str = ""  # then
    mistakes: list[str] = field(default_factory=list)

    def start(self) -> subprocess.Popen:
        self.output = self.folder.with_suffix(".txt")
        self.stack = self.folder.with_suffix(".stack")
        self.began, self.offset = time.monotonic(), size(self.output)
        command = [sys.executable, "-c", START, str(self.stack)]
        with open(self.output, "a") as output:
            return subprocess.Popen(
                [*command, *self.options, f"run.dir={self.folder}"],
                **{"stdout": output, "stderr": output, "env": environment(self.folder.parent)},
            )

    def said(self) -> str:
        """The output of the last start so far."""
        with open(self.output) as output:
            output.seek(self.offset)
            return output.read()

    def kill(self, process: subprocess.Popen) -> None:
        """Records what the process does, kills it, and checks its files."""
        process.send_signal(signal.SIGUSR2)
        end = time.monotonic() + 0.02
        while size(self.stack) == 0 and time.monotonic() < end:
            time.sleep(0.0005)
        process.kill()
        process.wait()
        self.doing = self.what_it_did()
        lines = text(self.folder / "metrics.jsonl").splitlines()
        steps = [int(found[1]) for line in lines if (found := re.match(r'{"step": (\d+)', line))]
        self.logged = max(steps, default=0)
        self.check_files()

    def what_it_did(self) -> str:
        for what, pattern in WRITES.items():
            if what != "a checkpoint" and matches(self.folder, pattern):
                return f"writing {what}"
        half = matches(self.folder, "checkpoints/*.tmp")
        if half and any((path / DOCUMENT).exists() for path in half):
            return "deleting an old checkpoint, or renaming a new one"
        if half:
            return "writing a checkpoint"
        stack = text(self.stack).partition("most recent call first):\n")
        main = text(self.stack).rpartition("Current thread")[2] or stack[2]
        return next(name for part, name in DOING.items() if re.search(part, main, re.MULTILINE))

    def check_files(self) -> None:
        """Checks that every checkpoint is intact, and that the newest before still exists."""
        there = manager.steps(self.folder / "checkpoints")
        for step in there:
            path = self.folder / "checkpoints" / str(step)
            try:
                storage.check(path, storage.read(path))
            except storage.UserError as error:
                self.mistakes.append(str(error))
        newest = max(there, default=-1)
        if newest < self.newest:
            self.mistakes.append(f"{self.folder}: checkpoint {self.newest} is lost")
        self.newest = newest

    def check_start(self) -> None:
        """Checks that the last start resumed the newest checkpoint without a warning."""
        said = self.said()
        resumed = re.search(r"resumed \S+ at step ([\d,]+)", said)
        if self.newest >= 0 and (not resumed or int(resumed[1].replace(",", "")) != self.newest):
            self.mistakes.append(f"{self.output}: did not resume step {self.newest}")
        for line in said.splitlines():
            if re.search("warning|error|Traceback", line, re.IGNORECASE):
                self.mistakes.append(f"{self.output}: {line}")


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def text(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


def environment(folder: Path) -> dict[str, str]:
    """The environment of a process that shares the compilation cache."""
    cache = {"JAX_COMPILATION_CACHE_DIR": str((folder / "cache").absolute())}
    return os.environ | cache | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}


def matches(folder: Path, pattern: str) -> list[Path]:
    """The files of a pattern; none where a folder is removed during the search."""
    with contextlib.suppress(FileNotFoundError):
        return list(folder.glob(pattern))
    return []


def moment(trial: Trial, rng: random.Random, seconds: float) -> Callable[[], bool]:
    """A random moment of a start, as a predicate.

    Args:
        trial: the run.
        rng: chooses.
        seconds: that the whole run takes.
    """
    if rng.random() < 0.5:
        after = rng.uniform(0, seconds)
        return lambda: time.monotonic() - trial.began > after
    pattern = rng.choice(list(WRITES.values()))
    count, delay = rng.randint(1, 3), rng.uniform(0, 0.02)
    seen: list[str] = []

    def come() -> bool:
        found = [str(path) for path in matches(trial.folder, pattern)]
        new = [path for path in found if path not in seen]
        seen.extend(new)
        if len(seen) < count:
            return False
        time.sleep(delay if rng.random() < 0.5 else 0)
        return True

    return come


def fingerprint(folder: Path) -> dict[str, Any]:
    """The final checkpoint of a run without its name, arrays as bytes."""
    path = folder / "checkpoints" / str(manager.newest(folder / "checkpoints"))
    about = storage.read(path)
    saved_arrays = {part: arrays.read(path / part) for part in ("state", "replay")}
    leaves = jax.tree_util.tree_leaves_with_path(saved_arrays)
    saved = {jax.tree_util.keystr(name): np.asarray(leaf).tobytes() for name, leaf in leaves}
    return saved | {name: json.dumps(part) for name, part in about.meta.items() if name != "run"}


def train(trial: Trial, rng: random.Random, seconds: float, kills: int, rows: dict) -> int:
    """Kills and resumes a run up to `kills` times; returns how often."""
    done = 0
    while True:
        process = trial.start()
        come = moment(trial, rng, seconds) if done < kills else lambda: False
        again = 0.0
        while process.poll() is None and not come():
            if not again and trial.newest >= 0 and "resumed" in trial.said():
                again = time.monotonic() - trial.began
            time.sleep(0.0005)
        if again:
            rows[trial.doing].again = max(rows[trial.doing].again, again)
        if again or process.poll() is not None or "and restarts" in trial.said():
            trial.check_start()
        if process.poll() is not None:
            if process.returncode:
                trial.mistakes.append(f"{trial.output}: ended with status {process.returncode}")
            return done
        trial.kill(process)
        done += 1
        row = rows[trial.doing]
        row.kills += 1
        if trial.doing != "starting":  # which loses no more than the previous kill
            row.lost = max(row.lost, trial.logged - max(trial.newest, 0))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    end = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    args = parser.parse_args(sys.argv[1:end])
    given = dict(option.split("=", 1) for option in (*TINY, *sys.argv[end + 1 :]))
    options = [f"{key}={value}" for key, value in given.items()]
    args.folder.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_platforms", "cpu")

    for name in ("first", "whole"):  # the first compiles
        whole = Trial(args.folder / name, options)
        process = whole.start()
        if process.wait():
            raise SystemExit(f"{whole.output}: {whole.said().splitlines()[-1]}")
        seconds = time.monotonic() - whole.began
    expected = fingerprint(args.folder / "whole")

    rng, rows = random.Random(args.seed), defaultdict(Row)
    kills, runs, mistakes = 0, 0, []
    while kills < args.kills:
        trial = Trial(args.folder / str(runs), options)
        kills += train(trial, rng, seconds, args.kills - kills, rows)
        found = fingerprint(trial.folder) if not trial.mistakes else {}
        other = [name for name in expected if found.get(name) != expected[name]]
        if other or found.keys() != expected.keys():
            trial.mistakes.append(f"{trial.folder} differs in {len(other)} parts: {other[:3]}")
        mistakes += trial.mistakes
        runs += 1
        print(f"{kills} kills, {runs} runs, {len(mistakes)} mistakes", file=sys.stderr)

    print("| killed while | times | most steps lost | most seconds until resumed |")
    print("|---|---|---|---|")
    for doing, row in sorted(rows.items(), key=lambda item: -item[1].kills):
        print(f"| {doing} | {row.kills} | {row.lost} | {row.again:.1f} |")
    equal = runs - len({line for line in mistakes if " differs in " in line})
    print(f"\n{kills} kills of {runs} runs; {equal} are bit-identical to the uninterrupted one")
    for line in mistakes:
        print(f"mistake: {line}", file=sys.stderr)
    return 1 if mistakes else 0


if __name__ == "__main__":
    sys.exit(main())
