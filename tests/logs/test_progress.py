"""The progress display: its text at 80 columns, its rates, and what each mode prints."""

import io
import math
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
from jax import monitoring
from rich.console import Console

from dreamer.logs.progress import FIELDS, Display, Progress, duration, number, shorten
from dreamer.logs.rates import Rates, Sample

STEPS = 50_000_000
FULL = FIELDS | {
    "updates": 1_562_499,
    "steps_per_second": 12_345.6,
    "updates_per_second": 385.7,
    "seconds_left": 0.1,
    "episodes": 123_456,
    "last": -1234.5,
    "mean": 1e7,
    "length": 27_000,
    "metrics": {f"train/loss/something_{index}": -1.5e-7 for index in range(6)},
}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        return self.time


def drawn(step: int, fields: dict[str, Any], width: int = 80) -> list[str]:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    clock = Clock()
    display = Display(console, clock)
    display.add_task("", total=STEPS, completed=step, **fields)
    clock.time = 100_000
    with console.capture() as capture:
        console.print(display)
    return capture.get().splitlines()


def test_display_fits_eighty_columns_with_the_largest_numbers() -> None:
    text = drawn(STEPS - 1, FULL)
    assert len(text) == 8  # nothing wraps
    assert max(map(len, text)) <= 80
    assert all(line.rstrip()[-1] not in ".…" for line in text)
    for part in (" 99%", "1d 3:46:40 elapsed", "0:00:00 left"):
        assert part in text[0]
    assert text[1].split() == ["steps", "49,999,999", "of", "50,000,000", "12,346", "per", "second"]
    assert text[2].split() == ["updates", "1,562,499", "385.7", "per", "second"]
    assert text[3].split() == ["episode/return", "-1,234", "last", "1.0e+07", "mean", "of", "100"]
    assert text[4].split() == ["episodes", "123,456", "27,000", "steps", "in", "the", "last"]
    assert text[5].split() == ["now", "training"]
    assert text[6].count("-1.5e-07") == text[7].count("-1.5e-07") == 3


def test_display_keeps_its_columns_while_numbers_grow() -> None:
    few, many = drawn(0, FIELDS), drawn(STEPS - 1, FULL)
    columns = {
        text[row].index(word)
        for text in (few, many)
        for row, word in ((1, "per"), (2, "per"), (3, "mean"), (4, "steps in"))
    }
    assert len(columns) == 1
    assert len(few) == 6


@pytest.mark.parametrize("width", [20, 40, 60, 100, 200])
def test_display_in_terminals_of_other_widths(width: int) -> None:
    """Narrow ones cut rows at the right and show metrics in more rows, wide ones in no fewer."""
    text = drawn(STEPS - 1, FULL, width=width)
    assert max(len(line.rstrip()) for line in text[1:]) < 80
    assert len(text) == (8 if width > 80 else 9 if width == 60 else 12 if width == 40 else 18)
    assert max(map(len, text)) <= width
    assert text[1].startswith("steps          49,99")
    assert text[5].startswith("now            train")
    assert sum(line.count("-1.5e-07") for line in text[6:]) == 6


def test_rates_exclude_steps_before_the_start() -> None:
    rates = Rates(Sample(5.0, 0.0, 100_000, 3000), window=10)
    assert math.isnan(rates.steps)
    rates.add(Sample(7.0, 0.0, 100_050, 3000))
    assert rates.steps == 25
    assert math.isnan(rates.updates)


def test_rates_restart_with_the_first_update() -> None:
    """Steps without updates are much faster than those with them."""
    rates = Rates(Sample(0.0, 0.0, 0, 0), window=10)
    rates.add(Sample(1.0, 0.0, 1000, 0))
    assert (rates.steps, math.isnan(rates.seconds_left(10))) == (1000, True)
    rates.add(Sample(1.0, 0.0, 1001, 1))
    assert all(map(math.isnan, (rates.steps, rates.updates, rates.seconds_left(10))))
    for step in range(1002, 1020):  # an update takes 20 s and comes every 8 steps
        rates.add(Sample(1.0 + 20 * ((step - 994) // 8), 0.0, step, 1 + (step - 1001) // 8))
    assert (rates.steps, rates.updates, rates.seconds_left(8)) == (8 / 20, 1 / 20, 20)


def test_rates_exclude_steps_before_the_window() -> None:
    rates = Rates(Sample(0.0, 0.0, 0, 0), window=10)
    for second in range(1, 21):
        rates.add(Sample(float(second), 0.0, 1000 + second * 2, second))
    assert (rates.steps, rates.updates) == (2, 1)


def test_rates_stay_correct_and_small_with_frequent_calls() -> None:
    rates = Rates(Sample(0.0, 0.0, 0, 0), window=10)
    for index in range(30_000):
        rates.add(Sample(index / 1000, 0.0, index, index // 2))
    assert (rates.steps, rates.updates) == pytest.approx((1000, 500), rel=1e-3)
    assert len(rates.samples) <= 110


def run(mode: str, file: io.StringIO, clock: Callable[[], float], interval: float = 10) -> Progress:
    progress = Progress(mode, 1000, interval, file=file, now=clock)  # type: ignore[arg-type]
    progress.start(400, 80)
    return progress


def test_plain_prints_one_line_per_interval_and_the_last_state() -> None:
    file, clock = io.StringIO(), Clock()
    with run("plain", file, clock) as progress:
        for step in range(400, 625, 25):  # resumed at 400
            progress.episode(step / 10, 7)
            progress.update(step, step // 5, {"loss": step / 100})
            clock.time += 4
        progress.print("saved [x]")
        progress.episode(99.0, 7)
        progress.update(1000, 200)
    first, second, third, message, last = file.getvalue().splitlines()
    assert " 40%   400 steps" in first
    assert "- steps/s" in first
    assert " 47%   475 steps" in second
    assert "6.25 steps/s   1.25 updates/s  0:01:24 left  loss 4.75" in second
    assert "episode/return   47.50 mean   43.75" in second
    assert third.startswith(" 55% ")
    assert message == "saved [x]"
    assert last.startswith("100% 1,000 steps    200 updates  episode/return   99.00")
    assert "0:00:00 left" in last


def compiles(name: str, seconds: float, clock: Clock, inside: Callable[[], object] = int) -> None:
    """As jax reports it."""
    for event, part in (("jaxpr_trace", 0.25), ("backend_compile", 0.75)):
        event = f"/jax/core/compile/{event}_duration"
        monitoring.record_scalar(event, 0.0, fun_name=name)
        clock.time += seconds * part
        inside()
        monitoring.record_event_duration_secs(event, seconds * part, fun_name=name)


def test_the_first_minute() -> None:
    """A default run: no time left is shown before it is known, and compiling is in no rate."""
    file, clock = io.StringIO(), Clock()
    with Progress("plain", 10_000, 5, file=file, now=clock) as progress:
        compiles("init", 4, clock)
        progress.start()
        assert progress.state == "before the first update"
        compiles("act", 2, clock, inside=lambda: compiles("inner", 1, clock))
        for step in range(1, 301):  # prefilled at 128 steps a second
            progress.update(step, 0)
            clock.time += 1 / 128
        states: list[str] = []
        compiles("_fun", 25, clock, inside=lambda: states.append(progress.state))
        for update in range(1, 101):  # then an update a second, every second step
            progress.update(299 + 2 * update, update)
            progress.update(300 + 2 * update, update)
            clock.time += 1
    assert states == [
        "compiling the update, 6 s so far",
        "compiling the update, 25 s so far",
    ]
    lines = file.getvalue().splitlines()
    assert lines[:4] == [
        "compiling the initial weights",
        "compiled the initial weights in 4 s",
        "compiling the policy",
        "compiled the policy in 4 s",
    ]
    assert lines[5:7] == ["compiling the update", "compiled the update in 25 s"]
    status = [line for line in lines if " steps/s" in line]
    times = [line.split(" updates/s  ")[1].split()[0] for line in status]
    assert times[:2] == ["-:--:--"] * 2  # before the first update, and at it
    assert all(time.startswith(("1:20:", "1:19:", "1:18:", "1:17:")) for time in times[2:])
    assert all("  2.00 steps/s   1.00 updates/s" in line for line in status[2:])


def test_other_work_counts_for_the_time_left_alone() -> None:
    file, clock = io.StringIO(), Clock()
    with Progress("plain", 1000, 0, file=file, now=clock) as progress:
        progress.start()
        for step in range(1, 11):
            progress.update(step, step)
            clock.time += 2
        assert "0.5000 steps/s 0.5000 updates/s  0:33:00 left" in file.getvalue().splitlines()[-1]
        with progress.other_work("evaluating"):
            assert progress.state == "evaluating"
            clock.time += 15
            compiles("act", 100, clock)
            clock.time += 5
        assert progress.state == "training"
        progress.update(11, 11)
    assert progress.rates == {"perf/steps_per_second": 0.5, "perf/updates_per_second": 0.5}
    assert "0.5000 steps/s 0.5000 updates/s  1:05:56 left" in file.getvalue().splitlines()[-1]


def test_runs_that_share_a_process_share_the_time() -> None:
    clock = Clock()
    with (
        Progress("none", 1000, now=clock) as leader,
        Progress("none", 1000, now=clock, leader=leader) as other,
    ):
        for progress in (leader, other):
            progress.start()
            progress.update(1, 1)
        clock.time += 2
        compiles("act", 10, clock)
        with other.other_work("evaluating"):
            assert leader.state == "evaluating"
            clock.time += 10
        leader.update(5, 5)
        assert leader.rates == {"perf/steps_per_second": 2.0, "perf/updates_per_second": 2.0}


def test_compilation_in_another_thread_does_not_count() -> None:
    clock = Clock()
    with Progress("none", 1000, now=clock) as progress:
        progress.start()
        progress.update(1, 1)
        thread = threading.Thread(target=lambda: compiles("act", 10, clock))
        thread.start()
        thread.join()
        progress.update(21, 11)
    assert progress.rates == {"perf/steps_per_second": 2.0, "perf/updates_per_second": 1.0}


def test_compilation_that_started_before_the_context_does_not_count() -> None:
    clock = Clock()
    with Progress("none", 1000, now=clock) as progress:
        progress.start()
        monitoring.record_event_duration_secs("/jax/core/compile/jaxpr_trace_duration", 1.0)
        compiles("act", 10, clock)
        progress.update(1, 1)
        clock.time += 2
        progress.update(5, 3)
    assert progress.rates == {"perf/steps_per_second": 2.0, "perf/updates_per_second": 1.0}
    assert progress.state == "training"


def test_a_run_that_never_starts_prints_no_status() -> None:
    file = io.StringIO()
    with Progress("plain", 100, file=file) as progress:
        progress.print("complete")
    assert file.getvalue() == "complete\n"


def test_plain_does_not_repeat_a_line_at_the_end() -> None:
    file = io.StringIO()
    progress = run("plain", file, Clock())
    progress.update(1000, 200)
    progress.close()
    progress.close()
    assert len(file.getvalue().splitlines()) == 1


def test_none_prints_nothing_but_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    file = Terminal()
    with run("none", file, Clock(), interval=0) as progress:
        progress.update(1, 1, {"a": 1.0})
        progress.episode(1.0, 1)
        progress.print("message")
        progress.note("warning: it fails")
    assert file.getvalue() == ""
    assert capsys.readouterr().err == "warning: it fails\n"


def test_bar_shows_messages_and_restores_the_cursor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    file = Terminal()
    with run("bar", file, Clock()) as progress:
        progress.update(250, 50, {"loss": 0.5})
        progress.print("saved [bold]x")
    text = file.getvalue()
    assert "saved [bold]x\n" in text
    assert " 25%" in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")


@pytest.mark.parametrize(
    ("file", "term", "bar"),
    [(Terminal(), "xterm", True), (Terminal(), "dumb", False), (io.StringIO(), "xterm", False)],
)
def test_auto_is_a_bar_in_a_terminal_only(
    file: io.StringIO, term: str, bar: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", term)
    with run("auto", file, Clock()) as progress:
        progress.update(250, 50)
    assert ("\x1b[?25l" in file.getvalue()) == bar
    assert (" 25%   250 steps" in file.getvalue()) != bar


@pytest.mark.parametrize("mode", ["bar", "plain"])
def test_a_closed_terminal_does_not_end_the_run(mode: str) -> None:
    class Gone(Terminal):
        gone = False

        def write(self, text: str) -> int:
            if self.gone:
                raise OSError(5, "Input/output error")
            return super().write(text)

    file = Gone()
    with run(mode, file, Clock(), interval=0) as progress:
        progress.update(1, 1)
        file.gone = True
        progress.print("lost")
        progress.update(2, 2)
        progress.print("lost too")


@pytest.mark.parametrize("mode", ["bar", "plain"])
def test_output_may_be_closed_or_limited_to_ascii(mode: str) -> None:
    raw = io.BytesIO()
    ascii_only = io.TextIOWrapper(raw, encoding="ascii", write_through=True)
    closed = io.StringIO()
    closed.close()
    for file in (ascii_only, closed):
        with run(mode, file, Clock(), interval=0) as progress:  # type: ignore[arg-type]
            progress.print("return 1.0 ± 0.5 in /tmp/été")
            progress.update(1, 1)
    assert b"return 1.0 ? 0.5 in /tmp/?t?" in raw.getvalue()


def test_a_warning_is_above_the_display_of_its_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    for error, shown in ((Terminal(), True), (io.StringIO(), False)):
        file = Terminal()
        monkeypatch.setattr(sys, "stderr", error)
        with run("bar", file, Clock()) as progress:
            progress.note("warning: no room " + 10 * "x [b]")
            print("of a library", file=sys.stderr)
        warning = "warning: no room " + 10 * "x [b]" + "\n"
        assert (warning in file.getvalue(), "of a library" in file.getvalue()) == (shown, shown)
        assert (error.getvalue() == warning + "of a library\n") != shown


def test_numbers_durations_and_names() -> None:
    values = [0, 1e-7, 0.1234567, 1.5, 123.456, 98765.4, -1e9, math.nan, math.inf]
    texts = ["0", "1.0e-07", "0.1235", "1.50", "123.5", "98,765", "-1.0e+09", "-", "inf"]
    assert [number(value) for value in values] == texts
    assert max(map(len, texts)) <= 8
    seconds = [0, 59.6, 3725, 90061, math.nan]
    times = ["0:00:00", "0:01:00", "1:02:05", "1d 1:01:01", "-:--:--"]
    assert [duration(second) for second in seconds] == times
    assert shorten("loss/image") == "loss/image"
    assert shorten("train/loss/dynamics") == "loss/dynamics"
    assert shorten("a_name_that_is_too_long") == "a_name_that_is_"
