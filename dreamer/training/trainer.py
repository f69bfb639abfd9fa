"""A training run on one page: its loop, and the hooks between iterations."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

from dreamer.checkpoint import manager, paths
from dreamer.config import Config
from dreamer.distributed import hosts, mesh, shard, sync
from dreamer.logs.console import Console
from dreamer.system import allocator, files
from dreamer.system.signals import StopRequest
from dreamer.training.callbacks import Callback, Callbacks
from dreamer.training.hooks import rollback
from dreamer.training.hooks.checkpoints import Checkpoints, saved_first, start_loop
from dreamer.training.hooks.evaluation import Evaluation, Videos
from dreamer.training.hooks.logging import Logging
from dreamer.training.loop import Episodes, Loop
from dreamer.training.loops import make_loop


class Trainer(AbstractContextManager):
    """One run: its loop and its files. A context; `run` returns when done or stopped.

    Args:
      config, stop, callbacks: see `training.train.train`, which raises the same errors.
      leader: the first run of `run.seeds`, which has the display and the callbacks.
    """

    def __init__(
        self,
        config: Config,
        stop: StopRequest | None = None,
        callbacks: Sequence[Callback] = (),
        leader: "Trainer | None" = None,
    ) -> None:
        self.config, self.stop, self.leader = config, stop or StopRequest(), leader
        self.callbacks: Callbacks = leader.callbacks if leader else Callbacks(callbacks)
        self.sync: sync.SingleHost = sync.make(self.stop)
        self.metrics: dict[str, float] = {}  # those last written
        self.path = paths.checked_run_folder(config)
        self.devices, saves = mesh.devices_of(config), paths.checkpoint_folder(config)
        with ExitStack() as stack:
            leading = leader.console if leader else None
            self.console: Console = Console(config, self.sync, leading, stack)
            self.rollbacks: int = self.sync.broadcast(lambda: rollback.count(saves))
            own = shard.of_host(rollback.rekeyed(config, self.rollbacks))
            self.loop: Loop = make_loop(own, self.devices)
            stack.callback(self.console.attempt, "environments cannot close", self.loop.close)
            shard.compare_devices(len(self.devices), self.loop.learner.stored)
            started = None if manager.steps(saves) else start_loop(self)
            fresh = stack.enter_context(paths.locked_run(config))  # nothing was written before
            with files.undone_on_failure(self.path) if fresh else nullcontext():
                self.checkpoints: Checkpoints = Checkpoints(self, stack, fresh, started)
                self.logging: Logging = Logging(self, stack)
                self.evaluation: Evaluation = Evaluation(self)
                self.videos, self.rollback = Videos(self), rollback.Rollback()
                self.logging.announce()
            self.stack = stack.pop_all()  # what the run has open

    def __exit__(self, *error: Any) -> None:
        self.stack.__exit__(*error)

    def __repr__(self) -> str:
        name, size = self.config.env.name, self.config.size
        return f"Trainer({name}, {size}, step {self.step:,}, in {self.path})"

    @property
    def hooks(self) -> Sequence[Callback]:
        """All hooks in order: logging reads metrics for the others."""
        own = (self.rollback, self.evaluation, self.videos, self.checkpoints)
        return (self.logging, *self.callbacks, *own)

    @property
    def step(self) -> int:
        """Environment steps so far, or updates of an offline run."""
        return self.loop.step * hosts.count()

    @property
    def updates(self) -> int:
        """Gradient updates so far."""
        return self.loop.learner.updates

    def request_stop(self) -> None:
        """Makes training save and return after this iteration, as a signal does."""
        self.stop.requested = True

    def run(self) -> None:
        """Trains until `run.steps` or until a request to stop; saves whatever ends it."""
        with saved_first([self]):
            if self.begin():
                while not self.done:
                    self.after(self.loop.advance(self.next_step))
                self.finish()

    @property
    def done(self) -> bool:
        """Whether there is no iteration left to do."""
        return self.step >= self.config.run.steps or self.sync.stop

    @property
    def next_step(self) -> int:
        """The next step of this host's loop at which a hook needs control or the run ends."""
        steps = [step for step in self.notify("next_step") if step is not None]
        return -(-min([self.config.run.steps, *steps]) // hosts.count())  # rounded up

    def begin(self) -> bool:
        """Before the first iteration; returns whether there is anything to do."""
        if self.step >= self.config.run.steps and not self.evaluation.is_due(self):
            self.console.print(f"{self.path} is complete; raise run.steps to train on")
            return False
        self._updates, self._started = self.updates, self.updates
        self.notify("on_start")
        return True

    def after(self, episodes: Episodes) -> None:
        """After an iteration in which these episodes ended."""
        self.report(episodes)
        if self.updates > self._updates:
            if self._updates == self._started:  # the update was just compiled
                allocator.set_gaps_aside()
            self._updates = self.updates
            self.notify("on_update")
        self.notify("on_step")
        self.synchronise()

    def report(self, episodes: Episodes) -> None:
        """Notifies the hooks of episodes that ended; other hosts send theirs to the first."""
        self.notify("on_episode", self.sync.to_first(episodes))

    def notify(self, event: str, calls: Sequence[tuple] = ((),)) -> list[Any]:
        """Calls a method of every hook, once for each tuple of arguments; returns the results."""
        call, hooks = self.callbacks.call, self.hooks
        return [call(hook, event, self, *each) for hook in hooks for each in calls]

    def synchronise(self, now: bool = False) -> None:
        """Exchanges requests, clocks, lines and episodes with other hosts."""
        for message in self.sync.barrier(self.updates, self.checkpoints.retry.overdue, now):
            if len(message) == 1:  # a line; others are episodes
                self.console.print(*message)
            else:
                self.notify("on_episode", [message])

    def finish(self) -> None:
        """After the last iteration."""
        self.report(self.loop.drain())
        self.notify("on_end")
        self.synchronise(now=True)
        self.logging.conclude()
