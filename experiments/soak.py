"""Trains for a long time with all features enabled and plots the memory of all processes.

    python experiments/soak.py FOLDER [--steps 200000] [--every 1] [-- OPTION ...]

A small agent trains on CartPole from pixels in worker processes, with prefetching, lagged policy
weights, and frequent evaluations, videos, checkpoints and logs. FOLDER contains the run, memory.csv
(seconds, environment steps, bytes) and memory.svg. Memory is resident memory, shared pages counted
once. Warm-up is the first quarter of the steps, while replay fills. Prints how much the median of
the last tenth exceeds that of the tenth after the warm-up; status 1 if by more than 2%, or if the
run fails.
"""

import argparse
import csv
import math
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import psutil

EVERYTHING = [
    *("env.task=CartPole-v1", "env.pixels=true", "env.image_size=[16,16]", "env.num_envs=8"),
    *("env.workers=process", "platform=cpu", "devices=1", "agent.compute_dtype=float32"),
    *("agent.units=16", "agent.depth=4", "agent.rssm.deter=16", "agent.rssm.hidden=8"),
    *("agent.rssm.stoch=2", "agent.rssm.classes=4", "agent.encoder.mults=[1,1]"),
    *("agent.decoder.mults=[1,1]", "agent.decoder.blocks=4", "agent.returns.imagination=3"),
    *("replay.capacity=40000", "replay.batch_size=4", "replay.batch_length=16"),
    *("replay.train_ratio=1", "replay.prefetch=thread", "run.policy_device=cpu"),
    *("run.policy_lag=1", "checkpoint.every_steps=4000", "eval.every=8000", "eval.episodes=8"),
    *("log.video_every=8000", "log.every_seconds=2", "log.tensorboard=true", "log.progress=plain"),
]
WARM_UP, PART = 0.25, 0.1  # of the steps
MOST = 0.02  # that memory may grow
WIDTH, HEIGHT, MARGIN = 800, 320, 60  # of the picture
LINES, TICK = 5, 50 * 2**20  # across it; bytes of which each is a multiple

Sample = tuple[float, int, int]  # seconds, steps, bytes


def memory(process: psutil.Process) -> int:
    """Resident bytes of a process and its descendants."""
    total = 0
    for each in [process, *process.children(recursive=True)]:
        try:
            total += each.memory_full_info().pss
        except psutil.Error:  # it has ended
            continue
    return total


def step_of(run: Path) -> int:
    """The environment step of the last complete line of metrics."""
    path = run / "metrics.jsonl"
    if not path.exists():
        return 0
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - 20_000))
        found = re.findall(rb'^{"step": (\d+)', file.read(), re.MULTILINE)
    return int(found[-1]) if found else 0


def watch(command: list[str], run: Path, every: float) -> tuple[list[Sample], int]:
    """Samples memory while a command runs; returns the samples and its exit status."""
    began, samples = time.monotonic(), []
    with open(run.with_suffix(".txt"), "w") as output:
        training = subprocess.Popen(command, stdout=output, stderr=output)
        process = psutil.Process(training.pid)
        while training.poll() is None:
            try:
                samples.append((time.monotonic() - began, step_of(run), memory(process)))
            except psutil.Error:
                break
            time.sleep(every)
        return samples, training.wait()


def median(samples: list[Sample], steps: int, first: float, last: float) -> float:
    """Median memory between two fractions of the steps."""
    chosen = [size for _, step, size in samples if first * steps <= step <= last * steps]
    return statistics.median(chosen)


def picture(samples: list[Sample], steps: int) -> str:
    """Memory over steps as SVG."""
    top = TICK * LINES * math.ceil(max(size for *_, size in samples) / (TICK * LINES))

    def place(step: float, size: float) -> tuple[float, float]:
        across, up = step / steps, size / top
        return MARGIN + across * (WIDTH - 2 * MARGIN), HEIGHT - MARGIN - up * (HEIGHT - 2 * MARGIN)

    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(s, size) for _, s, size in samples))
    warm, right, base = place(WARM_UP * steps, 0)[0], WIDTH - MARGIN, HEIGHT - MARGIN
    parts = [f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>']
    parts.append(
        f'<rect x="{MARGIN}" y="{MARGIN}" width="{warm - MARGIN:.1f}" '
        f'height="{base - MARGIN}" fill="#eee"/>'
    )
    parts.append(f'<text x="{MARGIN + 6}" y="{MARGIN + 16}">warm-up</text>')
    for part in range(LINES + 1):
        size, step = top * part / LINES, steps * part // LINES
        y, x = place(0, size)[1], place(step, 0)[0]
        parts.append(f'<path d="M{MARGIN} {y:.1f}H{right}" stroke="#ccc"/>')
        parts.append(f'<text x="4" y="{y + 4:.1f}">{size / 2**20:.0f} MiB</text>')
        parts.append(f'<text x="{x:.1f}" y="{base + 18}" text-anchor="middle">{step:,}</text>')
    parts.append(f'<polyline points="{line}" fill="none" stroke="#06c" stroke-width="1.5"/>')
    parts.append(
        f'<text x="{WIDTH / 2}" y="{HEIGHT - 16}" text-anchor="middle">environment steps</text>'
        f'<text x="{MARGIN}" y="{MARGIN - 20}">memory of all processes of a run</text>'
    )
    size = f'width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}"'
    font = 'font-family="sans-serif" font-size="12"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {font}>{"".join(parts)}</svg>\n'


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=200_000)
    parser.add_argument("--every", type=float, default=1.0, help="seconds between samples")
    end = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    args = parser.parse_args(sys.argv[1:end])
    given = dict(option.split("=", 1) for option in (*EVERYTHING, *sys.argv[end + 1 :]))
    run = args.folder / "run"
    args.folder.mkdir(parents=True, exist_ok=True)
    options = [f"{key}={value}" for key, value in given.items()]
    command = [sys.executable, "-m", "dreamer.train", *options]
    samples, status = watch(
        [*command, f"run.steps={args.steps}", f"run.dir={run}"], run, args.every
    )
    with open(args.folder / "memory.csv", "w", newline="") as file:
        csv.writer(file).writerows([("seconds", "steps", "bytes"), *samples])
    (args.folder / "memory.svg").write_text(picture(samples, args.steps))
    if status:
        raise SystemExit(f"the run ended with status {status}, see {run.with_suffix('.txt')}")
    before = median(samples, args.steps, WARM_UP, WARM_UP + PART)
    after = median(samples, args.steps, 1 - PART, 1)
    growth = after / before - 1
    print(f"{before / 2**20:.1f} MiB after the warm-up, {after / 2**20:.1f} MiB at the end")
    print(f"{growth:+.2%}; {MOST:.0%} is allowed")
    return int(growth > MOST)


if __name__ == "__main__":
    sys.exit(main())
