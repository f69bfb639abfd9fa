"""Training speed: seconds of training without compilation, and rates over a window."""

import contextlib
import math
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple, Self

from jax import monitoring

Kind = Literal["training", "other", "compiling"]

WINDOW = 30.0  # seconds over which rates are measured
SETTLED = 1.0  # seconds after which they are shown
PHASES = "/jax/core/compile/"  # events of jax: tracing, lowering, compiling
LAST_PHASE = "/jax/core/compile/backend_compile_duration"
MAPPED = "_fun"  # jax's name for every function compiled by pmap
LONG = 0.2  # seconds; of the functions of pmap, only the update takes this long to trace


class Stopwatch:
    """Seconds of training, of other work such as an evaluation, and of compilation.

    A context manager, which listens to compilation events of jax. Only the thread that creates the
    stopwatch is timed; other threads may compile at the same time.

    Args:
      now: returns the current time in seconds.
      describe: the name of the program of a function; '' for programs that compile fast.
      report: receives a line when compilation of a named program starts, and when it ends.
    """

    def __init__(
        self,
        now: Callable[[], float],
        describe: Callable[[str], str] = str,
        report: Callable[[str], object] = str,
    ) -> None:
        self._now, self._describe, self._report = now, describe, report
        self._kind: Kind = "training"
        self._since = now()
        self._seconds: dict[Kind, float] = {"training": 0.0, "other": 0.0, "compiling": 0.0}
        self._work = ""  # name of the other work
        self._thread = threading.get_ident()
        self._depth = 0  # of nested compilations
        self._before: Kind = "training"  # the kind before a compilation
        self._function = ""  # the outermost function under compilation
        self._spent: dict[str, float] = {}  # seconds by function, of earlier phases

    def switch(self, kind: Kind) -> Kind:
        """Counts time as another kind from now on; returns the previous kind."""
        now, previous = self._now(), self._kind
        self._seconds[previous] += now - self._since
        self._since, self._kind = now, kind
        return previous

    def read(self) -> tuple[float, float]:
        """Seconds of training, and of other work."""
        self.switch(self._kind)
        return self._seconds["training"], self._seconds["other"]

    @contextlib.contextmanager
    def other_work(self, work: str) -> Iterator[None]:
        """A context whose time counts as other work than training."""
        before, self._work = self._work, work
        kind = self.switch("other")
        try:
            yield
        finally:
            self.switch(kind)
            self._work = before

    @property
    def activity(self) -> str:
        """The current activity; '' for training."""
        if self._kind != "compiling":
            return self._work
        seconds = self._spent.get(self._function, 0.0) + self._now() - self._since
        return f"compiling {self._describe(self._function)}, {seconds:.0f} s so far"

    def __enter__(self) -> Self:
        monitoring.register_scalar_listener(self._phase_started)
        monitoring.register_event_duration_secs_listener(self._phase_ended)
        return self

    def __exit__(self, *_: object) -> None:
        monitoring.unregister_scalar_listener(self._phase_started)
        monitoring.unregister_event_duration_listener(self._phase_ended)

    def _is_timed(self, event: str) -> bool:
        return event.startswith(PHASES) and threading.get_ident() == self._thread

    def _phase_started(self, event: str, value: float | int, **labels: str | int) -> None:
        if not self._is_timed(event):
            return
        self._depth += 1
        if self._depth > 1:
            return
        name = str(labels.get("fun_name", "")).removeprefix("jit(").removesuffix(")")
        self._function = name
        self._before = self.switch("compiling")
        long = name != MAPPED or self._spent.get(name, 0.0) >= LONG
        if event == LAST_PHASE and long and (program := self._describe(name)):
            self._report(f"compiling {program}")

    def _phase_ended(self, event: str, duration_secs: float, **labels: str | int) -> None:
        if not self._is_timed(event) or not self._depth:  # started before this context
            return
        self._depth -= 1
        if self._depth:
            return
        name = self._function
        seconds = self._spent.pop(name, 0.0) + self._now() - self._since
        self.switch(self._before)
        if event != LAST_PHASE:
            self._spent[name] = seconds
        elif seconds >= 1 and (program := self._describe(name)):
            self._report(f"compiled {program} in {seconds:.0f} s")


class Sample(NamedTuple):
    """Progress at one moment."""

    training: float  # seconds
    other: float  # seconds
    step: int
    updates: int


class Rates:
    """Steps and updates per second of training, over the last `window` seconds.

    Counts only steps before the first update. Then it measures from update to update, so that every
    interval has whole cycles of steps and updates.

    Args:
      start: where the run starts or resumes.
      window: seconds of training.
    """

    def __init__(self, start: Sample, window: float = WINDOW) -> None:
        self.window = window
        self.learning = False  # whether there was an update since the start
        self.samples = deque([start])
        self._first = start  # the first sample with an update

    def add(self, sample: Sample) -> None:
        """Adds the current progress."""
        training, updates, newest = sample.training, sample.updates, self.samples[-1]
        if not self.learning and updates > newest.updates:
            # The first update was compiled since the last sample: measures from here.
            self.learning, self._first = True, sample
            self.samples.clear()
        elif self.learning and updates == newest.updates:
            return
        # Frequent samples replace the newest: a window has about a hundred samples.
        elif len(self.samples) > 1 and training - self.samples[-2].training < self.window / 100:
            self.samples.pop()
        self.samples.append(sample)
        while len(self.samples) > 2 and training - self.samples[1].training >= self.window:
            self.samples.popleft()

    @property
    def settled(self) -> bool:
        """Whether rates cover enough time to be shown."""
        return self._seconds >= SETTLED

    @property
    def steps(self) -> float:
        """Per second; nan when unknown."""
        return self._per_second(self.samples[-1].step - self.samples[0].step)

    @property
    def updates(self) -> float:
        """Per second; nan when unknown, as before the first update."""
        count = self.samples[-1].updates - self.samples[0].updates
        return self._per_second(count) if self.learning else math.nan

    def seconds_left(self, steps: int) -> float:
        """Seconds until so many more steps, with the fraction of time of other work since the first
        update; nan when unknown."""
        if steps <= 0:
            return 0.0
        if not (self.learning and self.settled and self.steps > 0):
            return math.nan
        first, last = self._first, self.samples[-1]
        slowdown = 1 + (last.other - first.other) / (last.training - first.training)
        return steps / self.steps * slowdown

    @property
    def _seconds(self) -> float:
        return self.samples[-1].training - self.samples[0].training

    def _per_second(self, count: int) -> float:
        return count / self._seconds if self._seconds > 0 else math.nan
