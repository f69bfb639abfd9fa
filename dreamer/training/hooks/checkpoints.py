"""Restores the newest checkpoint; saves periodically, on request, at the end and on failure."""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from dreamer.agents import agent_spaces
from dreamer.checkpoint import folder, manager, paths, shared
from dreamer.checkpoint.manager import Checkpointer, SaveError
from dreamer.config import serialization
from dreamer.datasets import initial
from dreamer.datasets.initial import Initial
from dreamer.distributed import hosts
from dreamer.envs import saved_spaces
from dreamer.errors import EnvironmentFault, UserError, describe, emit
from dreamer.logs.writers import VIDEOS
from dreamer.system import files
from dreamer.training.callbacks import Callback, Run
from dreamer.training.hooks.rollback import COUNT, Exhausted, RolledBack
from dreamer.training.retry import Retry
from dreamer.training.schedules import EverySeconds, EverySteps

REFUSED = (UserError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError)


def start_loop(run: Run) -> Initial:
    """Starts the loop of a run that has no checkpoint; returns what it starts from."""
    first = initial.choose(run.config, run.loop.agent, run.loop.learner.params)
    run.loop.start(first)
    return first


class Checkpoints(Callback):
    """The checkpoints of a run, restored and saved.

    Args:
      run: with its loop, which is started or restored; its folder is locked.
      stack: waits for the last save.
      fresh: whether the folder is new.
      started: initial data of a loop that is started; None where there is a checkpoint to restore.

    Raises:
      UserError: the checkpoint does not fit, or the folder cannot be written.
    """

    def __init__(
        self, run: Run, stack: contextlib.ExitStack, fresh: bool, started: Initial | None
    ) -> None:
        self._run = run
        files.refuse_links(run.path, paths.CHECKPOINTS, VIDEOS)
        if fresh:
            folder.prepare(run.path, serialization.to_yaml(run.config))
        for place in (run.path, run.path / VIDEOS):
            files.remove_stale(place)
        directory = paths.checkpoint_folder(run.config)
        self.manager = Checkpointer(directory, run.config.checkpoint.keep)
        stack.push(self._end)
        self.retry = Retry(self.manager, self._save, run.console.note)
        self._unsaved = -1  # the last step that could not be saved
        self.saved: dict[str, Any] = {}  # counters of the checkpoint that was restored
        self.origin = self._restore(fresh, started)  # what the run starts from, in words
        if not fresh:  # only now is it known that the checkpoint fits a changed configuration
            folder.prepare(run.path, serialization.to_yaml(run.config))

    # ------------------------------------------------------------------------------- restoring

    def _restore(self, fresh: bool, started: Initial | None) -> str:
        """Restores the newest checkpoint that all hosts have; returns what the run starts from."""
        run = self._run
        if self.manager.latest_step() is not None:
            run.console.progress.print("restoring the newest checkpoint")
        found = shared.restore(self.manager, run.loop.learner.state, fresh)
        if found is None:
            first = started or start_loop(run)  # some other host does not have the checkpoint
            return str(first) if fresh else f"{run.path} had saved nothing yet and restarts"
        state, arrays, self.saved = found
        path = self.manager.directory / str(self.manager.latest_step())
        if arrays is None:
            raise UserError(f"the checkpoint {path} cannot be resumed: it has no replay")
        paths.refuse_checkpoint_of(self.saved["run"], run.config)
        paths.refuse_other_kind(self.saved.get("offline", False), run.config)
        try:
            note = run.loop.set_state(state, arrays, self.saved)
        except EnvironmentFault:
            raise
        except REFUSED as error:
            wrong = str(error) if isinstance(error, UserError) else describe(error)
            raise UserError(f"the checkpoint {path} cannot be resumed: {wrong}") from error
        return f"resumed {run.path} at step {run.step:,}" + (note and f"; {note}")

    # ---------------------------------------------------------------------------------- saving

    def on_start(self, run: Run) -> None:
        settings = run.config.checkpoint
        self._clock = run.sync.clock(EverySeconds(settings.every_seconds))
        self._steps_clock = EverySteps(settings.every_steps, run.step)
        self._due, self._requests = False, 0

    def next_step(self, run: Run) -> int | None:
        return self._steps_clock.next

    def on_step(self, run: Run) -> None:
        requested, self._requests = self._requests < run.sync.saves, run.sync.saves
        if requested:
            run.console.print(f"saving at step {run.step:,}, requested by SIGUSR1")
        # All are called every time, so that none falls behind.
        clocks = [self._clock(), self._steps_clock(run.step)]
        self._due |= run.sync.save_requested or any(clocks)
        # While updates are skipped, a save would replace the checkpoint to roll back to.
        if requested or (self._due and not run.logging.skipping):
            self._due = False
            self.save_soon()
        self.retry.poll(alone=hosts.count() == 1)

    def on_end(self, run: Run) -> None:
        run.logging.report_restarts()
        self.save()

    def save_soon(self, score: float | None = None) -> None:
        """Saves in the background; where that fails, prints why and tries again later."""
        self.retry(score)

    def save(self) -> None:
        """Saves, and returns when it is written.

        Raises:
          SaveError: it cannot be written, and what is saved.
        """
        with self._run.console.progress.other_work("saving"):
            with contextlib.suppress(Exception):  # of the previous save
                self.manager.wait()
            try:
                self._save()
                self.manager.wait()
            except SaveError as error:
                self._unsaved = self._run.step
                raise SaveError(f"{error}; {self.kept}") from error

    def _save(self, score: float | None = None) -> None:
        """Saves everything that influences the rest of the run."""
        run, loop = self._run, self._run.loop
        shared.compare(self.manager, loop.learner.params, run.step)
        run.report(loop.drain())
        self.manager.wait()  # or the copies of two saves would be in memory
        self._recreate_folders()
        native = saved_spaces.dump_space(loop.native_actions)
        counters = {
            "run": str(run.path.absolute()),
            "hosts": hosts.count(),
            "spaces": agent_spaces.dump(loop.agent) | {"native": native},
            "skipped": run.logging.skipped,
            COUNT: run.rollbacks,
            "best": run.evaluation.best,
            "evaluated": run.evaluation.evaluated,
        } | loop.get_counters()
        if self.manager.holds(run.step):  # no array has changed since
            self.manager.amend(run.step, counters, score)
            return
        arrays, copied = loop.get_arrays()
        self.manager.save(run.step, loop.learner.state, arrays, counters, score)
        reported = any(
            type(one).on_checkpoint is not Callback.on_checkpoint for one in run.callbacks
        )
        if not copied or reported:
            self.manager.wait()
        if reported:
            run.notify("on_checkpoint", [(self.manager.directory / str(run.step),)])

    def _recreate_folders(self) -> None:
        """Recreates folders and files that were removed during the training."""
        run, directory = self._run, self.manager.directory
        try:
            if folder.saved_config(run.path) is None:
                text = serialization.to_yaml(run.config)
                folder.prepare(run.path, text, ours=run.path.exists())
            if not directory.exists():
                manager.make(directory)
            for place in {run.path, directory} if run.config.checkpoint.dir else {run.path}:
                if not (place / folder.LOCK).exists():
                    run.stack.enter_context(folder.locked(place))
        except (UserError, OSError) as error:
            raise SaveError(f"cannot save a checkpoint in {directory}: {error}") from error

    # ------------------------------------------------------------------------------ at the end

    @property
    def kept(self) -> str:
        """What is saved if the run ends now, in words."""
        run, saved = self._run, self.manager.latest_step()
        if saved is None:
            return f"nothing is saved in {run.path}"
        if saved == run.step:
            return f"all that was learned until step {saved:,} is saved in {run.path}"
        lost = f"{run.step - saved:,} steps after it are lost"
        return f"the newest checkpoint is of step {saved:,} in {run.path}, {lost}"

    def keep(self, cause: BaseException) -> str:
        """Saves what was learned before something ended the training; returns what is saved.

        One of several hosts does not save alone. Buffers that were donated to a failed update
        cannot be saved: the newest checkpoint remains.
        """
        run = self._run
        if self._unsaved == run.step:  # the cause says so
            return ""
        if hosts.count() > 1 and not isinstance(cause, Exhausted):
            return self.kept
        try:
            if self.manager.latest_step() != run.step:
                try:
                    self.on_end(run)
                finally:
                    run.console.attempt("the last metrics are lost", run.logging.read, True)
        except SaveError as error:
            return str(error)
        except (Exception, SystemExit) as error:
            return f"step {run.step:,} cannot be saved ({describe(error)}); {self.kept}"
        return self.kept

    def _end(self, kind: type[BaseException] | None, *_: object) -> None:
        """Waits for the save under way, unless a second Ctrl-C ends the run at once."""
        if kind is None:
            self.manager.wait()
        elif not issubclass(kind, KeyboardInterrupt):
            self._run.console.attempt("the checkpoint under way is lost", self.manager.wait)


@contextlib.contextmanager
def saved_first(runs: Sequence[Run]) -> Iterator[None]:
    """Whatever ends the training inside, every run is saved first, once, as far as it learned.

    Only a second Ctrl-C ends it at once. The exception is raised again, with a note on what is
    saved.

    Args:
      runs: to save; runs may be added while they train.

    Raises:
      UserError: as raised inside; or `sys.exit` was called, by no callback.
    """
    try:
        yield
    except RolledBack as back:
        for run in runs:
            if run.path != back.path:
                run.console.print(run.checkpoints.keep(back))
        raise
    except BaseException as cause:
        failed = any(run.callbacks.failed for run in runs)
        if isinstance(cause, KeyboardInterrupt) and any(run.stop.requested for run in runs):
            raise
        for run in runs:
            run.callbacks.clear()
        kept = "; ".join(filter(None, [run.checkpoints.keep(cause) for run in runs]))
        saved = f"; {kept}, and the same command resumes" if kept else ""
        if isinstance(cause, UserError):
            cause.args = (f"{cause}{saved}",)
        elif isinstance(cause, SystemExit) and not failed:
            called = f"sys.exit({cause.code!r}) was called while the run trained, by no callback"
            raise UserError(f"{called}{saved}") from cause
        else:
            emit(f"training ended with {describe(cause)}{saved}", sys.stderr)
        raise
