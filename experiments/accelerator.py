"""Runs all benchmarks on an accelerator within minutes, most important first.

    python experiments/accelerator.py OUT --minutes 10 [--stages updates,tests] [--reference PATH]
    python experiments/accelerator.py OUT --smoke          every stage at tiny sizes, on CPU
    python experiments/accelerator.py OUT --table          prints the table of results

Stages run sequentially, each in subprocesses with a time limit. Rows are written before the next
command starts, so an interrupted run only loses the current command. OUT has a folder per kind of
machine:

    rows.jsonl   one line per command: options, status, rows or facts; append-only
    cache/       compiled programs, reused by the next run
    logs/        output of the commands
    pong/        the run of the last stage, resumed by the next run
"""

import argparse
import contextlib
import gzip
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dreamer.bench import report
from dreamer.errors import UserError, exit_on_user_error, nearest
from dreamer.logs import summary

ROOT = Path(__file__).resolve().parent.parent
TESTS = (
    *("tests/test_golden.py", "tests/agents/dreamer/test_world_model.py"),
    *("tests/nets/test_layers.py", "tests/nets/test_forms.py", "tests/ops/test_recurrence.py"),
    *("tests/ops/test_convolution.py", "tests/ops/test_optim.py", "tests/ops/test_packing.py"),
    *("tests/ops/test_returns.py", "tests/ops/test_transforms.py"),
)
GRAPHS = "--xla_gpu_enable_command_buffer=+WHILE --xla_gpu_command_buffer_unroll_loops=true"
TINY = (
    *("agent.units=16", "agent.depth=4", "agent.rssm.deter=16", "agent.rssm.hidden=8"),
    *("agent.rssm.blocks=4", "agent.rssm.stoch=2", "agent.rssm.classes=4"),
    *("agent.rssm.prior_layers=1", "agent.encoder.layers=1", "agent.encoder.mults=[1,1]"),
    *("agent.decoder.blocks=4", "agent.decoder.layers=1", "agent.decoder.mults=[1,1]"),
    *("agent.actor.layers=1", "agent.critic.layers=1", "agent.returns.imagination=3"),
    *("replay.batch_size=4", "replay.batch_length=8"),
)
# Compiles in four fifths of the time, to slower code.
QUICK = (("JAX_DISABLE_MOST_OPTIMIZATIONS", "1"),)
ENDING = 20.0  # seconds that a command has to end after SIGTERM
LEAST = 15.0  # seconds below which no stage starts


@dataclass(frozen=True)
class Visit:
    """One call of this script on one kind of machine."""

    folder: Path  # of the machine
    device: str
    platform: str  # of jax: cpu, gpu or tpu
    count: int  # devices
    deadline: float  # of `time.monotonic`
    smoke: bool

    @property
    def left(self) -> float:
        return self.deadline - time.monotonic()


@dataclass(frozen=True)
class Command:
    """One process: its command and how to parse its results."""

    argv: Sequence[str]
    read: Callable[[Path, str], dict[str, Any]]  # of its folder and output: results or facts
    options: tuple[str, ...] = ()  # KEY=VALUE, to distinguish its rows
    env: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Stage:
    """Commands under one name and limit; `{folder}` in an argument is a folder for their files."""

    name: str
    about: str
    seconds: float
    commands: Sequence[Command]


# ------------------------------------------------------------------------------------------ stages


def stages(visit: Visit, reference: Path | None) -> list[Stage]:
    """All stages, most important first."""
    smoke, both = visit.smoke, "vector,image"
    small, large = ("nano", "nano") if smoke else ("1m", "12m")
    bench = _bench_smoke if smoke else _bench
    counts = (1, 256) if smoke else (1, 16, 256)
    devices = [2**n for n in range(8) if 2**n <= visit.count]
    found = [
        Stage("limits", "a matrix product and a copy", 60, [bench("limits", "", "vector")]),
        Stage(
            "updates",
            "updates at the defaults",
            300,
            [bench("update", small if smoke else f"{small},{large}", both)],
        ),
        Stage("tests", "golden numbers and plain forms on this device", 180, [_tests(visit)]),
        *(
            Stage(
                f"kernels_{observation}",
                f"what one update with {observation} starts, and how busy the device is",
                90,
                [_profile(bench, large, observation)],
            )
            for observation in ("vector", "image")
        ),
        Stage(
            "factors",
            "updates with one setting changed",
            300,
            [
                bench("update", large, both, option)
                for option in (
                    *(() if smoke else ("agent.backward=scan",)),
                    "agent.backward=batched",
                    *(() if smoke else (f"xla_flags={GRAPHS}",)),
                    f"run.updates_per_call={2 if smoke else 16}",
                )
            ],
        ),
        Stage("loops", "whole training loops", 300, [*_loops(bench, small, large, smoke)]),
        Stage(
            "acting",
            "the policy",
            120,
            [bench("act", large, both, f"env.num_envs={n}") for n in counts],
        ),
        Stage("replay", "replay in device memory", 60, [bench("device_replay", large, both)]),
        Stage(
            "sizes", "larger updates", 240, [bench("update", "nano" if smoke else "50m,200m", both)]
        ),
    ]
    if len(devices) > 1:
        rows = [bench("update", large, both, f"devices={count}") for count in devices]
        found.append(Stage("devices", "the same update on several devices", 240, rows))
    if reference:
        rows = [_reference(reference, size) for size in ("1m", "12m")]
        found.append(Stage("reference", "updates of the published code", 300, rows))
    found.append(Stage("pong", "Atari 100k for the remaining time", 1e9, [_pong(visit)]))
    return found


def _bench(what: str, sizes: str, observations: str, *options: str, trace: bool = False) -> Command:
    argv = [
        *(sys.executable, "-m", "dreamer.bench", "--what", what, "--observations", observations),
        *("--seconds", "3", "--out", "{folder}/rows.json"),
        *(("--sizes", sizes) if sizes else ()),
        *(("--trace", "{folder}/trace", "--repeats", "5") if trace else ()),
    ]
    return Command([*argv, *options], _read_bench, options)


def _bench_smoke(
    what: str, sizes: str, observations: str, *options: str, trace: bool = False
) -> Command:
    fast = ("--repeats", "3", "--seconds", "0.2")
    observations = observations.partition(",")[0]
    command = _bench(what, sizes, observations, *options, trace=trace)
    return Command([*command.argv, *fast, *TINY], command.read, command.options, QUICK)


def _read_bench(folder: Path, output: str) -> dict[str, Any]:
    with contextlib.suppress(FileNotFoundError):
        content = json.loads((folder / "rows.json").read_text(encoding="utf-8"))
        keys = ("results", "git", "versions", "peak_device_bytes", "peak_host_bytes")
        return {key: content[key] for key in keys}
    return {}


def _tests(visit: Visit) -> Command:
    files = TESTS[-1:] if visit.smoke else TESTS
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files]
    # By default accelerators compute float32 products at lower precision.
    platforms = {"cpu": "cpu", "gpu": "cuda,cpu"}.get(visit.platform, f"{visit.platform},cpu")
    precise = ("JAX_DEFAULT_MATMUL_PRECISION", "highest")
    return Command(argv, _read_tests, env=(precise, ("DREAMER_TEST_PLATFORMS", platforms)))


def _read_tests(folder: Path, output: str) -> dict[str, Any]:
    counts = re.findall(r"(\d+) (passed|failed|error|skipped)", output)
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", output, re.MULTILINE)
    return {"facts": {word: int(number) for number, word in counts} | {"failing": failed}}


def _profile(bench: Callable[..., Command], size: str, observation: str) -> Command:
    command = bench("update", size, observation, trace=True)

    def read(folder: Path, output: str) -> dict[str, Any]:
        found = _read_bench(folder, output)
        if not found.get("results"):
            return found
        calls = found["results"][-1]["repeats"]
        return {"facts": profile(folder / "trace", calls)}  # its times are those of a profiler

    return replace(command, read=read)


def profile(folder: Path, calls: int) -> dict[str, Any]:
    """Statistics per call from a trace of several equal calls.

    Returns:
      launches: kernels that a call starts; busy: share of the time in which one runs; kernels: the
      ten that take longest, with seconds per call.
    """
    newest = max(folder.rglob("*.trace.json.gz"), key=lambda path: path.stat().st_mtime)
    with gzip.open(newest) as file:
        events = [event for event in json.load(file)["traceEvents"] if "ph" in event]
    named = {
        (event["name"], event["pid"], event.get("tid")): event["args"].get("name", "")
        for event in events
        if event["ph"] == "M"
    }
    on_device = {
        pid
        for (what, pid, _), name in named.items()
        if what == "process_name" and "/device" in name
    }
    kernels = []
    for event in events:
        if event["ph"] != "X":
            continue
        thread = named.get(("thread_name", event["pid"], event["tid"]), "")
        # Lines beside the streams repeat their kernels. On CPU operations say what they are.
        of_stream = event["pid"] in on_device and thread.startswith("Stream")
        if of_stream or (not on_device and "hlo_op" in event.get("args", {})):
            kernels.append(event)
    busy, until = 0.0, min(event["ts"] for event in kernels)
    start = until
    for event in sorted(kernels, key=lambda event: event["ts"]):
        end = event["ts"] + event["dur"]
        busy += max(0.0, end - max(until, event["ts"]))
        until = max(until, end)
    seconds: Counter[str] = Counter()
    for event in kernels:
        if not re.match(r"(while|call|conditional)\b", event["name"]):  # they contain others
            seconds[event["name"]] += event["dur"] / 1e6 / calls
    return {
        "launches": round(len(kernels) / calls),
        "busy": busy / (until - start),
        "kernels": dict(seconds.most_common(10)),
    }


def _loops(bench: Callable[..., Command], small: str, large: str, smoke: bool) -> Iterator[Command]:
    """At usual replay ratios."""
    atari = ("env=atari100k", "env.task=pong", *(("replay.capacity=2000",) if smoke else ()))
    yield bench("loop", large, "image", *atari)
    jax_envs = [("gymnax", "CartPole-v1"), ("craftax", "Craftax-Symbolic-v1"), ("brax", "ant")]
    for suite, task in jax_envs[:1] if smoke else jax_envs:
        for ratio in (32,) if smoke else (1, 32, 512):
            named = (f"env={suite}", f"env.task={task}", f"replay.train_ratio={ratio}")
            yield bench("loop", small, "vector", *named, f"env.num_envs={4 if smoke else 64}")


def _reference(path: Path, size: str) -> Command:
    """A run of the published code at so many updates per step that updates decide its speed."""
    argv = [
        *(sys.executable, str(path / "dreamerv3" / "main.py"), "--configs", "atari100k"),
        *(f"size{size}", "--logdir", "{folder}", "--logger.outputs", "jsonl"),
        *("--run.train_ratio", "65536", "--run.log_every", "10", "--run.report_every", "100000"),
    ]

    def read(folder: Path, output: str) -> dict[str, Any]:
        with contextlib.suppress(FileNotFoundError):
            lines = (folder / "metrics.jsonl").read_text().splitlines()
            rates = [row["fps/train"] for row in map(json.loads, lines) if row.get("fps/train")]
            if len(rates) > 1:  # the first has the compilation in it
                rate = sorted(rates[1:])[len(rates) // 2 - 1] / (16 * 64)  # batch size and length
                return {"facts": {"size": size, "updates_per_second": rate}}
        return {}

    return Command(argv, read, options=(f"size={size}",))


def _pong(visit: Visit) -> Command:
    """Trains until the time limit; the same folder resumes."""
    tiny = (*TINY, "run.steps=200", "size=nano", "replay.train_ratio=8") if visit.smoke else ()
    seconds = max(1.0, min(60.0, visit.left / 4))
    argv = [
        *(sys.executable, "-m", "dreamer.train", "env=atari100k", "env.task=pong"),
        *(() if tiny else ("size=12m",)),
        *(f"run.dir={visit.folder / 'pong'}", f"checkpoint.every_seconds={seconds:.0f}"),
        *("log.progress=plain", *tiny),
    ]

    def read(folder: Path, output: str) -> dict[str, Any]:
        return {"facts": curve(visit.folder / "pong")}

    return Command(argv, read, env=QUICK if visit.smoke else ())


def curve(run: Path) -> dict[str, Any]:
    """Of a run: its steps, the mean returns of tenths of its episodes, and steps per second since
    it last started.

    Returns:
      As well `hours_in_all`, what the whole run takes at this rate.
    """
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    episodes = [(row["step"], row["episode/return"]) for row in rows if "episode/return" in row]
    tenth = max(1, len(episodes) // 10)
    parts = [episodes[i : i + tenth] for i in range(0, len(episodes), tenth)]
    learned = [row for row in rows if "updates" in row and row["updates"]]
    recent = [row for row in learned if learned[-1]["time"] - row["time"] < 600]
    steps = rows[-1]["step"] if rows else 0
    facts: dict[str, Any] = {
        "steps": steps,
        "updates": learned[-1]["updates"] if learned else 0,
        "returns": [[part[-1][0], sum(score for _, score in part) / len(part)] for part in parts],
    }
    if len(recent) > 1 and recent[-1]["step"] > recent[0]["step"]:
        first, last = recent[0], recent[-1]
        rate = (last["step"] - first["step"]) / (last["time"] - first["time"])
        total = re.search(r"^  steps: (\d+)", (run / "config.yaml").read_text(), re.MULTILINE)
        facts |= {"steps_per_second": rate}
        facts |= {"hours_in_all": int(total[1]) / rate / 3600} if total else {}
    return facts


# ----------------------------------------------------------------------------------------- running


def perform(visit: Visit, stage: Stage) -> None:
    """Runs the commands of a stage within its limit and writes the rows of each at once."""
    end = time.monotonic() + min(stage.seconds, visit.left)
    print(f"\n== {stage.name}: {stage.about}, at most {end - time.monotonic():.0f} s", flush=True)
    for command in stage.commands:
        left = end - time.monotonic()
        if left < min(LEAST, stage.seconds):
            status, seconds, found = "not started: no time is left", 0.0, {}
        else:
            with tempfile.TemporaryDirectory() as folder:
                started = time.monotonic()
                status, output = execute(visit, stage.name, command, Path(folder), left)
                seconds = time.monotonic() - started
                try:
                    found = command.read(Path(folder), output)
                except Exception as error:
                    found = {}
                    status = f"failed: cannot be read: {type(error).__name__}: {error}"
        row = {
            "stage": stage.name,
            "status": status,
            "seconds": round(seconds, 1),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "device": visit.device,
            "options": list(command.options),
            "results": [],
            **found,
        }
        with open(visit.folder / "rows.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        named = " ".join(command.options) or "defaults"
        print(f"-- {stage.name}, {named}: {status}, {seconds:.0f} s", flush=True)
        if "facts" in row:
            print(json.dumps(row["facts"], indent=1), flush=True)


def execute(
    visit: Visit, stage: str, command: Command, folder: Path, seconds: float
) -> tuple[str, str]:
    """Runs one command; returns its status and output, which is also printed and logged."""
    argv = [argument.replace("{folder}", str(folder)) for argument in command.argv]
    cache = {"JAX_COMPILATION_CACHE_DIR": str(visit.folder / "cache")}
    env = os.environ | cache | {"PYTHONUNBUFFERED": "1", "PYTHONPATH": _python_path()}
    log = visit.folder / "logs" / f"{stage}.txt"
    log.parent.mkdir(exist_ok=True)
    with open(log, "a+b") as output:
        output.write(f"$ {' '.join(argv)}\n".encode())
        output.flush()
        begin = output.tell()
        process = subprocess.Popen(
            argv,
            **{"cwd": ROOT, "env": env | dict(command.env), "stdin": subprocess.DEVNULL},
            **{"stdout": output, "stderr": subprocess.STDOUT, "start_new_session": True},
        )
        try:
            code: int | None = process.wait(max(1.0, seconds - ENDING))
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(process, 1.0 if visit.smoke else ENDING)
        output.seek(begin)
        text = output.read().decode(errors="replace")
    print(text, end="", flush=True)
    if code is None:
        return "cut off at its limit", text
    last = text.strip().splitlines()[-1:] or [f"status {code}"]
    return ("done" if code == 0 else f"failed: {last[0]}"), text


def _end(process: subprocess.Popen, seconds: float) -> None:
    """Ends a process, which may save first, and its children."""
    with contextlib.suppress(ProcessLookupError):
        if process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(seconds)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _python_path() -> str:
    return os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))


def find_device(smoke: bool) -> tuple[str, str, int]:
    """The platform and kind of the devices, and how many there are.

    Raises:
      UserError: there is no accelerator.
    """
    code = "import jax; d = jax.devices(); print(d[0].platform, len(d), d[0].device_kind, sep='|')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:]
        raise UserError(f"jax finds no device: {' '.join(last)}")
    platform, count, kind = done.stdout.strip().split("|")
    if platform == "cpu" and not smoke:
        raise UserError(
            "jax finds no accelerator here; install jax for it, or try the script at tiny sizes "
            "with --smoke"
        )
    return platform, kind, int(count)


def table(out: Path) -> str:
    """The results as Markdown.

    Raises:
      UserError: there are none.
    """
    files = sorted(out.glob("*/rows.jsonl"))
    if not files:
        raise UserError(f"{out} holds no rows; measure first, with --minutes or --smoke")
    parts = []
    for file in files:
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        latest = {(row["stage"], *row["options"]): row for row in rows if row["status"] == "done"}
        parts.append(f"## {rows[-1]['device']}")
        lines = [
            [
                *report.cells(entry),
                " ".join(row["options"]),
                (row["git"] or {}).get("commit", "")[:7],
            ]
            for row in latest.values()
            for entry in row["results"]
        ]
        if lines:
            parts.append(summary.table((*report.COLUMNS, "options", "commit"), lines))
        facts = [row for row in latest.values() if "facts" in row]
        parts += [
            f"{row['stage']} {' '.join(row['options'])}: {json.dumps(row['facts'])}"
            for row in facts
        ]
    return "\n\n".join(parts)


# ------------------------------------------------------------------------------------ command line


class Parser(argparse.ArgumentParser):
    """Complains in one line."""

    def error(self, message: str) -> Any:
        raise UserError(f"{message}; see python experiments/accelerator.py --help")


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status; UserError is for the caller."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder for what is measured")
    parser.add_argument("--minutes", type=float, default=10.0, help="for all stages (10)")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, on any machine")
    parser.add_argument("--stages", default="", help="some of them, as in limits,updates")
    parser.add_argument("--reference", type=Path, help="checkout of the published code, to compare")
    parser.add_argument("--table", action="store_true", help="only print what OUT holds")
    given = parser.parse_args(argv)
    if given.table:
        print(table(given.out))
        return 0
    if not given.minutes > 0:
        raise UserError(f"--minutes {given.minutes:g}: must be more than 0")
    if given.reference and not (given.reference / "dreamerv3" / "main.py").is_file():
        raise UserError(
            f"--reference {given.reference} has no dreamerv3/main.py; name a checkout of "
            "the published code"
        )
    deadline = time.monotonic() + 60 * given.minutes
    platform, kind, count = find_device(given.smoke)
    name = re.sub(r"\W+", "-", f"{count}-{kind}".lower()) + ("-smoke" if given.smoke else "")
    device = f"{count} {kind}, {os.cpu_count()} CPU cores"
    folder = given.out.absolute() / name
    visit = Visit(folder, device, platform, count, deadline, given.smoke)
    found = stages(visit, given.reference)
    chosen = [word for word in given.stages.split(",") if word]
    known = [stage.name for stage in found]
    for word in chosen:
        if word not in known:
            close = nearest(word, known)
            raise UserError(f"--stages {word}: no such stage{close}; it is {', '.join(known)}")
    try:
        visit.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{visit.folder} cannot be made: {error.strerror}") from error
    print(f"{device}; rows go to {visit.folder / 'rows.jsonl'}", flush=True)
    for stage in found:
        if not chosen or stage.name in chosen:
            perform(visit, stage)
    print(f"\n{table(given.out)}")
    return 0


if __name__ == "__main__":
    sys.exit(exit_on_user_error(main))
