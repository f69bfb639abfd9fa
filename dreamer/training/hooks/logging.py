"""Metrics, episodes and restarts of a run: into its files and on its display."""

import contextlib

import jax

from dreamer.distributed import mesh
from dreamer.logs.metrics import SKIPPED, Reading
from dreamer.logs.plan import plan
from dreamer.logs.writers import Logger, Silent
from dreamer.rollout.driver import transition_spec
from dreamer.training.callbacks import Callback, Run
from dreamer.training.schedules import EverySeconds

# Metrics in the progress display.
SHOWN = ("loss/total", "loss/reward", "kl", "imagined_return", "value")


class Logging(Callback):
    """Logs episodes and restarts, and the metrics of updates every `log.every_seconds`.

    Args:
      run: restored.
      stack: closes the files.

    Raises:
      UserError: they cannot be written.
    """

    def __init__(self, run: Run, stack: contextlib.ExitStack) -> None:
        first = run.sync.first
        self.logger = Logger(run.path, run.config.log.tensorboard) if first else Silent()
        stack.callback(run.console.attempt, "cannot write metrics", self.logger.close)
        self.logger.truncate(run.step if run.step else -1)
        self.reading: Reading | None = None  # of this iteration
        self.skipping = False  # the last update that was read was skipped
        self.skipped = run.checkpoints.saved.get("skipped", 0)  # updates that were not finite
        # Restarts reported so far; those of a restored run by `Loop.set_state`.
        self._restarts = len(run.loop.restarts) if run.checkpoints.saved else 0
        self._run = run

    def announce(self) -> None:
        """Prints the plan of the run, and what it starts from."""
        run = self._run
        if run.loop.where == "device":
            run.console.progress.learning = "the device loop"
        if run.sync.first and not run.leader:
            loop, devices = run.loop, mesh.everywhere(run.devices)
            weights = sum(x.size for x in jax.tree.leaves(loop.learner.params))
            spec, stored = transition_spec(loop.agent), loop.learner.stored
            run.console.print(plan(run.config, weights, spec, devices, stored, loop.loaded))
        if run.checkpoints.origin:
            run.console.print(run.checkpoints.origin)

    def conclude(self) -> None:
        """Prints how the run ended, and closes the display."""
        run, due = self._run, self._run.evaluation.is_due(self._run)
        state = "stopped, the same command resumes"
        if run.step >= run.config.run.steps and not due:
            state = "done"
        elif run.step >= run.config.run.steps and not run.sync.stop:
            state = "done, but not evaluated; the same command evaluates again"
        last = f"{state}: step {run.step:,}, {run.updates:,} updates, in {run.path}"
        if run.leader:
            run.console.print(last)
        else:
            run.console.attempt("the display fails", run.console.progress.close, last)

    def on_start(self, run: Run) -> None:
        if not run.leader:
            run.stop.begin(run.console.progress)
        run.console.progress.start(run.step, run.updates)
        self._clock = run.sync.clock(EverySeconds(run.config.log.every_seconds))

    def on_episode(self, run: Run, score: float, length: int) -> None:
        run.console.attempt("the display fails", run.console.progress.episode, score, length)
        self.write({"episode/return": score, "episode/length": length})

    def on_step(self, run: Run) -> None:
        self.report_restarts()
        self._show()
        self.reading = self.read() if self._clock() else None

    def on_end(self, run: Run) -> None:
        run.console.attempt("the last metrics are lost", self.read, True)

    def read(self, wait: bool = False) -> Reading:
        """Reads and logs the metrics of updates, see `LateMetrics.read`."""
        run = self._run
        reading = run.loop.learner.read_metrics(wait)
        self.skipping = reading.in_a_row > 0
        if reading.skipped:
            self.skipped += reading.skipped
            count = f"{reading.skipped:,} update{'s' if reading.skipped > 1 else ''} skipped"
            what = f"not finite: {', '.join(reading.not_finite)}"
            run.console.warn(f"{count}, {self.skipped:,} in all; {what}")
        if reading.averages or reading.skipped:
            averages = reading.averages | dict(run.loop.gauges if reading.averages else {})
            counts = {"updates": run.updates, SKIPPED: self.skipped}
            run.metrics = averages | counts | run.console.progress.rates
            self.write(run.metrics)
            self._show({key: averages[key] for key in SHOWN if key in averages})
        return reading

    def report_restarts(self) -> None:
        """Warns of environments that were restarted since the last call."""
        new = self._run.loop.restarts[self._restarts :]
        for restart in new:
            self._run.console.warn(restart.line)
        if new:
            self._restarts += len(new)
            self.write({"env/restarts": self._restarts})

    def write(self, metrics: dict[str, float]) -> None:
        """Writes metrics of this step, if it can."""
        run = self._run
        run.console.attempt("cannot write metrics", self.logger.write, run.step, metrics)

    def _show(self, *metrics: dict[str, float]) -> None:
        run = self._run
        update = run.console.progress.update
        run.console.attempt("the display fails", update, run.step, run.updates, *metrics)
