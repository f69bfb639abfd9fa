"""Runs the training command with several seeds and settings, and tabulates the evaluations.

    python experiments/seeds.py FOLDER [--seeds 0 1 2] [--cores 2] [--vary KEY=A,B] -- OPTION ...

Each combination of varied values and a seed is one run in FOLDER/VALUES-sSEED, `--cores` runs at a
time on one core each. Stopped runs are resumed, complete ones only read. Prints a Markdown table
with the mean return of every seed's last evaluation.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from queue import Queue


def run(folder: Path, options: list[str], cores: "Queue[int]") -> None:
    """Trains in `folder` on one core; appends the seconds of this start to seconds.txt."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "dreamer.train", f"run.dir={folder}/run", *options]
    core = cores.get()
    start = time.perf_counter()
    try:
        with open(folder / "output.txt", "a") as output:
            done = subprocess.run(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
                preexec_fn=lambda: os.sched_setaffinity(0, {core}),
            )
        if done.returncode:
            reason = (folder / "output.txt").read_text().splitlines()[-1:]
            raise SystemExit(f"{folder} failed, see its output.txt: {''.join(reason)}")
    finally:
        cores.put(core)
        with open(folder / "seconds.txt", "a") as seconds:
            print(time.perf_counter() - start, file=seconds)


def evaluations(folder: Path) -> list[tuple[int, float]]:
    """(environment step, mean return) of every evaluation of a run."""
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [(row["step"], row["eval/mean"]) for row in rows if "eval/mean" in row]


def minutes_of(folder: Path) -> float:
    """Minutes of a run over all its starts."""
    return sum(map(float, (folder / "seconds.txt").read_text().split())) / 60


def split(argv: list[str]) -> tuple[list[str], list[str]]:
    """The arguments before and after `--`: of this script, and of training."""
    end = argv.index("--") if "--" in argv else len(argv)
    return argv[:end], argv[end + 1 :]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--vary", nargs="*", default=[], metavar="KEY=A,B")
    own, options = split(sys.argv[1:])
    args = parser.parse_args(own)
    keys = [text.split("=", 1)[0] for text in args.vary]
    choices = [text.split("=", 1)[1].split(",") for text in args.vary]
    cores: Queue[int] = Queue()
    for core in sorted(os.sched_getaffinity(0))[: args.cores]:
        cores.put(core)
    jobs, running = {}, []
    with ThreadPoolExecutor(args.cores) as pool:
        for seed, values in itertools.product(args.seeds, itertools.product(*choices)):
            varied = [f"{key}={value}" for key, value in zip(keys, values, strict=True)]
            folder = args.folder / "-".join([*values, f"s{seed}"])
            full = [*options, *varied, f"seed={seed}"]
            jobs[values, seed] = folder
            running.append(pool.submit(run, folder, full, cores))
        for job in as_completed(running):
            if job.exception():  # the others might run for hours
                pool.shutdown(cancel_futures=True)
                job.result()
    seeds = [f"seed {seed}" for seed in args.seeds]
    header = [*keys, *seeds, "mean over evaluations", "minutes per run"]
    print(f"| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for values in itertools.product(*choices):
        folders = [jobs[values, seed] for seed in args.seeds]
        curves = [[score for _, score in evaluations(folder)] for folder in folders]
        last = [f"{curve[-1]:.1f}" for curve in curves]
        over = sum(sum(curve) / len(curve) for curve in curves) / len(curves)
        minutes = ", ".join(f"{minutes_of(folder):.1f}" for folder in folders)
        print(f"| {' | '.join([*values, *last])} | {over:.1f} | {minutes} |")


if __name__ == "__main__":
    main()
