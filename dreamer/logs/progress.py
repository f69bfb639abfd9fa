"""The progress of a run on the terminal: a live display, plain lines, or nothing."""

import contextlib
import math
import os
import re
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any, Literal, Self, TextIO, cast

import rich.progress
from rich.columns import Columns
from rich.console import Console, RenderableType
from rich.constrain import Constrain
from rich.progress import BarColumn, ProgressColumn, Task
from rich.table import Column, Table
from rich.text import Text

from dreamer import errors
from dreamer.logs.rates import MAPPED, Rates, Sample, Stopwatch
from dreamer.system.streams import Forgiving

Mode = Literal["auto", "bar", "plain", "none"]

RECENT = 100  # episodes in the mean return
SHOWN = 6  # metrics on display
LABEL, NAME, NUMBER, WIDTH = 14, 15, 8, 78  # characters: labels, metrics, numbers, all of a row
# Programs that take long to compile, by the names of their functions.
PROGRAMS = {"init": "the initial weights", "act": "the policy"}
# Fields of the task of rich; nan when unknown.
FIELDS: dict[str, Any] = {
    "updates": 0,
    "steps_per_second": math.nan,
    "updates_per_second": math.nan,
    "seconds_left": math.nan,
    "episodes": 0,
    "last": math.nan,  # return
    "mean": math.nan,  # return
    "length": math.nan,  # of the last episode
    "metrics": {},
    "state": lambda: "training",
}


class Progress:
    """Shows the progress of a run: steps, updates, returns, rates, time left, a few metrics, and
    the current activity.

    Modes: `bar` draws a live display, `plain` prints one line every `interval` seconds, `none`
    prints nothing but warnings, `auto` is `bar` in a terminal and `plain` elsewhere. A terminal
    that is closed ends the display, not the run.

    Messages are printed at once, the display starts with `start`. Rates exclude compilation and
    other work than training, and are unknown until measured. A context manager, which listens to
    compilation events of jax.

    Args:
      mode: see above.
      total_steps: steps at which the run ends.
      interval: seconds between plain lines.
      file: to print to; standard output if None.
      now: returns the current time in seconds.
      leader: the progress on display instead of this one, if several runs share a process; it
        shows the activity of all of them.
    """

    def __init__(
        self,
        mode: Mode,
        total_steps: int,
        interval: float = 10.0,
        file: TextIO | None = None,
        now: Callable[[], float] = time.monotonic,
        leader: "Progress | None" = None,
    ) -> None:
        self.learning = "the update"  # name of the training program
        self._file = cast(TextIO, Forgiving(sys.stdout if file is None else file))
        forced = True if mode == "bar" else None
        console = Console(file=self._file, force_terminal=forced, highlight=False, emoji=False)
        terminal = console.is_terminal and not console.is_dumb_terminal
        self._mode = "none" if leader else mode
        if self._mode == "auto":
            self._mode = "bar" if terminal else "plain"
        self._interval, self._now = interval, now
        self._watch: Stopwatch = (
            leader._watch if leader else Stopwatch(now, self._program, self._report)
        )
        self._compilations = contextlib.nullcontext() if leader else self._watch
        self._open = contextlib.ExitStack()
        self._rates = Rates(Sample(0.0, 0.0, 0, 0))
        self._returns: deque[float] = deque(maxlen=RECENT)
        self._display = Display(console, now)
        self._display.add_task("", total=total_steps, **FIELDS | {"state": lambda: self.state})
        [self._task] = self._display.tasks
        self._last_line = -math.inf
        self._printed = True  # the current numbers, in mode plain

    def start(self, step: int = 0, updates: int = 0) -> None:
        """Starts the display of a run that starts or resumes at this step."""
        self._rates = Rates(Sample(*self._watch.read(), step, updates))
        self._set(completed=step, updates=updates)
        if self._mode == "bar":
            self._open.enter_context(self._display)

    def episode(self, score: float, length: int) -> None:
        """Adds the return and the length of an episode that ended."""
        self._returns.append(float(score))
        mean = sum(self._returns) / len(self._returns)
        episodes = self._task.fields["episodes"] + 1
        self._set(episodes=episodes, last=float(score), mean=mean, length=float(length))

    def update(self, step: int, updates: int, metrics: Mapping[str, float] | None = None) -> None:
        """Shows steps and updates of the whole run so far; metrics stay until replaced.

        The first six metrics, in the order of their first appearance, are on display.
        """
        rates = self._rates
        rates.add(Sample(*self._watch.read(), step, updates))
        self._set(
            completed=step,
            updates=updates,
            steps_per_second=rates.steps if rates.settled else math.nan,
            updates_per_second=rates.updates if rates.settled else math.nan,
            seconds_left=rates.seconds_left(int(self._task.total or 0) - step),
        )
        if metrics:
            shown = self._task.fields["metrics"] | metrics
            self._set(metrics=dict(list(shown.items())[:SHOWN]))
        if self._mode == "plain" and self._now() - self._last_line >= self._interval:
            self._print_status()

    @property
    def rates(self) -> dict[str, float]:
        """The known rates by their names in metrics: steps and updates per second of training."""
        found = {
            "perf/steps_per_second": self._rates.steps,
            "perf/updates_per_second": self._rates.updates,
        }
        return {name: rate for name, rate in found.items() if not math.isnan(rate)}

    def other_work(self, what: str) -> AbstractContextManager[None]:
        """A context for other work than training, such as an evaluation."""
        return self._watch.other_work(what)

    @property
    def state(self) -> str:
        """The current activity of the run."""
        waiting = "" if self._rates.learning else "before the first update"
        return self._watch.activity or waiting or "training"

    def print(self, line: str) -> None:
        """Prints a message, above the display if there is one; nothing in mode `none`."""
        if self._display.live.is_started:
            self._display.console.print(line, markup=False, soft_wrap=True)
        elif self._mode != "none":
            errors.emit(line, self._file)

    def note(self, line: str) -> None:
        """Prints a message on standard error in every mode, above the display if that is on the
        same terminal; from any thread."""
        if self._display.live.is_started and _is_terminal(sys.stderr):
            self.print(line)
        else:
            errors.emit(line, sys.stderr)

    def release(self) -> None:
        """Restores the terminal right before the process ends, from any thread."""
        if self._display.live.is_started:
            with contextlib.suppress(OSError, ValueError):
                os.write(self._file.fileno(), b"\n\x1b[?25h")  # shows the cursor

    def close(self, message: str = "") -> None:
        """Draws the final state, restores the terminal and prints a last message. A second call
        does nothing."""
        if self._mode == "plain" and not self._printed:
            self._print_status()
        self._open.close()
        if message:
            self.print(message)
        self._mode = "none"

    def __enter__(self) -> Self:
        self._open.enter_context(self._compilations)
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _program(self, function: str) -> str:
        return self.learning if function == MAPPED else PROGRAMS.get(function, "")

    def _report(self, line: str) -> None:
        if not self._display.live.is_started:  # the display shows the state
            with contextlib.suppress(Exception):  # jax is compiling, and must not fail
                self.print(line)

    def _set(self, **values: Any) -> None:
        self._printed = False
        self._display.update(self._task.id, **values)

    def _print_status(self) -> None:
        self._printed, self._last_line = True, self._now()
        errors.emit(plain_line(self._task), self._file)


class Times(ProgressColumn):
    """Percent done, time elapsed and time left. The columns of rich round up to 100%, stop the
    clock at the last step, and include compilation in the time left."""

    def render(self, task: Task) -> Text:
        left = duration(task.fields["seconds_left"])
        times = f"{duration(task.elapsed or 0.0)} [dim]elapsed[/]  {left} [dim]left[/]"
        return Text.from_markup(f"[bold]{percent(task)}[/]  {times}")


class Display(rich.progress.Progress):
    """A bar as wide as the terminal, and the numbers of its task below, at most 78 characters wide.

    Args:
      console: to draw on.
      now: returns the current time in seconds.
    """

    def __init__(self, console: Console, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__(
            BarColumn(bar_width=None, table_column=Column(ratio=1)),
            Times(table_column=Column(no_wrap=True)),
            console=console,
            refresh_per_second=4,
            # Not if it is redirected to a file, which must receive it.
            redirect_stderr=_is_terminal(sys.stderr),
            get_time=now,
            expand=True,
        )

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        for task in self.tasks:
            state = task.fields["state"]()
            yield numbers(task)
            yield Text.assemble((f"{'now':{LABEL}} ", "dim"), state, no_wrap=True, overflow="crop")
            metrics = [
                Text.assemble((f"{shorten(name):{NAME}} ", "dim"), f"{number(value):>{NUMBER}}")
                for name, value in task.fields["metrics"].items()
            ]
            yield Constrain(Columns(metrics, padding=(0, 2)), WIDTH)


def numbers(task: Task) -> Table:
    """A table of steps, updates and episodes, with columns of fixed positions."""
    total, fields = f"{task.total or 0:,.0f}", task.fields
    width = max(NUMBER, len(total))
    table = Table.grid(
        Column(style="dim", width=LABEL),
        Column(style="bold cyan", justify="right", width=width),
        Column(style="dim", width=width + len("of ")),
        Column(justify="right", width=NUMBER),
        Column(style="dim", ratio=1),
        padding=(0, 1),
    )
    table.width = WIDTH  # narrower terminals crop it at the right
    last, mean = (Text(number(fields[name]), "bold green") for name in ("last", "mean"))
    steps, updates = (number(fields[f"{name}_per_second"]) for name in ("steps", "updates"))
    table.add_row("steps", f"{task.completed:,.0f}", f"of {total}", steps, "per second")
    table.add_row("updates", f"{fields['updates']:,}", "", updates, "per second")
    recent = f"mean of {min(fields['episodes'], RECENT)}"
    table.add_row("episode/return", last, "last", mean, recent)
    length = number(fields["length"])
    table.add_row("episodes", f"{fields['episodes']:,}", "", length, "steps in the last")
    return table


def plain_line(task: Task) -> str:
    """A line of text, aligned with other lines of the run."""
    width, fields = len(f"{task.total or 0:,.0f}"), task.fields
    parts = [
        f"{percent(task)} {task.completed:{width},.0f} steps",
        f"{fields['updates']:{width},} updates",
        f"episode/return {number(fields['last']):>7} mean {number(fields['mean']):>7}",
        f"{number(fields['steps_per_second']):>6} steps/s"
        f" {number(fields['updates_per_second']):>6} updates/s",
        f"{duration(fields['seconds_left'])} left",
    ]
    parts += [f"{shorten(name)} {number(value)}" for name, value in fields["metrics"].items()]
    return "  ".join(parts)


def percent(task: Task) -> str:
    """Four characters; 100% only when done."""
    return f"{math.floor(task.percentage):3d}%"


def number(value: float) -> str:
    """A number in at most eight characters, with about four digits; `-` when unknown."""
    size = abs(value)
    if math.isnan(value):
        return "-"
    if size >= 1e6 or 0 < size < 1e-3:
        return f"{value:.1e}"
    digits = 0 if size >= 1000 or value == 0 else 1 if size >= 100 else 2 if size >= 1 else 4
    return f"{value:,.{digits}f}"


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, after days if there are any; `-:--:--` when unknown."""
    if not math.isfinite(seconds):
        return "-:--:--"
    return re.sub(" days?, ", "d ", str(timedelta(seconds=round(seconds))))


def shorten(name: str) -> str:
    """A name of at most 15 characters; long names lose their first parts."""
    while len(name) > NAME and "/" in name:
        name = name.split("/", 1)[1]
    return name[:NAME]


def _is_terminal(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stream.isatty()
    except (AttributeError, ValueError):
        return False
