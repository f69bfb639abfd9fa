"""The progress of a run on the terminal: a live display, plain lines, or nothing."""

import contextlib
import math
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self, TextIO, cast

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

Mode = Literal["auto", "bar", "plain", "none"]

RECENT = 100  # episodes in the mean return
WINDOW = 30.0  # seconds over which rates are measured
SHOWN = 6  # metrics on display
COLUMNS = 3  # metrics in a row of 78 characters
NAME = 15  # characters of a metric's name on display


@dataclass(frozen=True)
class Snapshot:
    """What is on display: replaced as a whole, because the display is drawn by another thread."""

    total: int
    step: int = 0
    updates: int = 0
    steps_rate: float = math.nan  # per second
    updates_rate: float = math.nan
    episodes: int = 0
    last: float = math.nan  # return
    mean: float = math.nan
    length: float = math.nan
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def fraction(self) -> float:
        return min(1.0, self.step / self.total) if self.total else 1.0

    @property
    def seconds_left(self) -> float:
        left = max(0, self.total - self.step)
        return left / self.steps_rate if self.steps_rate > 0 else (math.nan if left else 0.0)


class Rates:
    """Steps and updates per second over the last `window` seconds, from the first call on."""

    def __init__(self, window: float = WINDOW) -> None:
        self.window = window
        self.samples: deque[tuple[float, int, int]] = deque()

    def __call__(self, now: float, step: int, updates: int) -> tuple[float, float]:
        # Frequent calls share the newest sample: a window holds a hundred of them, not a million.
        if len(self.samples) > 1 and now - self.samples[-2][0] < self.window / 100:
            self.samples.pop()
        self.samples.append((now, step, updates))
        while len(self.samples) > 2 and now - self.samples[1][0] >= self.window:
            self.samples.popleft()
        first_time, first_step, first_updates = self.samples[0]
        seconds = now - first_time
        if seconds <= 0:
            return math.nan, math.nan
        return (step - first_step) / seconds, (updates - first_updates) / seconds


class Forgiving:
    """A text file that drops what cannot be written, its terminal being gone or its disk full."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._file.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._file.flush()


class Progress:
    """Shows how far a run is: steps, updates, returns, rates, time left and a few metrics.

    Modes: `bar` draws a live display, `plain` prints one line every `interval` seconds, `none`
    prints nothing at all, `auto` is `bar` in a terminal and `plain` elsewhere. A terminal that goes
    away ends the display, not the run.

    Steps and updates are those of the whole run, which starts or resumes at `step`; rates count
    only from the first `update` on, so a resumed run does not show the speed of its past. A context
    manager.
    """

    def __init__(
        self,
        mode: Mode,
        total_steps: int,
        interval: float = 10.0,
        step: int = 0,
        file: TextIO | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._file = cast(TextIO, Forgiving(sys.stdout if file is None else file))
        self._mode = self._resolve(mode)
        self._interval = interval
        self._now = now
        self._start = now()
        self._last_line = -math.inf
        self._rates = Rates()
        self._returns: deque[float] = deque(maxlen=RECENT)
        self._snapshot = Snapshot(total_steps, step)
        self._printed: Snapshot | None = None
        self._live: Live | None = None
        if self._mode == "bar":
            console = Console(file=self._file, force_terminal=True, highlight=False)
            self._live = Live(get_renderable=self._render, console=console, refresh_per_second=4)
            self._live.start()

    def _resolve(self, mode: Mode) -> str:
        if mode != "auto":
            return mode
        console = Console(file=self._file)
        return "bar" if console.is_terminal and not console.is_dumb_terminal else "plain"

    def episode(self, score: float, length: int) -> None:
        """Notes the return and the length, in steps, of an episode that ended."""
        self._returns.append(float(score))
        self._change(
            episodes=self._snapshot.episodes + 1,
            last=float(score),
            mean=sum(self._returns) / len(self._returns),
            length=float(length),
        )

    def update(self, step: int, updates: int, metrics: Mapping[str, float] | None = None) -> None:
        """Shows steps and updates of the whole run so far; metrics stay until replaced.

        The first six metrics, in the order in which they first came, are on display.
        """
        steps_rate, updates_rate = self._rates(self._now(), step, updates)
        self._change(
            step=step,
            updates=updates,
            steps_rate=steps_rate,
            updates_rate=updates_rate,
            metrics=self._snapshot.metrics
            | {name: float(value) for name, value in (metrics or {}).items()},
        )
        if self._mode == "plain" and self._now() - self._last_line >= self._interval:
            self._print_status()

    def print(self, line: str) -> None:
        """Prints a message, above the display where there is one; nothing with `none`."""
        if self._live is not None:
            self._live.console.print(line, markup=False, soft_wrap=True)
        elif self._mode == "plain":
            print(line, file=self._file, flush=True)

    def close(self, message: str = "") -> None:
        """Draws the last state, gives the terminal back, and prints a last message; may be called
        twice."""
        if self._mode == "plain" and self._printed is not self._snapshot:
            self._print_status()
        if self._live is not None:
            self._live.stop()
        if message:
            self.print(message)
        self._mode, self._live = "none", None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _change(self, **changes: Any) -> None:
        self._snapshot = replace(self._snapshot, **changes)

    def _print_status(self) -> None:
        self._printed, self._last_line = self._snapshot, self._now()
        print(plain_line(self._snapshot), file=self._file, flush=True)

    def _render(self) -> RenderableType:
        return display(self._snapshot, self._now() - self._start)


def plain_line(shot: Snapshot) -> str:
    """One line of text, its columns aligned with those of other lines of the run."""
    width = len(f"{shot.total:,}")
    parts = [
        f"{percent(shot)} {shot.step:{width},} steps",
        f"{shot.updates:{width},} updates",
        f"return {number(shot.last):>7} mean {number(shot.mean):>7}",
        f"{number(shot.steps_rate):>6} steps/s {number(shot.updates_rate):>6} updates/s",
        f"{duration(shot.seconds_left)} left",
    ]
    parts += [f"{shorten(name)} {number(value)}" for name, value in shown(shot)]
    return "  ".join(parts)


def display(shot: Snapshot, elapsed: float) -> RenderableType:
    """The live display: the bar as wide as the terminal, the rest at most 78 characters wide."""
    bar = Table.grid(expand=True, padding=(0, 1))
    bar.add_column(ratio=1)
    bar.add_column(no_wrap=True)
    times = f"{duration(elapsed)} [dim]elapsed[/]  {duration(shot.seconds_left)} [dim]left[/]"
    # As text, not as a string: a message printed above without markup would take it from strings.
    status = Text.from_markup(f"[bold]{percent(shot)}[/]  {times}")
    bar.add_row(ProgressBar(total=1.0, completed=shot.fraction), status)
    width = max(8, len(f"{shot.total:,}"))
    lines = [
        f"[dim]steps    [/] [bold cyan]{shot.step:{width},}[/] [dim]of {shot.total:<{width},}[/]"
        f"  {number(shot.steps_rate):>8} [dim]per second[/]",
        f"[dim]updates  [/] [bold cyan]{shot.updates:{width},}[/]    {'':{width}}"
        f"  {number(shot.updates_rate):>8} [dim]per second[/]",
        f"[dim]return   [/] [bold green]{number(shot.last):>{width}}[/] last{'':{width - 1}}"
        f"  [bold green]{number(shot.mean):>8}[/] [dim]mean of {min(shot.episodes, RECENT)}[/]",
        f"[dim]episodes [/] {shot.episodes:{width},}    {'':{width}}"
        f"  {number(shot.length):>8} [dim]steps in the last[/]",
    ]
    rows = [Text.from_markup(line) for line in lines]
    metrics = shown(shot)
    for first in range(0, len(metrics), COLUMNS):
        row = Text()
        for name, value in metrics[first : first + COLUMNS]:
            row.append(f"{shorten(name):{NAME}} ", "dim").append(f"{number(value):>8}  ")
        rows.append(row)
    for row in rows:
        row.no_wrap, row.overflow = True, "crop"
    return Group(bar, *rows)


def shown(shot: Snapshot) -> list[tuple[str, float]]:
    """The metrics on display."""
    return list(shot.metrics.items())[:SHOWN]


def percent(shot: Snapshot) -> str:
    """Four characters; 100% only when done."""
    return f"{math.floor(100 * shot.fraction):3d}%"


def number(value: float) -> str:
    """A number in at most eight characters, with about four digits; `-` when there is none."""
    size = abs(value)
    if math.isnan(value):
        return "-"
    if size >= 1e6 or 0 < size < 1e-3:
        return f"{value:.1e}"
    digits = 0 if size >= 1000 or value == 0 else 1 if size >= 100 else 2 if size >= 1 else 4
    return f"{value:,.{digits}f}"


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, days before them where there are any; `-:--:--` when unknown."""
    if not math.isfinite(seconds):
        return "-:--:--"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return (f"{days}d " if days else "") + f"{hour}:{minute:02}:{second:02}"


def shorten(name: str) -> str:
    """A name of at most 15 characters; long ones lose their first parts, the last tells most."""
    while len(name) > NAME and "/" in name:
        name = name.split("/", 1)[1]
    return name[:NAME]
