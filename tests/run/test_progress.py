"""The progress display: its text at 80 columns, its rates, and what each mode prints."""

import io
import math
from collections.abc import Callable

import pytest
from rich.console import Console

from dreamer.run.progress import Progress, Rates, Snapshot, display, duration, number, shorten

FULL = Snapshot(
    total=50_000_000,
    step=49_999_999,
    updates=1_562_499,
    steps_rate=12_345.6,
    updates_rate=385.7,
    episodes=123_456,
    last=-1234.5,
    mean=1e7,
    length=27_000,
    metrics={f"train/loss/something_{index}": -1.5e-7 for index in range(9)},
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        return self.time


def drawn(shot: Snapshot, elapsed: float = 100_000) -> list[str]:
    console = Console(file=io.StringIO(), width=80, force_terminal=False)
    with console.capture() as capture:
        console.print(display(shot, elapsed))
    return capture.get().splitlines()


def test_display_fits_eighty_columns_with_the_largest_numbers() -> None:
    text = drawn(FULL)
    assert len(text) == 7  # nothing wraps
    assert max(map(len, text)) <= 80
    assert all(line.rstrip()[-1] != "." for line in text)
    for part in (" 99%", "1d 3:46:40 elapsed", "0:00:00 left"):
        assert part in text[0]
    assert text[1].split() == ["steps", "49,999,999", "of", "50,000,000", "12,346", "per", "second"]
    assert text[2].split() == ["updates", "1,562,499", "385.7", "per", "second"]
    assert text[3].split() == ["return", "-1,234", "last", "1.0e+07", "mean", "of", "100"]
    assert text[4].split() == ["episodes", "123,456", "27,000", "steps", "in", "the", "last"]
    assert text[5].count("-1.5e-07") == text[6].count("-1.5e-07") == 3


def test_display_keeps_its_columns_while_numbers_grow() -> None:
    few, many = drawn(Snapshot(total=50_000_000)), drawn(FULL)
    columns = {
        text[row].index(word)
        for text in (few, many)
        for row, word in ((1, "per"), (2, "per"), (3, "mean"), (4, "steps in"))
    }
    assert len(columns) == 1
    assert len(few) == 5


def test_rates_leave_out_what_was_done_before_the_first_call() -> None:
    rates = Rates(window=10)
    assert all(math.isnan(rate) for rate in rates(5.0, 100_000, 3000))
    assert rates(7.0, 100_050, 3004) == (25, 2)


def test_rates_forget_what_lies_before_the_window() -> None:
    rates = Rates(window=10)
    rates(0.0, 0, 0)
    for second in range(1, 21):
        rate = rates(float(second), 1000 + second * 2, second)
    assert rate == (2, 1)


def test_rates_stay_right_and_small_with_frequent_calls() -> None:
    rates = Rates(window=10)
    for index in range(30_000):
        rate = rates(index / 1000, index, index // 2)
    assert rate == pytest.approx((1000, 500), rel=1e-3)
    assert len(rates.samples) <= 110


def run(mode: str, file: io.StringIO, clock: Callable[[], float], interval: float = 10) -> Progress:
    return Progress(mode, 1000, interval, file=file, now=clock)  # type: ignore[arg-type]


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
    assert "return   47.50 mean   43.75" in second
    assert third.startswith(" 55% ")
    assert message == "saved [x]"
    assert last.startswith("100% 1,000 steps    200 updates  return   99.00")
    assert "0:00:00 left" in last


def test_plain_does_not_repeat_a_line_at_the_end() -> None:
    file = io.StringIO()
    progress = run("plain", file, Clock())
    progress.update(1000, 200)
    progress.close()
    progress.close()
    assert len(file.getvalue().splitlines()) == 1


def test_none_prints_nothing() -> None:
    file = Terminal()
    with run("none", file, Clock(), interval=0) as progress:
        progress.update(1, 1, {"a": 1.0})
        progress.episode(1.0, 1)
        progress.print("message")
    assert file.getvalue() == ""


def test_bar_shows_messages_and_gives_the_cursor_back(monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_a_terminal_that_goes_away_does_not_end_the_run(mode: str) -> None:
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
