"""Schedules: every so many steps, every so many seconds, or so many times per step."""

import time
from collections.abc import Callable
from fractions import Fraction
from typing import Self

from dreamer.config import Config


class EverySteps:
    """Fires once whenever the counter reaches or passes a multiple of `period`; 0 never fires.

    It does not fire at `start` itself. Whether it fires depends only on this step and that of the
    call before, so a resumed run continues exactly if `start` is the step of the last call before
    the save.
    """

    def __init__(self, period: int, start: int = 0) -> None:
        self.period = period
        self.step = start

    @property
    def next(self) -> int | None:
        """The next multiple of the period; None where it never fires."""
        return (self.step // self.period + 1) * self.period if self.period else None

    def __call__(self, step: int) -> bool:
        previous, self.step = self.step, step
        return self.period > 0 and step // self.period > previous // self.period


class EverySeconds:
    """Fires when `period` seconds have passed since it was made or last fired; 0 always fires.

    It counts wall time, so no state is saved.
    """

    def __init__(self, period: float, now: Callable[[], float] = time.monotonic) -> None:
        self.period, self.now, self.last = period, now, now()

    def __call__(self) -> bool:
        time_now = self.now()
        if time_now - self.last < self.period:
            return False
        self.last = time_now
        return True


class Ratio:
    """How many updates are owed for the environment steps done; fractions are kept.

    `per_step` is train_ratio / (batch_size * batch_length). It is held as a fraction of integers,
    so that rounding errors do not add up: after n steps exactly floor(n * per_step) updates were
    owed in all.
    """

    def __init__(self, per_step: float) -> None:
        # 0.29 means 29/100, not the double nearest to it, which is a little less.
        exact = Fraction(per_step)
        self.per_step = exact.limit_denominator(10**9) or exact
        self.step = -1
        self.remainder = 0  # of an update, in units of 1 / denominator

    @classmethod
    def of(cls, config: Config) -> Self:
        """The ratio of `replay.train_ratio`."""
        replay = config.replay
        return cls(replay.train_ratio / (replay.batch_size * replay.batch_length))

    def updates(self, step: int) -> int:
        """Returns the updates owed for the environment steps since the last call.

        The first call only starts the count and owes nothing: steps collected before training
        starts cause no burst of updates afterwards.
        """
        previous = step if self.step < 0 else self.step
        if step < previous:
            raise ValueError(f"step={step} is before the last step {previous}")
        self.step = step
        credit = self.remainder + (step - previous) * self.per_step.numerator
        owed, self.remainder = divmod(credit, self.per_step.denominator)
        return owed

    def get_state(self) -> dict[str, int]:
        """Integers that restore the count; step is -1 before the first call."""
        return {
            "step": self.step,
            "remainder": self.remainder,
            "denominator": self.per_step.denominator,
        }

    def set_state(self, state: dict[str, int]) -> None:
        """Restores the count. A changed ratio applies from the restored step on."""
        self.step = state["step"]
        self.remainder = state["remainder"] * self.per_step.denominator // state["denominator"]
