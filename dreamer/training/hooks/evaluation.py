"""Watches the agent while it trains: evaluations on fresh environments, and videos."""

import jax
import numpy as np

from dreamer.errors import UserError
from dreamer.logs import summary
from dreamer.logs.video import FPS, open_loop_grids
from dreamer.rollout.evaluate import EvaluationResult, evaluate
from dreamer.rollout.policy import Policy
from dreamer.training.callbacks import Callback, Run
from dreamer.training.schedules import EverySteps

EVALUATION, EPISODE, PREDICTIONS = 1, 2, 3  # purposes of random numbers; EPISODE is on video
SEQUENCES = 6  # side by side in an open-loop video


def seed_of(run: Run, purpose: int) -> int:
    """Differs from the training seed, between runs, steps and purposes."""
    sequence = np.random.SeedSequence((run.config.seed, run.step, purpose))
    return int(sequence.generate_state(1)[0])


def play(run: Run, policy: Policy, episodes: int, purpose: int) -> EvaluationResult | None:
    """Plays episodes with the newest weights; None where a request to stop comes first."""
    return evaluate(
        policy,
        run.loop.learner.params,
        run.config.env,
        episodes,
        seed_of(run, purpose),
        record=purpose == EPISODE,
        interrupted=lambda: run.stop.requested,
    )


class Evaluation(Callback):
    """Evaluates every `eval.every` steps and at the end; saves the best."""

    def __init__(self, run: Run) -> None:
        settings, saved = run.config.eval, run.checkpoints.saved
        self.best: float | None = saved.get("best")  # mean return
        self.evaluated = saved.get("evaluated", 0)  # step of the last evaluation
        self._clock = EverySteps(settings.every, self.evaluated)
        num_envs = min(settings.num_envs, settings.episodes)
        self._policy = Policy(run.loop.agent, num_envs, settings.greedy)

    def is_due(self, run: Run) -> bool:
        """Whether the agent of this step is still to be evaluated, at the end of the run."""
        return run.config.eval.every > 0 and self.evaluated < run.step

    def next_step(self, run: Run) -> int | None:
        return self._clock.next

    def on_start(self, run: Run) -> None:
        """Repeats an evaluation that was interrupted when the run stopped."""
        self.on_step(run)

    def on_step(self, run: Run) -> None:
        if self._clock(run.step) and run.step < run.config.run.steps:
            self._evaluate(run)

    def on_end(self, run: Run) -> None:
        if run.step >= run.config.run.steps and self.is_due(run):
            self._evaluate(run)

    def _evaluate(self, run: Run) -> None:
        failure = f"no evaluation at step {run.step:,}"
        with run.console.progress.other_work(f"evaluating at step {run.step:,}"):
            numbers = run.sync.broadcast(lambda: run.console.attempt(failure, self._summary, run))
        if numbers is None:
            return
        self.evaluated = run.step
        run.console.print(
            f"evaluation at step {run.step:,}: return {numbers['mean']:.1f} ± "
            f"{numbers['std']:.1f} over {numbers['episodes']} episodes"
        )
        if self.best is None or numbers["mean"] > self.best:
            self.best = float(numbers["mean"])
            run.checkpoints.save_soon(self.best)

    def _summary(self, run: Run) -> dict[str, float] | None:
        """Plays and logs `eval.episodes` episodes; None where a request to stop comes first."""
        result = play(run, self._policy, run.config.eval.episodes, EVALUATION)
        if result is None:
            return None
        for restart in result.restarts:
            run.console.warn(f"in the evaluation, {restart.line}")
        numbers = summary.summarize(result.returns, result.lengths)
        run.logging.logger.write(run.step, {f"eval/{key}": x for key, x in numbers.items()})
        return numbers


class Videos(Callback):
    """Writes videos every `log.video_every` steps, on the first host: an episode, and open-loop
    predictions of every image."""

    def __init__(self, run: Run) -> None:
        agent, config = run.loop.agent, run.config
        self._clock = EverySteps(config.log.video_every, run.step)
        self._policy = Policy(agent, 1, config.eval.greedy)
        self._open_loop = jax.jit(agent.open_loop, static_argnums=2)

    def next_step(self, run: Run) -> int | None:
        return self._clock.next

    def on_step(self, run: Run) -> None:
        if not self._clock(run.step) or not run.sync.first:
            return
        failure = f"no video of step {run.step:,}"
        with run.console.progress.other_work("recording videos"):
            run.console.attempt(failure, self.episode, run)
            if not run.stop.requested:
                run.console.attempt(failure, self.predictions, run)

    def episode(self, run: Run) -> None:
        """Plays an episode and writes its video, unless there is a request to stop.

        Raises:
          UserError: the environment fails, or cannot be drawn.
        """
        result = play(run, self._policy, 1, EPISODE)
        if result is not None and result.not_drawn:
            raise UserError(result.not_drawn)
        if result is not None and result.frames is not None:
            run.logging.logger.video(run.step, "episode", result.frames, FPS)

    def predictions(self, run: Run) -> None:
        """Writes open-loop predictions of replayed sequences, if there are sequences and images."""
        agent, config, learner = run.loop.agent, run.config, run.loop.learner
        seed = config.seed, run.step, PREDICTIONS
        batch = learner.sequences(SEQUENCES, seed) if agent.images else None
        if batch is None:
            return
        context = config.replay.batch_length // 2
        key = jax.random.key(seed_of(run, PREDICTIONS))
        predictions = self._open_loop(learner.params, batch, context, key)
        for name, grid in open_loop_grids(agent, batch, predictions, context).items():
            run.logging.logger.video(run.step, f"open_loop/{name}", grid, FPS)
