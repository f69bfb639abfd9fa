"""A training run: its loop, and now and then evaluations, logs and checkpoints."""

import contextlib
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, NoReturn

import jax

from dreamer import allocator, compose, parallel
from dreamer.agent import interface
from dreamer.config import Config
from dreamer.envs import registry
from dreamer.errors import EnvironmentFault, UserError
from dreamer.run import agreement, beginning, checkpointer, common, folder, paths, rollback, shares
from dreamer.run.actor_loop import ActorLoop
from dreamer.run.callbacks import Callbacks
from dreamer.run.checkpointer import Checkpointer, SaveError
from dreamer.run.clocks import EverySeconds, EverySteps
from dreamer.run.device_loop import DeviceLoop
from dreamer.run.host_loop import HostLoop
from dreamer.run.logger import Logger, Silent
from dreamer.run.metrics import SKIPPED, Reading
from dreamer.run.offline_loop import OfflineLoop
from dreamer.run.plan import plan
from dreamer.run.policy import transition_spec
from dreamer.run.progress import Progress
from dreamer.run.reporter import Reporter
from dreamer.run.rollback import RolledBack
from dreamer.run.saving import Saving
from dreamer.run.signals import StopRequest

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
        self._callbacks = callbacks or Callbacks()
        self.metrics: dict[str, float] = {}  # those last written
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
            self.progress: Progress = stack.enter_context(display)
            saved = paths.checkpoint_folder(config)
            self._rollbacks: int = self._hosts.told(lambda: rollback.count(saved))
            own = shares.share(rollback.rekeyed(config, self._rollbacks))
            (leader or self).progress.print(f"making environments and weights, seed {config.seed}")
            self.loop = make_loop(own, self.devices)
            if self.loop.where == "device":
                self.progress.learning = "the device loop"
            stack.callback(self.loop.close)
            shares.compare_devices(len(self.devices), self.loop.stored == "device memory")
            self.begun = ""  # with what, in words
            self._saved = paths.holds_checkpoints(saved)
            if not self._saved:
                self._begin_anew()  # now, while nothing is written yet
            self.best: float | None = None  # mean return of the best evaluation
            self.evaluated = 0  # step of the last evaluation
            self.skipped = 0  # updates, whose loss or gradient was not finite
            self._skipping = False  # the last of them
            self._open(stack)
            self._stack = stack.pop_all()

    def _open(self, stack: ExitStack) -> None:
        """The run folder, what was saved in it, and the display."""
        config = self.config
        fresh = folder.saved_config(self.path) is None
        checkpoints = paths.checkpoint_folder(config)
        if config.checkpoint.dir:  # which the lock of the run folder does not cover
            checkpointer.make(checkpoints)
            stack.enter_context(folder.locked(checkpoints))
        paths.refuse_strange_checkpoints(config, fresh)
        if fresh:
            folder.prepare(self.path, compose.to_yaml(config))
        stack.enter_context(folder.locked(self.path))
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
        stack.callback(self.logger.close)
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
        """Trains until `run.steps` or until a signal asks to stop, then saves.

        Raises:
          EnvironmentFault: environments failed too often; all that was learned before is saved.
          RolledBack: the run went back to an earlier checkpoint, and must be made anew.
          UserError: too many updates in a row were skipped; all that was learned before is saved.
        """
        try:
            if self.begin():
                while self.unfinished:
                    self.after(self.loop.turn())
                self.finish()
        except EnvironmentFault as fault:
            if self._count > 1:  # the others do not know, and do not save
                raise EnvironmentFault(f"{fault}; {self.kept}, the same command resumes") from fault
            kept = f"all that was learned until step {self.step:,} is saved in {self.path}"
            try:
                self._close_books()
            except SaveError as error:
                kept = str(error)
            raise EnvironmentFault(f"{fault}; {kept}, and the same command resumes") from fault

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
        self._callbacks.watch(self)
        if self._eval_clock(self.step) and self.step < total:  # interrupted by the stop before
            self._evaluate()
        return True

    def after(self, episodes: list[tuple[float, int]]) -> None:
        """What comes after a turn in which these episodes ended."""
        self._tell_restarts()
        self._tell(episodes)
        self._callbacks("on_step", self)
        if self.updates > self._updates:
            if not self._compiled:
                self._compiled = True
                allocator.set_gaps_aside()
            self._updates = self.updates
            self._callbacks("on_update", self)
        self._now_and_then()

    def finish(self) -> None:
        """What comes after the last turn."""
        if self.step >= self.config.run.steps and self._evaluation_is_due():
            self._evaluate()
        self._close_books()
        self._read(self._hosts.meet(self.updates, now=True))
        done = self.step >= self.config.run.steps and not self._evaluation_is_due()
        state = "done" if done else "stopped, the same command resumes"
        last = f"{state}: step {self.step:,}, {self.loop.updates:,} updates, in {self.path}"
        if self.leader:
            self.say(last)
        else:
            self.progress.close(last)

    @property
    def kept(self) -> str:
        """What would be left if the run ended now, in words."""
        step = self.checkpoints.latest_step()
        saved = "nothing is saved" if step is None else f"the newest checkpoint is of step {step:,}"
        return f"{saved} in {self.path}"

    def say(self, line: str) -> None:
        """Prints a line, on the display of the leader if there is one."""
        if not self._hosts.first:
            self._hosts.post([f"host {parallel.host()}: {line}"])
        elif self.leader:
            self.leader.say(f"seed {self.config.seed}: {line}")
        else:
            self.progress.print(line)

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
        self.progress.update(self.step, self.loop.updates)
        self._read(self._hosts.meet(self.updates, self._saving.overdue))
        if self._log_clock():
            self._log()
        if self._eval_clock(self.step) and self.step < self.config.run.steps:
            self._evaluate()
        if self._video_clock(self.step) and self._hosts.first:
            with self.progress.beside("recording videos"):
                self.reporter.videos(
                    self.loop.params, self.loop.sequences, self.step, self._interrupted
                )
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
            self.progress.episode(score, length)
            self.logger.write(self.step, {"episode/return": score, "episode/length": length})
        for score, length in episodes:
            self._callbacks("on_episode", self, score, length)

    def _tell_restarts(self) -> None:
        """Of environments that were made anew since."""
        new = self.loop.restarts[self._restarts :]
        for restart in new:
            self.warn(restart.line)
        if new:
            self._restarts += len(new)
            self.logger.write(self.step, {"env/restarts": self._restarts})

    def _log(self, wait: bool = False) -> None:
        reading = self.loop.read_metrics(wait)
        self._watch(reading)
        if reading.averages or reading.skipped:
            metrics = dict(reading.averages)
            shown = {key: metrics[key] for key in SHOWN if metrics}
            metrics |= {"updates": self.loop.updates, SKIPPED: self.skipped, **self.progress.rates}
            self.metrics = metrics
            self.logger.write(self.step, metrics)
            self.progress.update(self.step, self.loop.updates, shown)
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
            raise UserError(f"{why}; {end}; {self._try_to_save()}; {rollback.ADVICE}") from end
        self.warn(f"{why}; back to step {step:,} with other random keys, {times} of {most} times")
        raise RolledBack(self.path)

    def _try_to_save(self) -> str:
        """Saves as well as it can; what is left, in words."""
        try:
            self.save()
        except SaveError as error:
            return f"{error}; {self.kept}"
        return f"the weights before them are saved in {self.path}"

    def _evaluation_is_due(self) -> bool:
        """Whether the agent of this step is still to be evaluated, at the end of the run."""
        return self.config.eval.every > 0 and self.evaluated < self.step

    def _interrupted(self) -> bool:
        return self.stop.requested

    def _evaluate(self) -> None:
        with self.progress.beside(f"evaluating at step {self.step:,}"):
            numbers = self._hosts.told(
                lambda: self.reporter.evaluation(self.loop.params, self.step, self._interrupted)
            )
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
        except SaveError as error:
            raise SaveError(f"{error}; {self.kept}") from error
        finally:
            self._log(wait=True)

    def save(self) -> None:
        """Saves, and returns when it is written.

        Raises:
          SaveError: it cannot be written.
        """
        with self.progress.beside("saving"):
            with contextlib.suppress(SaveError):  # of the save before, after which this one comes
                self.checkpoints.wait()
            self._save()
            self.checkpoints.wait()

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
            "spaces": interface.dump(self.loop.agent),
            "hosts": self._count,
        }
        counters = own | self.loop.get_counters()
        step = self.step
        if self.checkpoints.holds(step):  # since when no array has changed
            self.checkpoints.amend(step, counters, score)
            return
        arrays, copied = self.loop.get_arrays()
        self.checkpoints.save(step, self.loop.state, arrays, counters, score)
        told = self._callbacks.want("on_checkpoint")
        if not copied or told:
            self.checkpoints.wait()
        if told:
            self._callbacks("on_checkpoint", self, self.checkpoints.directory / str(step))

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
        if kind is None or not issubclass(kind, KeyboardInterrupt):
            self.checkpoints.close()

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
        assert arrays is not None, "every save has a replay"
        paths.refuse_checkpoint_of(counters["run"], self.config)
        paths.refuse_other_kind(counters.get("offline", False), self.config)
        self.best, self.evaluated = counters["best"], counters["evaluated"]
        self.skipped = counters.get("skipped", 0)
        note = self.loop.set_state(state, arrays, counters)
        self._restarts = len(self.loop.restarts)
        return f"resumed {self.path} at step {self.step:,}" + (note and f"; {note}")
