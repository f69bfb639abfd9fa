"""What happens between iterations: the base class of hooks, which users write as well."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dreamer.training.trainer import Trainer


class Callback:
    """Is called as a run proceeds; override what is of use.

    Everything is called between iterations of the loop, where the run may be saved and stopped.
    `run` has `config`, `path`, `step`, `updates`, `metrics` (those last written) and
    `request_stop()`, after which training saves and returns, to be resumed by the same call.
    `TrainedAgent.of(run)` is the agent as it is now.

    An exception of any kind, `SystemExit` and `KeyboardInterrupt` too, ends the training: the run
    is saved first, no callback is called again, and the caller gets the exception. With
    `run.seeds` the runs are reported one after the other, and stop together.
    """

    def next_step(self, run: "Trainer") -> int | None:
        """The environment step at which it needs `on_step`, None where any will do; the same on all
        hosts. In the device loop a chunk of many steps ends there if its cycles do: the rest of the
        way is done by a second program of one cycle."""
        return None

    def on_start(self, run: "Trainer") -> None:
        """Before the first iteration."""

    def on_episode(self, run: "Trainer", score: float, length: int) -> None:
        """After an episode of `length` steps whose rewards sum up to `score`; in the device loop
        one call late."""

    def on_update(self, run: "Trainer") -> None:
        """After each iteration that dispatched updates, once for all of them."""

    def on_step(self, run: "Trainer") -> None:
        """After each iteration. On the host, every environment was stepped once, or none while
        actors on Ray let the learner wait; in the device loop, an iteration is one compiled call of
        many steps."""

    def on_checkpoint(self, run: "Trainer", path: Path) -> None:
        """After a checkpoint was written to this folder, for which training then waits."""

    def on_end(self, run: "Trainer") -> None:
        """After the last iteration, when the run is done or was requested to stop; before the last
        evaluation and save."""


class StatefulHook(Callback):
    """A hook of which every checkpoint has counters, under names of their own."""

    def get_state(self) -> dict[str, Any]:
        """The counters, made of JSON types."""
        raise NotImplementedError


class Callbacks(Callback):
    """Those of the user, called in their order until one raises something."""

    def __init__(self, callbacks: Sequence[Callback] = ()) -> None:
        self._callbacks = tuple(callbacks)
        self.failed = False  # one has raised something, which ends the training

    def _call(self, event: str, *arguments: Any) -> list[Any]:
        try:
            return [getattr(callback, event)(*arguments) for callback in self._callbacks]
        except BaseException:
            self.failed = True
            self.silence()
            raise

    def silence(self) -> None:
        """Calls none of them any more."""
        self._callbacks = ()

    def overrides(self, event: str) -> bool:
        """Whether one of them overrides an event."""
        return any(
            getattr(type(one), event) is not getattr(Callback, event) for one in self._callbacks
        )

    def next_step(self, run: "Trainer") -> int | None:
        steps = self._call("next_step", run)
        return min([step for step in steps if step is not None], default=None)

    def on_start(self, run: "Trainer") -> None:
        self._call("on_start", run)

    def on_episode(self, run: "Trainer", score: float, length: int) -> None:
        self._call("on_episode", run, score, length)

    def on_update(self, run: "Trainer") -> None:
        self._call("on_update", run)

    def on_step(self, run: "Trainer") -> None:
        self._call("on_step", run)

    def on_checkpoint(self, run: "Trainer", path: Path) -> None:
        self._call("on_checkpoint", run, path)

    def on_end(self, run: "Trainer") -> None:
        self._call("on_end", run)
