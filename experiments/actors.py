"""Measures how steps per second scale with Ray actors for slow environments.

    python experiments/actors.py FOLDER [--actors 1 2 4] [--milliseconds 20] [--seconds 40]
        [-- OPTION ...]

Each actor has one environment whose step sleeps. The same environments are also stepped without
actors, sequentially in the learner process and in one process each. Prints a Markdown table of
environment steps per second over the second half of each run. FOLDER contains the runs; OPTIONs
are passed to training.
"""

import argparse
import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

ROOT = Path(__file__).resolve().parent.parent
EPISODE = 20  # steps; a line of metrics comes with every end
FORMS = {
    "sequentially": ("env.workers=serial",),
    "one process each": ("env.workers=process",),
    "in actors": ("run.actors=ray",),
}


class Slow(gymnasium.Env):
    """Sleeps in each step; observations and rewards are constant."""

    observation_space = spaces.Box(-1, 1, (4,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, milliseconds: float) -> None:
        self._seconds = milliseconds / 1000

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self._left = EPISODE
        return np.zeros(4, np.float32), {}

    def step(self, action: Any) -> Any:
        time.sleep(self._seconds)
        self._left -= 1
        return np.zeros(4, np.float32), 1.0, False, self._left == 0, {}


def steps_per_second(folder: Path, options: list[str]) -> float:
    """Trains in `folder`; the rate of the second half of the run."""
    command = [sys.executable, "-m", "dreamer.train", f"run.dir={folder}", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\nfailed: {done.stderr.strip()}")
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    ended = [(row["step"], row["time"]) for row in rows if "episode/length" in row]
    first = next(row for row in ended if 2 * row[0] >= ended[-1][0])
    return (ended[-1][0] - first[0]) / (ended[-1][1] - first[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--actors", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--milliseconds", type=float, default=20)
    parser.add_argument("--seconds", type=float, default=40, help="that a run takes if it scales")
    parser.add_argument("options", nargs="*", help="for the training command, after --")
    given = parser.parse_args()
    print(f"| environments | {' | '.join(FORMS)} | actors against one |", flush=True)
    print(f"|---|{'---|' * len(FORMS)}---|", flush=True)
    one = math.nan
    for count in given.actors:
        steps = int(count * given.seconds * 1000 / given.milliseconds)
        common = [
            *("env.entry_point=experiments.actors:Slow", f"env.num_envs={count}"),
            f"env.kwargs={{milliseconds: {given.milliseconds:g}}}",
            *(f"run.steps={steps}", "replay.train_ratio=2", "replay.capacity=100000"),
            *("replay.batch_size=8", "replay.batch_length=32"),  # updates from step 288 on
            *("log.tensorboard=false", "log.progress=none", "platform=cpu"),
        ]
        rates = []
        for number, form in enumerate(FORMS.values()):
            folder = given.folder.absolute() / f"{count}-{number}"
            actors = [f"run.num_actors={count}"] if "run.actors=ray" in form else []
            rates.append(steps_per_second(folder, [*common, *form, *actors, *given.options]))
        one = rates[-1] if math.isnan(one) else one
        cells = " | ".join(f"{rate:.1f}" for rate in rates)
        print(f"| {count} | {cells} | {rates[-1] / one:.2f} |", flush=True)


if __name__ == "__main__":
    main()
