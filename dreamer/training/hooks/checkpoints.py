"""Restores the newest checkpoint; saves periodically, on request, at the end and on failure."""

import contextlib
from typing import TYPE_CHECKING, Any

from dreamer.agents import agent_spaces
from dreamer.checkpoint import folder, manager, paths, shared
from dreamer.checkpoint.manager import Checkpointer, SaveError
from dreamer.config import serialization
from dreamer.datasets import initial
from dreamer.datasets.initial import Initial
from dreamer.distributed import hosts
from dreamer.envs import saved_spaces
from dreamer.errors import EnvironmentFault, UserError, describe
from dreamer.logs.writers import VIDEOS
from dreamer.system import files
from dreamer.training.callbacks import Callback, StatefulHook
from dreamer.training.hooks.retry import Retry
from dreamer.training.hooks.rollback import Exhausted
from dreamer.training.schedules import EverySeconds, EverySteps

if TYPE_CHECKING:
    from dreamer.training.trainer import Trainer

REFUSED = (UserError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError)


def start_without_checkpoint(run: "Trainer") -> Initial | None:
    """Starts the loop of a run that has no checkpoint; None where it has one."""
    held = manager.steps(paths.checkpoint_folder(run.config))
    return None if held else _start(run)


def _start(run: "Trainer") -> Initial:
    first = initial.choose(run.config, run.loop.agent, run.loop.learner.params)
    run.loop.start(first)
    return first


class Checkpoints(Callback):
    """The checkpoints of a run, restored and saved.

    Args:
      run: with its loop, which is started or restored; its folder is locked.
      stack: waits for the last save.
      fresh: whether the folder is new.
      started: what the loop was started from, None where there was a checkpoint to restore.

    Raises:
      UserError: the checkpoint does not fit, or the folder cannot be written.
    """

    def __init__(
        self, run: "Trainer", stack: contextlib.ExitStack, fresh: bool, started: Initial | None
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
        self._retry = Retry(self.manager, self._save, run.console.note)
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
            first = started or _start(run)  # a checkpoint that some other host does not have
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

    def on_start(self, run: "Trainer") -> None:
        settings = run.config.checkpoint
        self._clock = run.sync.clock(EverySeconds(settings.every_seconds))
        self._steps_clock = EverySteps(settings.every_steps, run.step)
        self._due, self._requests = False, 0

    def next_step(self, run: "Trainer") -> int | None:
        return self._steps_clock.next

    def on_step(self, run: "Trainer") -> None:
        requested, self._requests = self._requests < run.sync.saves, run.sync.saves
        if requested:
            run.console.print(f"saving at step {run.step:,}, requested by SIGUSR1")
        # All are called every time, so that none falls behind.
        clocks = [self._clock(), self._steps_clock(run.step)]
        self._due |= run.sync.save_requested or any(clocks)
        # While updates are skipped, a save would take the place of the one to roll back to.
        if requested or (self._due and not run.logging.skipping):
            self._due = False
            self.save_soon()
        self._retry.look(alone=hosts.count() == 1)

    def on_end(self, run: "Trainer") -> None:
        run.logging.report_restarts()
        self.save()

    @property
    def overdue(self) -> bool:
        """Whether it is time to try a save again that failed."""
        return self._retry.overdue

    def save_soon(self, score: float | None = None) -> None:
        """Saves in the background; where that fails, prints why and tries again later."""
        self._retry(score)

    def save(self) -> None:
        """Saves, and returns when it is written.

        Raises:
          SaveError: it cannot be written, and what is saved.
        """
        with self._run.console.progress.beside("saving"):
            with contextlib.suppress(Exception):  # of the save before, after which this one comes
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
        spaces = agent_spaces.dump(loop.agent)
        spaces |= {"native": saved_spaces.dump_space(loop.native_actions)}
        own = {"run": str(run.path.absolute()), "hosts": hosts.count(), "spaces": spaces}
        counters = own | loop.get_counters()
        for hook in run.hooks:
            counters |= hook.get_state() if isinstance(hook, StatefulHook) else {}
        step = run.step
        if self.manager.holds(step):  # since when no array has changed
            self.manager.amend(step, counters, score)
            return
        arrays, copied = loop.get_arrays()
        self.manager.save(step, loop.learner.state, arrays, counters, score)
        reported = run.callbacks.overrides("on_checkpoint")
        if not copied or reported:
            self.manager.wait()
        if reported:
            run.callbacks.on_checkpoint(run, self.manager.directory / str(step))

    def _recreate_folders(self) -> None:
        """Makes what was removed during the training."""
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
        """What is left if the run ends now, in words."""
        run, saved = self._run, self.manager.latest_step()
        if saved is None:
            return f"nothing is saved in {run.path}"
        if saved == run.step:
            return f"all that was learned until step {saved:,} is saved in {run.path}"
        lost = f"{run.step - saved:,} steps after it are lost"
        return f"the newest checkpoint is of step {saved:,} in {run.path}, {lost}"

    def keep(self, cause: BaseException) -> str:
        """Saves what was learned until something ended the training; returns what is saved then.

        One of several hosts does not save alone. Buffers that were donated to a failed update
        cannot be saved: the newest checkpoint remains.
        """
        run = self._run
        if self._unsaved == run.step:  # as the cause says
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
        """Waits for the save under way, but not when a second Ctrl-C ends all at once."""
        if kind is None:
            self.manager.wait()
        elif not issubclass(kind, KeyboardInterrupt):
            self._run.console.attempt("the checkpoint under way is lost", self.manager.wait)
