"""A training run: its loop, and now and then evaluations, logs and checkpoints."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, NoReturn

import jax

from dreamer import allocator, compose, files, parallel
from dreamer.agent import interface
from dreamer.config import Config
from dreamer.envs import registry, saved_spaces
from dreamer.errors import EnvironmentFault, UserError, describe, emit, warn
from dreamer.run import agreement, beginning, checkpointer, common, folder, paths, rollback, shares
from dreamer.run.actor_loop import ActorLoop
from dreamer.run.callbacks import Callbacks
from dreamer.run.checkpointer import Checkpointer, SaveError
from dreamer.run.clocks import EverySeconds, EverySteps
from dreamer.run.device_loop import DeviceLoop
from dreamer.run.host_loop import HostLoop
from dreamer.run.logger import VIDEOS, Logger, Silent
from dreamer.run.metrics import SKIPPED, Reading
from dreamer.run.offline_loop import OfflineLoop
from dreamer.run.plan import plan
from dreamer.run.policy import transition_spec
from dreamer.run.progress import Progress
from dreamer.run.reporter import Reporter
from dreamer.run.rollback import RolledBack
from dreamer.run.saving import Saving
from dreamer.run.signals import StopRequest

REFUSED = (UserError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError)
# Metrics in the progress display.
SHOWN = ("loss/total", "loss/reward", "kl", "imagined_return", "value")


Loop = HostLoop | ActorLoop | DeviceLoop | OfflineLoop


def make_loop(config: Config, devices: list[jax.Device]) -> Loop:
    """The loop that `run.loop`, `run.actors` and `run.offline` choose."""
    if config.run.offline:
        return OfflineLoop(config, devices)
    if config.run.actors != "local":
        return ActorLoop(config, devices)
    choice = config.run.loop
    if choice == "auto":
        choice = "device" if registry.is_jax(config.env) else "host"
    return DeviceLoop(config, devices) if choice == "device" else HostLoop(config, devices)


@contextlib.contextmanager
def saved_first(runs: Sequence["Trainer"]) -> Iterator[None]:
    """Whatever ends the training inside, every run is saved first, once, as far as it learned.

    A second Ctrl-C alone ends it at once. What ended it goes through, with what is saved.

    Args:
      runs: to save; more may come while they train.

    Raises:
      UserError: what was raised inside; or somebody called `sys.exit`, who is no callback.
    """
    try:
        yield
    except RolledBack as back:
        for run in runs:
            if run.path != back.path:
                run.say(run.keep(back))
        raise
    except BaseException as cause:
        failed = any(run.callbacks.failed for run in runs)
        again = any(run.stop.requested for run in runs)
        if isinstance(cause, KeyboardInterrupt) and again:
            raise
        for run in runs:
            run.callbacks.silence()
        kept = "; ".join([line for run in runs if (line := run.keep(cause))])
        saved = f"; {kept}, and the same command resumes" if kept else ""
        if isinstance(cause, UserError):
            cause.args = (f"{cause}{saved}",)
        elif isinstance(cause, SystemExit) and not failed:
            called = f"sys.exit({cause.code!r}) was called while the run trained, by no callback"
            raise UserError(f"{called}{saved}") from cause
        else:
            emit(f"training ended with {describe(cause)}{saved}", sys.stderr)
        raise


class Trainer:
    """One run: its loop and its files. A context; `run` returns when done or stopped.

    Args:
      config: the whole configuration.
      stop: asked at every step whether to save and return.
      leader: the run whose display tells of this one too.
      callbacks: told how it goes.

    Raises:
      UserError: what the user can mend, before anything is written.
    """

    def __init__(
        self,
        config: Config,
        stop: StopRequest | None = None,
        leader: "Trainer | None" = None,
        callbacks: Callbacks | None = None,
    ) -> None:
        self.config = config
        self.leader = leader
        self.stop = stop or StopRequest()
        self._hosts, self._count = agreement.make(self.stop), parallel.hosts()
        self.callbacks = callbacks or Callbacks()
        self.metrics: dict[str, float] = {}  # those last written
        self._warned: set[tuple[str, type]] = set()  # of what never ends a run
        self.path = paths.run_folder(config)
        folder.check(self.path)
        paths.refuse_changes(config, self.path)
        checkpointer.check(paths.checkpoint_folder(config))
        self.devices = parallel.local_devices(
            config.platform, config.devices, config.replay.batch_size
        )
        with ExitStack() as stack:
            mode = config.log.progress if self._hosts.first else "none"
            display = Progress(
                *(mode, config.run.steps, config.log.every_seconds),
                leader=leader.progress if leader else None,
            )
            self.progress: Progress = display.__enter__()
            stack.callback(self._look, "the display fails", display.__exit__)
            saved = paths.checkpoint_folder(config)
            self._rollbacks: int = self._hosts.told(lambda: rollback.count(saved))
            own = shares.share(rollback.rekeyed(config, self._rollbacks))
            (leader or self).progress.print(f"making environments and weights, seed {config.seed}")
            self.loop = make_loop(own, self.devices)
            stack.callback(self._look, "environments cannot be closed", self.loop.close)
            if self.loop.where == "device":
                self.progress.learning = "the device loop"
            shares.compare_devices(len(self.devices), self.loop.stored == "device memory")
            self.begun = ""  # with what, in words
            self._saved = paths.holds_checkpoints(saved)
            if not self._saved:
                self._begin_anew()  # now, while nothing is written yet
            self.best: float | None = None  # mean return of the best evaluation
            self.evaluated = 0  # step of the last evaluation
            self.skipped = 0  # updates, whose loss or gradient was not finite
            self._skipping = False  # the last of them
            self._unsaved = -1  # the last step that could not be saved
            self._open(stack)
            self._stack = stack.pop_all()

    def _open(self, stack: ExitStack) -> None:
        """The run folder, what was saved in it, and the display."""
        config = self.config
        checkpoints = paths.checkpoint_folder(config)
        stack.enter_context(folder.locked(self.path))
        if config.checkpoint.dir:  # which the lock of the run folder does not cover
            stack.enter_context(folder.locked(checkpoints))
        fresh = folder.saved_config(self.path) is None
        paths.refuse_strange_checkpoints(config, fresh)
        with files.undone_on_failure(self.path) if fresh else contextlib.nullcontext():
            self._open_locked(stack, fresh)

    def _open_locked(self, stack: ExitStack, fresh: bool) -> None:
        config, checkpoints = self.config, paths.checkpoint_folder(self.config)
        files.refuse_links(self.path, paths.CHECKPOINTS, VIDEOS)
        if fresh:
            folder.prepare(self.path, compose.to_yaml(config))
        for place in (self.path, self.path / VIDEOS):
            files.remove_stale(place)
        self.checkpoints = Checkpointer(checkpoints, config.checkpoint.keep)
        stack.push(self._end_saving)
        self._saving = Saving(self.checkpoints, self._save, self.note, alone=self._count == 1)
        self._restarts = 0  # environments made anew that were told
        if self._saved:
            self.progress.print("restoring the newest checkpoint")
        resumed = self._start_or_resume(fresh)
        self._began = self.step
        if not fresh:  # only now is it known that the checkpoint fits a changed configuration
            folder.prepare(self.path, compose.to_yaml(config))
        self.logger = Logger(self.path, config.log.tensorboard) if self._hosts.first else Silent()
        stack.callback(self._look, "cannot write metrics", self.logger.close)
        self.logger.truncate(self.step if self.step else -1)
        self.reporter = Reporter(self.loop.agent, config, self.logger, self.warn)
        if not self.leader and self._hosts.first:
            weights = sum(x.size for x in jax.tree.leaves(self.loop.params))
            spec = transition_spec(self.loop.agent)
            everywhere = parallel.everywhere(self.devices)
            self.say(plan(config, weights, spec, everywhere, self.loop.stored, self.loop.loaded))
        if resumed:
            self.say(resumed)

    def __enter__(self) -> "Trainer":
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def __repr__(self) -> str:
        name, size = self.config.env.name, self.config.size
        return f"Trainer({name}, {size}, step {self.step:,}, in {self.path})"

    @property
    def step(self) -> int:
        """Environment steps so far, or updates of an offline run."""
        return self.loop.step * self._count

    @property
    def updates(self) -> int:
        """Gradient updates so far."""
        return self.loop.updates

    def request_stop(self) -> None:
        """Makes training save and return after this turn, as a signal does."""
        self.stop.requested = True

    def run(self) -> None:
        """Trains until `run.steps` or until a signal asks to stop, then saves; see `saved_first`.

        Raises:
          EnvironmentFault: environments failed too often.
          RolledBack: the run went back to an earlier checkpoint, and must be restarted.
          UserError: too many updates in a row were skipped, or the end cannot be saved.
        """
        with saved_first([self]):
            if self.begin():
                while self.unfinished:
                    self.after(self.loop.turn())
                self.finish()

    @property
    def unfinished(self) -> bool:
        """Whether there is another turn to do."""
        return self.step < self.config.run.steps and not self._hosts.stop

    def begin(self) -> bool:
        """What comes before the first turn; whether there is anything to do."""
        total = self.config.run.steps
        if self.step >= total and not self._evaluation_is_due():
            self.say(f"{self.path} is complete; raise run.steps to train on")
            return False
        if not self.leader:
            self.stop.begin(self.progress)
        self.progress.start(self.step, self.updates)
        self._set_clocks()
        self._updates = self.updates  # that callbacks were told of
        self._compiled = False  # the program of an update
        self._saves_asked = 0  # that were heeded
        if self._eval_clock(self.step) and self.step < total:  # interrupted by the stop before
            self._evaluate()
        return True

    def after(self, episodes: list[tuple[float, int]]) -> None:
        """What comes after a turn in which these episodes ended."""
        self._tell_restarts()
        self._tell(episodes)
        self.callbacks("on_step", self)
        if self.updates > self._updates:
            if not self._compiled:
                self._compiled = True
                allocator.set_gaps_aside()
            self._updates = self.updates
            self.callbacks("on_update", self)
        self._now_and_then()

    def finish(self) -> None:
        """What comes after the last turn."""
        if self.step >= self.config.run.steps and self._evaluation_is_due():
            self._evaluate()
        self._close_books()
        self._read(self._hosts.meet(self.updates, now=True))
        state = "stopped, the same command resumes"
        if self.step >= self.config.run.steps and not self._evaluation_is_due():
            state = "done"
        elif self.step >= self.config.run.steps and not self._hosts.stop:
            state = "done, but not evaluated; the same command tries it again"
        last = f"{state}: step {self.step:,}, {self.loop.updates:,} updates, in {self.path}"
        if self.leader:
            self.say(last)
        else:
            self._look("the display fails", self.progress.close, last)

    @property
    def kept(self) -> str:
        """What is left if the run ends now, in words."""
        saved = self.checkpoints.latest_step()
        if saved is None:
            return f"nothing is saved in {self.path}"
        if saved == self.step:
            return f"all that was learned until step {saved:,} is saved in {self.path}"
        lost = f"{self.step - saved:,} steps after it are lost"
        return f"the newest checkpoint is of step {saved:,} in {self.path}, {lost}"

    def keep(self, cause: BaseException) -> str:
        """Saves what was learned until something ended the training; what is saved then, in words.

        Of several hosts, the others do not know of it and do not save. What an update that failed
        had taken, or left incomplete, cannot be saved, and the newest checkpoint remains.
        """
        if self._unsaved == self.step:  # which the cause says
            return ""
        if self._count > 1 and not isinstance(cause, rollback.Exhausted):
            return self.kept
        try:
            if self.checkpoints.latest_step() != self.step:
                self._close_books()
        except SaveError as error:
            return str(error)
        except (Exception, SystemExit) as error:
            return f"step {self.step:,} cannot be saved ({describe(error)}); {self.kept}"
        return self.kept

    def say(self, line: str) -> None:
        """Prints a line, on the display of the leader if there is one."""
        if not self._hosts.first:
            self._hosts.post([f"host {parallel.host()}: {line}"])
        elif self.leader:
            self.leader.say(f"seed {self.config.seed}: {line}")
        else:
            self._look("the display fails", self.progress.print, line)

    def _look(self, failure: str, show: Callable[..., Any], *arguments: Any) -> Any:
        """Does what never ends a run, such as all that is only for looking at: where it fails there
        is a warning, once for each reason, and the result is None."""
        try:
            return show(*arguments)
        except (Exception, SystemExit) as error:
            if (failure, type(error)) not in self._warned:
                self._warned.add((failure, type(error)))
                warn(f"{failure}: {describe(error)}")
            return None

    def note(self, line: str) -> None:
        """Prints a line on standard error, whatever `log.progress` is."""
        if self.leader:
            self.leader.note(f"seed {self.config.seed}: {line}")
        else:
            self.progress.note(f"host {parallel.host()}: {line}" if self._count > 1 else line)

    def warn(self, line: str) -> None:
        """Prints a warning as `note` does."""
        self.note(f"warning: {line}")

    # ------------------------------------------------------------------------------ now and then

    def _set_clocks(self) -> None:
        config = self.config
        self._log_clock = self._hosts.clock(EverySeconds(config.log.every_seconds))
        self._eval_clock = EverySteps(config.eval.every, self.evaluated)
        self._video_clock = EverySteps(config.log.video_every, self.step)
        self._save_clock = self._hosts.clock(EverySeconds(config.checkpoint.every_seconds))
        self._save_step_clock = EverySteps(config.checkpoint.every_steps, self.step)
        self._save_due = False

    def _now_and_then(self) -> None:
        self._show(self.step, self.loop.updates)
        self._read(self._hosts.meet(self.updates, self._saving.overdue))
        if self._log_clock():
            self._log()
        if self._eval_clock(self.step) and self.step < self.config.run.steps:
            self._evaluate()
        if self._video_clock(self.step) and self._hosts.first:
            with self.progress.beside("recording videos"):
                self._film()
        # All are asked every time, so that none falls behind.
        clocks = [self._save_clock(), self._save_step_clock(self.step)]
        due = [self._save_due, self._hosts.wanted, *clocks]
        asked, self._save_due = self._save_is_asked(), any(due)
        # While updates are skipped, a save would take the place of the one to go back to.
        if asked or (self._save_due and not self._skipping):
            self._save_due = False
            self._saving()
        self._saving.look()

    def _save_is_asked(self) -> bool:
        """Whether a signal came since this was asked last."""
        asked, self._saves_asked = self._saves_asked, self._hosts.saves
        if asked < self._saves_asked:
            self.say(f"saving at step {self.step:,}, because SIGUSR1 asks for it")
        return asked < self._saves_asked

    def _read(self, letters: list[Any]) -> None:
        """What other hosts wrote: lines, and episodes that ended there."""
        for letter in letters:
            if len(letter) == 1:
                self.say(*letter)
            else:
                self._tell([(letter[0], letter[1])])

    def _tell(self, episodes: list[tuple[float, int]]) -> None:
        if not self._hosts.first:
            for episode in episodes:
                self._hosts.post(episode)
            return
        for score, length in episodes:
            self._look("the display fails", self.progress.episode, score, length)
            self._write({"episode/return": score, "episode/length": length})
        for score, length in episodes:
            self.callbacks("on_episode", self, score, length)

    def _tell_restarts(self) -> None:
        """Of environments that were made anew since."""
        new = self.loop.restarts[self._restarts :]
        for restart in new:
            self.warn(restart.line)
        if new:
            self._restarts += len(new)
            self._write({"env/restarts": self._restarts})

    def _write(self, metrics: dict[str, float]) -> None:
        self._look("cannot write metrics", self.logger.write, self.step, metrics)

    def _show(self, *progress: Any) -> None:
        self._look("the display fails", self.progress.update, *progress)

    def _log(self, wait: bool = False) -> None:
        reading = self.loop.read_metrics(wait)
        self._watch(reading)
        if reading.averages or reading.skipped:
            metrics = dict(reading.averages)
            shown = {key: metrics[key] for key in SHOWN if metrics}
            metrics |= {"updates": self.loop.updates, SKIPPED: self.skipped, **self.progress.rates}
            self.metrics = metrics
            self._write(metrics)
            self._show(self.step, self.loop.updates, shown)
        if reading.in_a_row > self.config.run.max_skipped and not wait:
            last = self.loop.read_metrics(wait=True)
            self.skipped += last.skipped
            if last.in_a_row >= reading.in_a_row:  # else one of those since was not skipped
                self._go_back(last.in_a_row, reading.not_finite)

    def _watch(self, reading: Reading) -> None:
        """Says which updates were skipped."""
        self._skipping = reading.in_a_row > 0
        if not self._skipping:
            self.checkpoints.good = self.checkpoints.latest_step()
        if not reading.skipped:
            return
        self.skipped += reading.skipped
        what = f"not finite: {', '.join(reading.not_finite)}"
        count = f"{reading.skipped:,} update{'s' if reading.skipped > 1 else ''} skipped"
        self.warn(f"{count}, {self.skipped:,} in all; {what}")

    def _go_back(self, in_a_row: int, not_finite: Sequence[str]) -> NoReturn:
        """To the newest checkpoint of before so many updates; or ends the run, with advice."""
        most, times = self.config.run.max_rollbacks, self._rollbacks + 1
        why = f"{in_a_row:,} updates in a row were skipped, more than run.max_skipped="
        why = f"{why}{self.config.run.max_skipped}; not finite: {', '.join(not_finite)}"
        with contextlib.suppress(SaveError):
            self.checkpoints.wait()
        tried = self._began if self._rollbacks else None
        step = rollback.good(self.checkpoints.directory, self.updates - in_a_row, tried)
        try:
            rollback.go_back(self.checkpoints, step, times, most, skipped=self.skipped)
        except (rollback.Exhausted, SaveError) as end:
            raise type(end)(f"{why}; {end}; {rollback.ADVICE}") from end
        self.warn(f"{why}; back to step {step:,} with other random keys, {times} of {most} times")
        raise RolledBack(self.path)

    def _evaluation_is_due(self) -> bool:
        """Whether the agent of this step is still to be evaluated, at the end of the run."""
        return self.config.eval.every > 0 and self.evaluated < self.step

    def _interrupted(self) -> bool:
        return self.stop.requested

    def _film(self) -> None:
        params, failure = self.loop.params, f"no video of step {self.step:,}"
        self._look(failure, self.reporter.episode, params, self.step, self._interrupted)
        if not self._interrupted():
            self._look(failure, self.reporter.predictions, params, self.loop.sequences, self.step)

    def _evaluate(self) -> None:
        asked = self.loop.params, self.step, self._interrupted
        failure = f"no evaluation at step {self.step:,}"
        with self.progress.beside(f"evaluating at step {self.step:,}"):
            evaluate = partial(self._look, failure, self.reporter.evaluation, *asked)
            numbers = self._hosts.told(evaluate)
        if numbers is None:
            return
        self.evaluated = self.step
        self.say(
            f"evaluation at step {self.step:,}: return {numbers['mean']:.1f} ± "
            f"{numbers['std']:.1f} over {numbers['episodes']} episodes"
        )
        if self.best is None or numbers["mean"] > self.best:
            self.best = float(numbers["mean"])
            self._saving(self.best)

    # ------------------------------------------------------------------------------- checkpoints

    def _close_books(self) -> None:
        """Saves and logs all that there is."""
        self._tell_restarts()
        try:
            self.save()
        finally:
            self._look("the last metrics are lost", self._log, True)

    def save(self) -> None:
        """Saves, and returns when it is written.

        Raises:
          SaveError: it cannot be written, and what is saved.
        """
        with self.progress.beside("saving"):
            with contextlib.suppress(Exception):  # of the save before, after which this one comes
                self.checkpoints.wait()
            try:
                self._save()
                self.checkpoints.wait()
            except SaveError as error:
                self._unsaved = self.step
                raise SaveError(f"{error}; {self.kept}") from error

    def _save(self, score: float | None = None) -> None:
        """Saves everything that influences the rest of the run."""
        common.compare(self.checkpoints, self.loop.params, self.step)
        self._tell(self.loop.drain())
        self.checkpoints.wait()  # or the copies of two saves would be in memory
        self._make_folders()
        own = {
            "run": str(self.path.absolute()),
            "best": self.best,
            "evaluated": self.evaluated,
            "skipped": self.skipped,
            rollback.COUNT: self._rollbacks,
            "spaces": interface.dump(self.loop.agent)
            | {"native": saved_spaces.dump_space(self.loop.native_actions)},
            "hosts": self._count,
        }
        counters = own | self.loop.get_counters()
        step = self.step
        if self.checkpoints.holds(step):  # since when no array has changed
            self.checkpoints.amend(step, counters, score)
            return
        arrays, copied = self.loop.get_arrays()
        self.checkpoints.save(step, self.loop.state, arrays, counters, score)
        told = self.callbacks.want("on_checkpoint")
        if not copied or told:
            self.checkpoints.wait()
        if told:
            self.callbacks("on_checkpoint", self, self.checkpoints.directory / str(step))

    def _make_folders(self) -> None:
        """Makes again what somebody removed during the training."""
        directory = self.checkpoints.directory
        try:
            if folder.saved_config(self.path) is None:
                folder.prepare(self.path, compose.to_yaml(self.config), ours=self.path.exists())
            if not directory.exists():
                checkpointer.make(directory)
            for place in {self.path, directory} if self.config.checkpoint.dir else {self.path}:
                if not (place / folder.LOCK).exists():
                    self._stack.enter_context(folder.locked(place))
        except (UserError, OSError) as error:
            raise SaveError(f"cannot save a checkpoint in {directory}: {error}") from error

    def _end_saving(self, kind: type[BaseException] | None, *_: object) -> None:
        """Waits for the save under way, but not when a second Ctrl-C ends all at once."""
        if kind is None:
            self.checkpoints.close()
        elif not issubclass(kind, KeyboardInterrupt):
            self._look("the checkpoint under way is lost", self.checkpoints.close)

    def _begin_anew(self) -> None:
        first = beginning.choose(self.config, self.loop.agent, self.loop.params)
        self.loop.start(first)
        self.begun = str(first)

    def _start_or_resume(self, fresh: bool) -> str:
        """Goes back to the newest checkpoint if there is one; what to say of the start."""
        restored = common.restore(self.checkpoints, self.loop.state, fresh)
        if restored is None:
            if self._saved:  # what some other host has not
                self._begin_anew()
            return self.begun if fresh else f"{self.path} had saved nothing yet and starts anew"
        state, arrays, counters = restored
        path = self.checkpoints.directory / str(self.checkpoints.latest_step())
        if arrays is None:
            raise UserError(f"the checkpoint {path} cannot be resumed: it has no replay")
        paths.refuse_checkpoint_of(counters["run"], self.config)
        paths.refuse_other_kind(counters.get("offline", False), self.config)
        self.best, self.evaluated = counters["best"], counters["evaluated"]
        self.skipped = counters.get("skipped", 0)
        try:
            note = self.loop.set_state(state, arrays, counters)
        except EnvironmentFault:
            raise
        except REFUSED as error:
            wrong = str(error) if isinstance(error, UserError) else describe(error)
            raise UserError(f"the checkpoint {path} cannot be resumed: {wrong}") from error
        self._restarts = len(self.loop.restarts)
        return f"resumed {self.path} at step {self.step:,}" + (note and f"; {note}")
