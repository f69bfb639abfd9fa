"""What every command does: a line at once, an answer to Ctrl-C at any moment, output anywhere."""

import io
import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from dreamer.checkpoint.manager import Checkpointer, SaveError, steps
from dreamer.cli import train
from dreamer.errors import exit_on_user_error
from dreamer.training import retry
from tests import tiny_run

ROOT = Path(__file__).resolve().parents[2]


def start(module: str, *argv: str, **options: Any) -> subprocess.Popen[str]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    return subprocess.Popen([sys.executable, "-m", module, *argv], **(pipes | options))


@pytest.mark.parametrize(
    ("module", "number", "status", "word"),
    [
        ("dreamer.train", signal.SIGINT, 130, "interrupted\n"),
        ("dreamer.train", signal.SIGTERM, 143, "ended by SIGTERM\n"),
        ("dreamer.eval", signal.SIGINT, 130, "interrupted\n"),
        ("dreamer.export", signal.SIGINT, 130, "interrupted\n"),
        ("dreamer.data", signal.SIGINT, 130, "interrupted\n"),
    ],
)
def test_a_line_comes_at_once_and_a_signal_ends_the_imports(
    module: str, number: signal.Signals, status: int, word: str
) -> None:
    process = start(module, "collect") if module.endswith("data") else start(module)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "dreamer: starting\n"
        process.send_signal(number)
        assert process.communicate(timeout=20) == ("", word)
        assert process.returncode == status
    finally:
        process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0, 0.1, 0.3, 0.6, 1, 1.5, 2, 3, 4, 5])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_at_any_moment_of_the_start_is_no_crash(
    number: signal.Signals, seconds: float, tmp_path: Path
) -> None:
    argv = tiny_run.argv(tmp_path / "run", "run.steps=1000000", "log.progress=plain")
    process = start("dreamer.train", *argv)
    assert process.stdout is not None
    assert process.stdout.readline() == "dreamer: starting\n"  # before it Python has the signals
    time.sleep(seconds)
    process.send_signal(number)
    _, err = process.communicate(timeout=100)
    if process.returncode == 0:  # training had started
        assert steps(tmp_path / "run" / "checkpoints")
        assert "Traceback" not in err
    else:
        word = "interrupted\n" if number == signal.SIGINT else "ended by SIGTERM\n"
        assert (process.returncode, err) == (128 + number, word)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["bar", "plain"])
@pytest.mark.parametrize("output", [">&-", ">&- 2>&-", ">/dev/full", "2>/dev/full", "| true"])
def test_training_goes_on_wherever_its_output_goes(mode: str, output: str, tmp_path: Path) -> None:
    argv = tiny_run.argv(tmp_path / "é", f"log.progress={mode}", "run.steps=20")
    script = f'{{ "$@"; echo $? >"{tmp_path}/status"; }} {output}'
    command = ["sh", "-c", script, "sh", sys.executable, "-m", "dreamer.train", *argv]
    env = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=100)
    assert (tmp_path / "status").read_text() == "0\n"
    assert "Exception" not in done.stderr
    assert steps(tmp_path / "é" / "checkpoints") == [20]
    lines = (tmp_path / "é" / "metrics.jsonl").read_text().splitlines()
    assert all(json.loads(line)["step"] <= 20 for line in lines)  # nothing else is in it


@pytest.mark.slow
def test_a_second_ctrl_c_in_a_terminal_ends_at_once_and_shows_the_cursor(tmp_path: Path) -> None:
    """While the update compiles: the first is acknowledged meanwhile."""
    ours, theirs = pty.openpty()
    argv = tiny_run.argv(tmp_path / "run", "log.progress=bar", "run.steps=1000000")
    env = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"), "TERM": "xterm"}
    terminal = {"stdout": theirs, "stderr": theirs, "text": None, "env": env}
    process = start("dreamer.train", *argv, **terminal)
    os.close(theirs)
    text, acknowledged = b"", 0.0
    while True:
        try:
            text += os.read(ours, 65536)
        except OSError:
            break
        if b"compiling the update" in text and b"[pressed]" not in text:
            text += b"[pressed]"
            process.send_signal(signal.SIGINT)
        if b"Ctrl-C again ends at once" in text and not acknowledged:
            acknowledged = time.monotonic()
            process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert time.monotonic() - acknowledged < 5
    answer = text.split(b"[pressed]")[1]
    assert b"compiling the update" in answer  # continues meanwhile
    assert answer.rindex(b"\x1b[?25h") < answer.rindex(b"interrupted")


class Ascii(io.TextIOWrapper):
    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="ascii", write_through=True)


class Gone(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")


@pytest.mark.parametrize(("stream", "mode"), [(None, "plain"), (Ascii(), "bar"), (Gone(), "bar")])
def test_training_goes_on_whatever_the_streams_are(
    stream: Any, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", stream)
    argv = tiny_run.argv(tmp_path / "é", f"log.progress={mode}", "run.steps=6")
    assert exit_on_user_error(lambda: train.main(argv)) == 0
    assert steps(tmp_path / "é" / "checkpoints") == [6]


def test_a_failed_save_is_reported_without_a_display(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(retry, "FIRST", 1e-3)
    save, calls = Checkpointer.save, []

    def sometimes(self: Checkpointer, *arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == 1:
            raise SaveError("no room")
        save(self, *arguments)

    monkeypatch.setattr(Checkpointer, "save", sometimes)
    argv = tiny_run.argv(tmp_path / "run", "run.steps=16", "checkpoint.every_steps=4")
    assert exit_on_user_error(lambda: train.main(argv)) == 0
    out, err = capsys.readouterr()
    assert out == ""
    failed, again = err.splitlines()
    assert failed.startswith("warning: no room; ")
    assert again == "checkpoints can be saved again"


@pytest.mark.slow
def test_metrics_have_the_names_of_the_display(
    tmp_path_factory: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny_run.copy(tiny_run.finished(tmp_path_factory)[0], tmp_path / "run")
    text = (folder / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    learned = [line for line in lines if "loss/total" in line]
    assert not [line for line in lines if "return" in line]
    assert all("imagined_return" in line for line in learned)
    assert [line for line in lines if "episode/return" in line]
    last = learned[-1]
    assert last["perf/steps_per_second"] == pytest.approx(4 * last["perf/updates_per_second"])
    more = tiny_run.argv(folder, "run.steps=108", "log.progress=plain")
    assert exit_on_user_error(lambda: train.main(more)) == 0
    shown = capsys.readouterr().out.splitlines()[-2]
    assert "  episode/return " in shown
    assert "  imagined_return " in shown
    updates = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["updates"]
    assert f" {updates} updates" in shown
    assert exit_on_user_error(lambda: train.main(more)) == 0  # it is complete
    assert "0 updates" not in capsys.readouterr().out
