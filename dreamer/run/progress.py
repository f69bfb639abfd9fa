"""The progress of a run on the terminal: a live display, plain lines, or nothing."""

import contextlib
import math
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, Self, TextIO, cast

from jax import monitoring
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from dreamer import errors
from dreamer.streams import Forgiving

Mode = Literal["auto", "bar", "plain", "none"]
Kind = Literal["training", "beside", "compiling"]

RECENT = 100  # episodes in the mean return
WINDOW = 30.0  # seconds over which rates are measured
SETTLED = 1.0  # seconds after which they are on display
SHOWN = 6  # metrics on display
COLUMNS = 3  # metrics in a row of 78 characters
NAME = 15  # characters of a metric's name on display
COMPILATION = "/jax/core/compile/"  # of the events of jax: tracing, lowering, compiling
COMPILED = "/jax/core/compile/backend_compile_duration"  # the last of them
# What takes long to compile, by the names of functions.
PROGRAMS = {"init": "the initial weights", "act": "the policy"}
MAPPED = "_fun"  # so jax names every function that pmap compiles
LONG = 0.2  # seconds to trace the one that learns, at least; others take less


@dataclass(frozen=True)
class Snapshot:
    """What is on display: replaced as a whole, because the display is drawn by another thread."""

    total: int
    step: int = 0
    updates: int = 0
    steps_rate: float = math.nan  # per second of training
    updates_rate: float = math.nan
    slowdown: float = 1.0  # seconds until a step per second of training; nan when unknown
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
        if not left:
            return 0.0
        return self.slowdown * left / self.steps_rate if self.steps_rate > 0 else math.nan


class Stopwatch:
    """Seconds of training, of what is done beside it, and of compiling: every moment is of one
    kind."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now, self._since = now, now()
        self._kind: Kind = "training"
        self._seconds: dict[Kind, float] = {"training": 0.0, "beside": 0.0, "compiling": 0.0}

    def turn(self, kind: Kind) -> Kind:
        """Counts for another kind from here on; gives the one before."""
        self.read()
        before, self._kind = self._kind, kind
        return before

    def read(self) -> tuple[float, float]:
        """Seconds of training and beside it so far."""
        now = self._now()
        self._seconds[self._kind] += now - self._since
        self._since = now
        return self._seconds["training"], self._seconds["beside"]


class Sample(NamedTuple):
    """What was done when."""

    training: float  # seconds
    beside: float
    step: int
    updates: int


class Rates:
    """Steps and updates per second of training, over the last `window` seconds.

    Before the first update it counts steps alone. From then on it measures from update to update,
    so that every interval has the steps and the updates that belong together.

    Args:
      start: where the run starts or resumes.
      window: seconds of training.
    """

    def __init__(self, start: Sample, window: float = WINDOW) -> None:
        self.window = window
        self.learning = False  # whether there was an update since
        self.samples = deque([start])
        self._first = start  # of learning

    def note(self, sample: Sample) -> None:
        """Takes what is done so far."""
        training, updates, newest = sample.training, sample.updates, self.samples[-1]
        if not self.learning and updates > newest.updates:
            # The first update was compiled or even run since the last sample: all starts here.
            self.learning, self._first = True, sample
            self.samples.clear()
        elif self.learning and updates == newest.updates:
            return
        # Frequent samples share the newest: a window holds a hundred of them, not a million.
        elif len(self.samples) > 1 and training - self.samples[-2].training < self.window / 100:
            self.samples.pop()
        self.samples.append(sample)
        while len(self.samples) > 2 and training - self.samples[1].training >= self.window:
            self.samples.popleft()

    @property
    def seconds(self) -> float:
        """Of training, over which they are measured."""
        return self.samples[-1].training - self.samples[0].training

    @property
    def steps(self) -> float:
        """Per second; nan when unknown."""
        return self._per_second(self.samples[-1].step - self.samples[0].step)

    @property
    def updates(self) -> float:
        """Per second; nan when unknown, which it is before the first."""
        count = self.samples[-1].updates - self.samples[0].updates
        return self._per_second(count) if self.learning else math.nan

    @property
    def slowdown(self) -> float:
        """Seconds with what is done beside training, per second of training since the first
        update; nan before it."""
        newest = self.samples[-1]
        training = newest.training - self._first.training
        if not self.learning or training <= 0:
            return math.nan
        return 1 + (newest.beside - self._first.beside) / training

    def _per_second(self, count: int) -> float:
        return count / self.seconds if self.seconds > 0 else math.nan


class Progress:
    """Shows how far a run is: steps, updates, returns, rates, time left, a few metrics, and what it
    does.

    Modes: `bar` draws a live display, `plain` prints one line every `interval` seconds, `none`
    prints nothing but warnings, `auto` is `bar` in a terminal and `plain` elsewhere. A terminal
    that goes away ends the display, not the run.

    Lines are printed from the beginning, the display comes with `start`. Rates and the time left
    are without compilation and without what is done beside training, and unknown until they are
    measured. A context manager, in which jax reports what it compiles.

    Args:
      mode: see above.
      total_steps: at which the run ends.
      interval: seconds between plain lines.
      file: to print to; standard output if None.
      now: seconds.
      leader: the one on display, where several runs share a process, instead of this one. It shows
        what all of them do.
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
        self.learning = "the update"  # what the program is called that learns
        self._file = cast(TextIO, Forgiving(sys.stdout if file is None else file))
        self._mode = self._resolve("none" if leader else mode)
        self._interval = interval
        self._now = now
        self._start = now()
        self._last_line = -math.inf
        self._leader = leader
        self._watch: Stopwatch = leader._watch if leader else Stopwatch(now)
        self._rates = Rates(Sample(0.0, 0.0, 0, 0))
        self._returns: deque[float] = deque(maxlen=RECENT)
        self._snapshot = Snapshot(total_steps)
        self._printed: Snapshot | None = self._snapshot
        self._live: Live | None = None
        self._beside = ""  # what is done beside training
        self._thread = threading.get_ident()  # of training; others may compile meanwhile
        self._depth = 0  # compilations in compilations
        self._before: Kind = "training"  # what is done when they are over
        self._compiling: tuple[str, float] | None = None  # what and since when
        self._spent: dict[str, float] = {}  # seconds so far, of what is not compiled yet
        self._said: set[str] = set()  # of it, what was said to compile

    def _resolve(self, mode: Mode) -> str:
        if mode != "auto":
            return mode
        console = Console(file=self._file)
        return "bar" if console.is_terminal and not console.is_dumb_terminal else "plain"

    def start(self, step: int = 0, updates: int = 0) -> None:
        """Begins the display, of a run that starts or resumes at this step."""
        self._rates = Rates(Sample(*self._watch.read(), step, updates))
        self._change(step=step, updates=updates)
        self._printed = None
        if self._mode == "bar" and self._live is None:
            console = Console(file=self._file, force_terminal=True, highlight=False)
            self._live = Live(
                get_renderable=self._render,
                console=console,
                refresh_per_second=4,
                # Only where it is the same terminal: what is sent to a file goes there.
                redirect_stderr=_is_terminal(sys.stderr),
            )
            self._live.start()

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
        rates = self._rates
        rates.note(Sample(*self._watch.read(), step, updates))
        settled = rates.seconds >= SETTLED
        self._change(
            step=step,
            updates=updates,
            steps_rate=rates.steps if settled else math.nan,
            updates_rate=rates.updates if settled else math.nan,
            slowdown=rates.slowdown,
            metrics=self._snapshot.metrics
            | {name: float(value) for name, value in (metrics or {}).items()},
        )
        if self._mode == "plain" and self._now() - self._last_line >= self._interval:
            self._print_status()

    @property
    def rates(self) -> dict[str, float]:
        """Steps and updates per second of training, by their names in metrics; those that are
        known."""
        found = {
            "perf/steps_per_second": self._rates.steps,
            "perf/updates_per_second": self._rates.updates,
        }
        return {name: rate for name, rate in found.items() if not math.isnan(rate)}

    @contextlib.contextmanager
    def beside(self, what: str) -> Iterator[None]:
        """In this context something is done beside training, such as an evaluation."""
        shown = self._leader or self
        before, shown._beside = shown._beside, what
        kind = self._watch.turn("beside")
        try:
            yield
        finally:
            self._watch.turn(kind)
            shown._beside = before

    @property
    def state(self) -> str:
        """What the run does."""
        compiling = self._compiling
        if compiling:
            name, since = compiling
            seconds = self._spent.get(name, 0.0) + self._now() - since
            return f"compiling {self._program(name)}, {seconds:.0f} s so far"
        if self._beside:
            return self._beside
        if not self._rates.learning:
            return "before the first update"
        return "training"

    def print(self, line: str) -> None:
        """Prints a message, above the display where there is one; nothing with `none`."""
        if self._live is not None:
            self._live.console.print(line, markup=False, soft_wrap=True)
        elif self._mode in ("plain", "bar"):
            errors.emit(line, self._file)

    def note(self, line: str) -> None:
        """Prints a message on standard error in every mode, above the display if that is on the
        same terminal; from any thread."""
        if self._live is not None and _is_terminal(sys.stderr):
            self.print(line)
        else:
            errors.emit(line, sys.stderr)

    def release(self) -> None:
        """Gives the terminal back right before the process ends, from any thread."""
        if self._live is not None:
            with contextlib.suppress(OSError, ValueError):
                os.write(self._file.fileno(), b"\n\x1b[?25h")  # shows the cursor

    def close(self, message: str = "") -> None:
        """Draws the last state, gives the terminal back, and prints a last message; may be called
        twice."""
        if self._mode == "plain" and self._printed is not self._snapshot:
            self._print_status()
        live, self._live = self._live, None
        if live is not None:
            live.stop()
        if message:
            self.print(message)
        self._mode = "none"

    def __enter__(self) -> Self:
        if not self._leader:
            monitoring.register_scalar_listener(self._compilation_begins)
            monitoring.register_event_duration_secs_listener(self._compilation_ends)
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if not self._leader:
                monitoring.unregister_scalar_listener(self._compilation_begins)
                monitoring.unregister_event_duration_listener(self._compilation_ends)
        finally:
            self.close()

    def _compilation_begins(self, event: str, value: float | int, **of: str | int) -> None:
        """Called by jax where it begins to trace, to lower or to compile a function, one within
        another."""
        if not event.startswith(COMPILATION) or threading.get_ident() != self._thread:
            return
        self._depth += 1
        if self._depth > 1:
            return
        self._before = self._watch.turn("compiling")
        name = str(of.get("fun_name", "")).removeprefix("jit(").removesuffix(")")
        self._compiling = name, self._now()
        if name not in self._said and (name != MAPPED or self._spent.get(name, 0.0) >= LONG):
            self._said.add(name)
            self._say(name, f"compiling {self._program(name)}")

    def _compilation_ends(self, event: str, duration_secs: float, **of: str | int) -> None:
        if not event.startswith(COMPILATION) or threading.get_ident() != self._thread:
            return
        if self._depth == 0:  # began before this context
            return
        self._depth -= 1
        if self._depth or self._compiling is None:
            return
        self._watch.turn(self._before)
        (name, since), self._compiling = self._compiling, None
        spent = self._spent.pop(name, 0.0) + self._now() - since
        if event != COMPILED:
            self._spent[name] = spent
            return
        self._said.discard(name)
        if spent >= 1:
            self._say(name, f"compiled {self._program(name)} in {spent:.0f} s")

    def _program(self, name: str) -> str:
        """What a function is when compiled, if that takes long."""
        return self.learning if name == MAPPED else PROGRAMS.get(name, "")

    def _say(self, name: str, line: str) -> None:
        """Prints a line on a program that takes long, where no display shows it."""
        if self._program(name) and self._live is None:
            with contextlib.suppress(Exception):  # jax is compiling, and must not fail
                self.print(line)

    def _change(self, **changes: Any) -> None:
        self._snapshot = replace(self._snapshot, **changes)

    def _print_status(self) -> None:
        self._printed, self._last_line = self._snapshot, self._now()
        errors.emit(plain_line(self._snapshot), self._file)

    def _render(self) -> RenderableType:
        return display(self._snapshot, self._now() - self._start, self.state)


def _is_terminal(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stream.isatty()
    except (AttributeError, ValueError):
        return False


def plain_line(shot: Snapshot) -> str:
    """One line of text, its columns aligned with those of other lines of the run."""
    width = len(f"{shot.total:,}")
    parts = [
        f"{percent(shot)} {shot.step:{width},} steps",
        f"{shot.updates:{width},} updates",
        f"episode/return {number(shot.last):>7} mean {number(shot.mean):>7}",
        f"{number(shot.steps_rate):>6} steps/s {number(shot.updates_rate):>6} updates/s",
        f"{duration(shot.seconds_left)} left",
    ]
    parts += [f"{shorten(name)} {number(value)}" for name, value in shown(shot)]
    return "  ".join(parts)


def display(shot: Snapshot, elapsed: float, state: str = "training") -> RenderableType:
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
        f"[dim]steps         [/] [bold cyan]{shot.step:{width},}[/]"
        f" [dim]of {shot.total:<{width},}[/]"
        f"  {number(shot.steps_rate):>8} [dim]per second[/]",
        f"[dim]updates       [/] [bold cyan]{shot.updates:{width},}[/]    {'':{width}}"
        f"  {number(shot.updates_rate):>8} [dim]per second[/]",
        f"[dim]episode/return[/] [bold green]{number(shot.last):>{width}}[/] last{'':{width - 1}}"
        f"  [bold green]{number(shot.mean):>8}[/] [dim]mean of {min(shot.episodes, RECENT)}[/]",
        f"[dim]episodes      [/] {shot.episodes:{width},}    {'':{width}}"
        f"  {number(shot.length):>8} [dim]steps in the last[/]",
        f"[dim]{'now':14}[/] {state}",
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
