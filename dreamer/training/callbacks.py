"""What happens between iterations: the base class of hooks, which users write as well."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from dreamer.training.trainer import Trainer

Run: TypeAlias = "Trainer"  # as hooks get it


class Callback:
    """Is called as a run proceeds; override the methods of interest.

    All methods are called between iterations of the loop, where the run may be saved and stopped.
    `run` has `config`, `path`, `step`, `updates`, `metrics` (those last written) and
    `request_stop()`, after which training saves and returns, to be resumed by the same call.
    `TrainedAgent.of(run)` is the current agent.

    An exception of any kind, `SystemExit` and `KeyboardInterrupt` too, ends the training: the run
    is saved first, no callback is called again, and the caller gets the exception. With
    `run.seeds` the runs are reported one after the other, and stop together.
    """

    def next_step(self, run: "Trainer") -> int | None:
        """The environment step at which it needs `on_step`, None where any will do; the same on all
        hosts. In the device loop a chunk of many steps ends there if its cycles do: the remaining
        steps are done by a second program of one cycle. The first call of the device loop, which
        fills the replay without updates, does not end there."""
        return None

    def on_start(self, run: "Trainer") -> None:
        """Before the first iteration."""

    def on_episode(self, run: "Trainer", score: float, length: int) -> None:
        """After an episode of `length` steps whose rewards sum up to `score`; in the device loop
        one call late."""

    def on_update(self, run: "Trainer") -> None:
        """After each iteration that dispatched updates, once for all of them."""

    def on_step(self, run: "Trainer") -> None:
        """After each iteration. On the host, every environment was stepped once, or none while the
        learner waits for actors on Ray; in the device loop, an iteration is one compiled call of
        many steps."""

    def on_checkpoint(self, run: "Trainer", path: Path) -> None:
        """After a checkpoint was written to this folder, for which training then waits."""

    def on_end(self, run: "Trainer") -> None:
        """After the last iteration, when the run is done or a stop was requested; before the last
        evaluation and save."""


class Callbacks(list[Callback]):
    """Those of the user; emptied when one of them raises something, or the training ends early."""

    failed = False  # one raised something

    def call(self, hook: Callback, event: str, *arguments: Any) -> Any:
        """Calls a method of a hook; if it is one of these and raises, none is called again."""
        try:
            return getattr(hook, event)(*arguments)
        except BaseException:
            if any(hook is one for one in self):
                self.failed = True
                self.clear()
            raise
