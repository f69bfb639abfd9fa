"""What a program that trains may hook into."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dreamer.run.loop import Trainer


class Callback:
    """Is told how a run goes; override what is of use.

    Everything is called between turns of the loop, where the run may be saved and stopped. `run`
    has `config`, `path`, `step`, `updates`, `metrics` (those last written) and `request_stop()`,
    after which training saves and returns, to be resumed by the same call. `TrainedAgent.of(run)`
    is the agent as it is now.

    An exception of any kind, `SystemExit` and `KeyboardInterrupt` too, ends the training: the run
    is saved first, no callback is called again, and the caller gets the exception. Runs of
    `run.seeds` are told of one after the other, and stop together.
    """

    def on_step(self, run: "Trainer") -> None:
        """After each turn. On the host, every environment was stepped once, or none while actors on
        Ray let the learner wait; in the device loop, a turn is one compiled call of many steps."""

    def on_update(self, run: "Trainer") -> None:
        """After each turn that dispatched updates, once for all of them."""

    def on_episode(self, run: "Trainer", score: float, length: int) -> None:
        """After an episode of `length` steps whose rewards sum up to `score`; in the device loop
        one call late."""

    def on_checkpoint(self, run: "Trainer", path: Path) -> None:
        """After a checkpoint was written to this folder, for which training then waits."""


class Callbacks:
    """Calls them in their order, until one raises something."""

    def __init__(self, callbacks: Sequence[Callback] = ()) -> None:
        self._callbacks = tuple(callbacks)
        self.failed = False  # one has raised something, which ends the training

    def __call__(self, hook: str, run: "Trainer", *told: object) -> None:
        """Calls one hook of all; raises what a callback raises."""
        try:
            for callback in self._callbacks:
                getattr(callback, hook)(run, *told)
        except BaseException:
            self.failed = True
            self.silence()
            raise

    def silence(self) -> None:
        """Calls none of them any more."""
        self._callbacks = ()

    def want(self, hook: str) -> bool:
        """Whether anybody overrides a hook."""
        return any(
            getattr(type(callback), hook) is not getattr(Callback, hook)
            for callback in self._callbacks
        )
