"""The training loop: act, remember, learn; and now and then evaluate, log, save.

One turn of the loop steps every environment once. Updates are dispatched before the environments
step, so the device learns while they do; only the next actions, which come from the updated policy,
wait for it.
"""

from contextlib import ExitStack
from typing import Any

import dm_env
import jax
import numpy as np

from dreamer import compose, parallel
from dreamer.agent import agent as agents
from dreamer.config import Config
from dreamer.envs import registry
from dreamer.replay import host, memory
from dreamer.run import checkpoint, folder, paths
from dreamer.run.checkpoint import Checkpointer
from dreamer.run.clocks import EverySeconds, EverySteps, Ratio
from dreamer.run.evaluate import Episodes
from dreamer.run.learner import Learner, purpose_key
from dreamer.run.logger import Logger
from dreamer.run.plan import plan
from dreamer.run.policy import Policy, transition, transition_spec
from dreamer.run.progress import Progress
from dreamer.run.reporter import Reporter
from dreamer.run.signals import StopRequest

SHOWN = ("loss/total", "loss/reward", "kl", "return", "value")  # metrics in the progress display


class Trainer:
    """One run: environments, replay, learner, files. A context; `run` returns when done or stopped.

    Args:
      config: the whole configuration.
      stop: asked at every step whether to save and return.

    Raises:
      UserError: what the user can mend, before anything is written.
    """

    def __init__(self, config: Config, stop: StopRequest | None = None) -> None:
        self.config = config
        self.stop = stop or StopRequest()
        self.path = paths.run_folder(config)
        folder.check(self.path)
        paths.refuse_changes(config, self.path)
        checkpoint.check(paths.checkpoint_folder(config))
        self.devices = parallel.local_devices(
            config.platform, config.devices, config.replay.batch_size
        )
        with ExitStack() as stack:
            self._build(stack)
            self._open(stack)
            self._stack = stack.pop_all()

    def _build(self, stack: ExitStack) -> None:
        """All that acts, remembers and learns; no file is written."""
        config, settings = self.config, self.config.replay
        num_envs = config.env.num_envs
        self.env = registry.make(config.env, num_envs, config.seed)
        stack.callback(self.env.close)
        specs = self.env.observation_spec(), self.env.action_spec()
        self.agent = agents.make_agent(config.agent, *specs)
        self.replay = host.init(
            transition_spec(self.agent),
            settings.capacity,
            num_envs,
            settings.batch_length + 1,
            settings.online,
        )
        self.learner = Learner(
            self.agent, self.devices, config.seed, settings.batch_size, config.run.updates_per_call
        )
        self.policy = Policy(self.agent, num_envs)
        self.policy.reset(purpose_key(config.seed, "act"))
        self.ratio = Ratio(settings.train_ratio / (settings.batch_size * settings.batch_length))
        self.episodes = Episodes.start(num_envs)
        self.step = 0  # environment steps in replay so far
        self.evaluated = 0  # step of the last evaluation
        self.best: float | None = None  # mean return of the best evaluation
        self.time_step: dm_env.TimeStep

    def _open(self, stack: ExitStack) -> None:
        """The run folder, what was saved in it, and the display."""
        config = self.config
        fresh = folder.saved_config(self.path) is None
        checkpoints = paths.checkpoint_folder(config)
        if config.checkpoint.dir:  # which the lock of the run folder does not cover
            checkpoint.make(checkpoints)
            stack.enter_context(folder.locked(checkpoints))
        paths.refuse_strange_checkpoints(config, fresh)
        if fresh:
            folder.prepare(self.path, compose.to_yaml(config))
        stack.enter_context(folder.locked(self.path))
        self.checkpoints = Checkpointer(checkpoints, config.checkpoint.keep)
        stack.callback(self.checkpoints.close)
        resumed = self._start_or_resume(fresh)
        if not fresh:  # only now is it known that the checkpoint fits a changed configuration
            folder.prepare(self.path, compose.to_yaml(config))
        self.logger = Logger(self.path, config.log.tensorboard)
        stack.callback(self.logger.close)
        self.logger.truncate(self.step if self.step else -1)
        self.reporter = Reporter(self.agent, config, self.logger)
        self.progress = stack.enter_context(
            Progress(config.log.progress, config.run.steps, config.log.every_seconds, self.step)
        )
        weights = sum(x.size for x in jax.tree.leaves(self.learner.params))
        self.progress.print(plan(config, weights, transition_spec(self.agent), self.devices))
        if resumed:
            self.progress.print(resumed)

    def __enter__(self) -> "Trainer":
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    # ---------------------------------------------------------------------------------- the loop

    def run(self) -> None:
        """Trains until `run.steps` or until a signal asks to stop, then saves."""
        total = self.config.run.steps
        if self.step >= total and not self._evaluation_is_due():
            self.progress.print(f"{self.path} is complete; raise run.steps to train on")
            return
        self._set_clocks()
        if self._eval_clock(self.step) and self.step < total:  # interrupted by the stop before
            self._evaluate()
        while self.step < total and not self.stop.requested:
            self.turn()
            self._now_and_then()
        if self.step >= total and self._evaluation_is_due():
            self._evaluate()
        self._save()
        self.checkpoints.wait()
        self._log(wait=True)
        done = self.step >= total and not self._evaluation_is_due()
        state = "done" if done else "stopped, the same command resumes"
        self.progress.close(
            f"{state}: step {self.step:,}, {self.learner.updates:,} updates, in {self.path}"
        )

    def turn(self) -> None:
        """Acts, remembers, dispatches the updates owed, and steps the environments meanwhile."""
        settings = self.config.replay
        action, latent = self.policy(self.learner.params, self.time_step, self.step)
        host.add(self.replay, transition(self.time_step, action, latent))
        self.step += self.config.env.num_envs
        if host.num_items(self.replay) >= settings.batch_size * settings.batch_length:
            self.learner.train(self.replay, self.ratio.updates(self.step))
        self.time_step = self.env.step(action)
        for _, score, length in self.episodes.add(self.time_step):
            self.progress.episode(score, length)
            self.logger.write(self.step, {"episode/return": score, "episode/length": length})

    # ------------------------------------------------------------------------------ now and then

    def _set_clocks(self) -> None:
        config = self.config
        self._log_clock = EverySeconds(config.log.every_seconds)
        self._eval_clock = EverySteps(config.eval.every, self.evaluated)
        self._video_clock = EverySteps(config.log.video_every, self.step)
        self._save_clock = EverySeconds(config.checkpoint.every_seconds)
        self._save_step_clock = EverySteps(config.checkpoint.every_steps, self.step)

    def _now_and_then(self) -> None:
        self.progress.update(self.step, self.learner.updates)
        if self._log_clock():
            self._log()
        if self._eval_clock(self.step) and self.step < self.config.run.steps:
            self._evaluate()
        if self._video_clock(self.step):
            self.reporter.videos(self.learner.params, self.replay, self.step, self._interrupted)
        # Both clocks are asked every time, so that neither falls behind.
        if any([self._save_clock(), self._save_step_clock(self.step)]):
            self._save()

    def _log(self, wait: bool = False) -> None:
        metrics = self.learner.read_metrics(wait)
        if metrics:
            shown = {key: metrics[key] for key in SHOWN}
            metrics["updates"] = self.learner.updates
            self.logger.write(self.step, metrics)
            self.progress.update(self.step, self.learner.updates, shown)

    def _evaluation_is_due(self) -> bool:
        """Whether the agent of this step is still to be evaluated, at the end of the run."""
        return self.config.eval.every > 0 and self.evaluated < self.step

    def _interrupted(self) -> bool:
        return self.stop.requested

    def _evaluate(self) -> None:
        numbers = self.reporter.evaluation(self.learner.params, self.step, self._interrupted)
        if numbers is None:
            return
        self.evaluated = self.step
        self.progress.print(
            f"evaluation at step {self.step:,}: return {numbers['mean']:.1f} ± "
            f"{numbers['std']:.1f} over {numbers['episodes']} episodes"
        )
        if self.best is None or numbers["mean"] > self.best:
            self.best = float(numbers["mean"])
            self._save(score=self.best)

    # ------------------------------------------------------------------------------- checkpoints

    def _save(self, score: float | None = None) -> None:
        """Saves everything that influences the rest of the run."""
        self.checkpoints.wait()  # or the copies of two saves would be in memory
        counters = {
            "run": str(self.path.absolute()),
            "step": self.step,
            "best": self.best,
            "evaluated": self.evaluated,
            "learner": self.learner.get_counters(),
            "ratio": self.ratio.get_state(),
            "env": self.env.get_state(),
            "episodes": self.episodes.get_state(),
        }
        if self.checkpoints.latest_step() == self.step:  # since when no array has changed
            self.checkpoints.amend(self.step, counters, score)
            return
        # A replay too large to copy is written while nothing changes it.
        copy = host.nbytes(self.replay) < 0.8 * memory.available()
        arrays = {
            "replay": host.get_state(self.replay, copy),
            "pending": self.learner.fetch_pending(),
            "carry": self.policy.get_state(),
        }
        self.checkpoints.save(self.step, self.learner.state, arrays, counters, score)
        if not copy:
            self.checkpoints.wait()

    def _start_or_resume(self, fresh: bool) -> str:
        """Starts the first episodes, or goes back to the newest checkpoint; what to say of it."""
        if self.checkpoints.latest_step() is None:
            self.time_step = self.env.reset()
            self.episodes.add(self.time_step)
            return "" if fresh else f"{self.path} had saved nothing yet and starts anew"
        state, arrays, counters = self.checkpoints.restore(None, self.learner.state)
        assert arrays is not None, "every save has a replay"
        paths.refuse_checkpoint_of(counters["run"], self.config)
        self.step, self.best = counters["step"], counters["best"]
        self.evaluated = counters["evaluated"]
        same_windows = arrays["replay"]["counters"]["length"][0] == self.replay.length
        pending = arrays["pending"] if same_windows else {}
        self.learner.set_state(state, pending, counters["learner"])
        self.policy.set_state(arrays["carry"])
        self.ratio.set_state(counters["ratio"])
        host.set_state(self.replay, arrays.pop("replay"))
        self.episodes.set_state(counters["episodes"])
        restored, self.time_step = self.env.set_state(counters["env"])
        self.episodes.forget(~restored)
        note = f"; {np.sum(~restored)} environments could not be restored and start an episode"
        return f"resumed {self.path} at step {self.step:,}" + ("" if restored.all() else note)
