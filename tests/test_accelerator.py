"""experiments/accelerator.py: what a visit to another machine leaves behind."""

import gzip
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from dreamer.bench import __main__ as bench
from dreamer.bench import report
from dreamer.errors import UserError, exit_on_user_error
from experiments import accelerator
from experiments.accelerator import Command, Stage, Visit

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def visit(tmp_path: Path) -> Visit:
    folder = tmp_path / "1-cpu"
    folder.mkdir()
    return Visit(folder, "1 cpu", "cpu", 1, time.monotonic() + 60, smoke=True)


def command(code: str, **facts: Any) -> Command:
    return Command([sys.executable, "-c", code], lambda folder, output: {"facts": facts})


def rows(visit: Visit) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (visit.folder / "rows.jsonl").read_text().splitlines()]


def test_what_is_cut_off_or_fails_loses_itself_alone(
    visit: Visit, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(accelerator, "LEAST", 0.0)
    monkeypatch.setattr(accelerator, "ENDING", 0.0)
    steps = [
        Stage("good", "ends", 30, [command("print('hello')", speed=1)]),
        Stage("slow", "never ends", 1, [command("import time; time.sleep(60)", partial=2)]),
        Stage("bad", "fails", 30, [command("raise SystemExit('no such thing')")]),
        Stage("last", "ends", 30, [command("pass", speed=3)]),
    ]
    for stage in steps:
        accelerator.perform(visit, stage)
    found = {row["stage"]: row for row in rows(visit)}
    assert [found[name]["status"] for name in ("good", "last")] == ["done", "done"]
    assert found["slow"]["status"] == "cut off at its limit"
    assert found["slow"]["facts"] == {"partial": 2}  # as far as it had come
    assert found["bad"]["status"] == "failed: no such thing"
    assert found["last"]["facts"] == {"speed": 3}
    assert "hello" in capsys.readouterr().out
    assert "hello" in (visit.folder / "logs" / "good.txt").read_text()


def test_no_stage_starts_without_time(visit: Visit) -> None:
    late = Visit(visit.folder, "1 cpu", "cpu", 1, time.monotonic(), smoke=True)
    accelerator.perform(late, Stage("late", "has no time", 60, [command("pass")]))
    (row,) = rows(late)
    assert (row["status"], row["results"]) == ("not started: no time is left", [])


def test_every_visit_only_adds_rows(visit: Visit) -> None:
    for number in (1, 2):
        accelerator.perform(visit, Stage("one", "ends", 60, [command("pass", number=number)]))
    assert [row["facts"]["number"] for row in rows(visit)] == [1, 2]
    assert '{"number": 2}' in accelerator.table(visit.folder.parent)
    other = visit.folder.parent / "8-other"
    other.mkdir()
    (other / "rows.jsonl").write_text(json.dumps(rows(visit)[0] | {"device": "8 other"}) + "\n")
    text = accelerator.table(visit.folder.parent)
    assert [line for line in text.splitlines() if line.startswith("##")] == [
        "## 1 cpu",
        "## 8 other",
    ]


def test_stages_have_names_of_their_own_and_pong_is_last(visit: Visit) -> None:
    for smoke in (True, False):
        of = Visit(visit.folder, "4 gpu", "gpu", 4, time.monotonic() + 60, smoke)
        found = [stage.name for stage in accelerator.stages(of, ROOT)]
        assert len(set(found)) == len(found)
        assert (found[0], found[-1]) == ("limits", "pong")
        assert {"devices", "reference"} <= set(found)
    tests = next(stage for stage in accelerator.stages(of, None) if stage.name == "tests")
    assert ("DREAMER_TEST_PLATFORMS", "cuda,cpu") in tests.commands[0].env
    assert all((ROOT / name).is_file() for name in accelerator.TESTS)


def _trace(folder: Path, events: list[dict[str, Any]]) -> None:
    with gzip.open(folder / "vm.trace.json.gz", "wt") as file:
        json.dump({"traceEvents": [{}, *events]}, file)


def test_a_profile_counts_launches_and_time(tmp_path: Path) -> None:
    """Two calls of two kernels each, which overlap once; lines that repeat them do not count."""
    names = [
        {"ph": "M", "name": "process_name", "pid": 1, "args": {"name": "/device:GPU:0"}},
        {"ph": "M", "name": "process_name", "pid": 2, "args": {"name": "/host:CPU"}},
        {"ph": "M", "name": "thread_name", "pid": 1, "tid": 7, "args": {"name": "Stream #7"}},
        {"ph": "M", "name": "thread_name", "pid": 1, "tid": 8, "args": {"name": "XLA Ops"}},
    ]
    one = {"ph": "X", "pid": 1, "tid": 7}
    kernels = [
        one | {"name": "gemm", "ts": 0, "dur": 4},
        one | {"name": "loop", "ts": 2, "dur": 4},
        one | {"name": "gemm", "ts": 10, "dur": 4},
        one | {"name": "loop", "ts": 16, "dur": 4},
    ]
    others = [
        one | {"name": "x", "ts": 0, "dur": 90, "tid": 8},
        one | {"name": "y", "pid": 2, "ts": 0, "dur": 90},
    ]
    _trace(tmp_path, [*names, *kernels, *others])
    found = accelerator.profile(tmp_path, calls=2)
    assert (found["launches"], found["busy"]) == (2, pytest.approx(14 / 20))
    assert found["kernels"] == {"gemm": pytest.approx(4e-6), "loop": pytest.approx(4e-6)}


def test_a_curve_says_how_long_the_whole_run_takes(tmp_path: Path) -> None:
    lines = [{"step": 100 * i, "time": 1000.0 + 10 * i, "updates": 5 * i} for i in range(20)]
    lines += [{"step": 1900 + i, "time": 1200.0, "episode/return": float(i)} for i in range(20)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "config.yaml").write_text("run:\n  steps: 36000\n")
    found = accelerator.curve(tmp_path)
    assert (found["steps"], found["updates"]) == (1919, 95)
    assert found["steps_per_second"] == pytest.approx(10)
    assert found["hours_in_all"] == pytest.approx(1.0)
    assert found["returns"][0] == [1901, 0.5]
    assert len(found["returns"]) == 10


BAD = {
    "accelerator": ([], "jax finds no accelerator here"),
    "stage": (
        ["--smoke", "--stages", "limit"],
        "--stages limit: no such stage; did you mean limits?",
    ),
    "minutes": (["--minutes", "0"], "--minutes 0: must be more than 0"),
    "number": (["--minutes", "x"], "invalid float value: 'x'"),
    "reference": (["--reference", "."], "--reference . has no dreamerv3/main.py"),
    "table": (["--table"], "holds no rows; measure first"),
}


@pytest.mark.parametrize(("argv", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line(
    argv: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: _Done())
    assert exit_on_user_error(lambda: accelerator.main([str(tmp_path / "out"), *argv])) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "out").exists()


class _Done:
    """What asking jax for its devices says on a machine without an accelerator."""

    returncode, stdout = 0, "cpu|1|cpu\n"


def test_the_benchmark_compares_with_a_folder_of_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With rows of its own options where there are any, else with those of the defaults."""
    entry = {"what": "copy", "size": "", "observation": "float32", "per_second": 1, "median": 1.0}
    content = {"device": "1 gpu", "options": [], "results": [entry]}
    other = content | {"options": ["seed=1"], "results": [entry | {"median": 2.0}]}
    third = content | {"options": ["seed=2"], "results": [entry | {"median": 3.0}]}
    (tmp_path / "1-gpu").mkdir()
    lines = "".join(json.dumps(one) + "\n" for one in (other, content, third))
    (tmp_path / "1-gpu" / "rows.jsonl").write_text(lines)
    for options, then in (([], 1.0), (["seed=1"], 2.0), (["seed=3"], 1.0)):
        assert report.load(tmp_path, options)["1 gpu"][-1]["median"] == then
    with pytest.raises(UserError, match="holds no benchmark"):
        report.load(tmp_path / "1-gpu")
    fast = ["--what", "limits", "--repeats", "1", "--seconds", "0.01"]
    assert bench.main([*fast, "--against", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert f"beside {tmp_path}, 1 gpu:" in out
    assert out.splitlines()[-1].split("|")[4].strip() == "1 s"


@pytest.mark.slow
def test_a_visit_measures_on_cpu(tmp_path: Path) -> None:
    """Two stages by the command itself; a second visit adds to the first."""
    argv = [sys.executable, "experiments/accelerator.py", str(tmp_path), "--smoke"]
    argv += ["--stages", "limits,kernels_vector"]
    for visits in (1, 2):
        done = subprocess.run(
            argv, cwd=ROOT, capture_output=True, text=True, check=False, env=os.environ
        )
        assert done.returncode == 0, done.stderr
        (file,) = tmp_path.glob("*/rows.jsonl")
        found = [json.loads(line) for line in file.read_text().splitlines()]
        assert [row["status"] for row in found] == ["done"] * 2 * visits
    assert [entry["what"] for entry in found[0]["results"]] == ["matrix product", "copy"]
    assert found[1]["facts"]["launches"] > 100
    assert 0 < found[1]["facts"]["busy"] <= 1
    assert "| matrix product |" in done.stdout
