"""Evaluates the agent while it trains: whole episodes on fresh environments."""

from typing import TYPE_CHECKING, Any

import numpy as np

from dreamer.logs import summary
from dreamer.rollout.evaluate import evaluate
from dreamer.rollout.policy import Policy
from dreamer.training.callbacks import StatefulHook
from dreamer.training.schedules import EverySteps

if TYPE_CHECKING:
    from dreamer.training.trainer import Trainer


EVALUATION, EPISODE, PREDICTIONS = 1, 2, 3  # purposes of random numbers


def seed_of(run: "Trainer", purpose: int) -> int:
    """Differs from the training seed, between runs, steps and purposes."""
    sequence = np.random.SeedSequence((run.config.seed, run.step, purpose))
    return int(sequence.generate_state(1)[0])


class Evaluation(StatefulHook):
    """Evaluates every `eval.every` steps and at the end; saves the best."""

    def __init__(self, run: "Trainer") -> None:
        settings, saved = run.config.eval, run.checkpoints.saved
        self.best: float | None = saved.get("best")  # mean return
        self.evaluated = saved.get("evaluated", 0)  # step of the last evaluation
        self._every = settings.every
        self._clock = EverySteps(settings.every, self.evaluated)
        num_envs = min(settings.num_envs, settings.episodes)
        self._policy = Policy(run.loop.agent, num_envs, settings.greedy)

    def get_state(self) -> dict[str, Any]:
        return {"best": self.best, "evaluated": self.evaluated}

    def is_due(self, run: "Trainer") -> bool:
        """Whether the agent of this step is still to be evaluated, at the end of the run."""
        return self._every > 0 and self.evaluated < run.step

    def next_step(self, run: "Trainer") -> int | None:
        return self._clock.next

    def on_start(self, run: "Trainer") -> None:
        """Repeats an evaluation that was interrupted when the run stopped."""
        self.on_step(run)

    def on_step(self, run: "Trainer") -> None:
        if self._clock(run.step) and run.step < run.config.run.steps:
            self._evaluate(run)

    def on_end(self, run: "Trainer") -> None:
        if run.step >= run.config.run.steps and self.is_due(run):
            self._evaluate(run)

    def _evaluate(self, run: "Trainer") -> None:
        def attempt() -> dict[str, float] | None:
            failure = f"no evaluation at step {run.step:,}"
            found: dict[str, float] | None = run.console.attempt(failure, self._summary, run)
            return found

        with run.console.progress.beside(f"evaluating at step {run.step:,}"):
            numbers = run.sync.broadcast(attempt)
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

    def _summary(self, run: "Trainer") -> dict[str, float] | None:
        """Plays and logs `eval.episodes` episodes; None where a request to stop comes first."""
        result = evaluate(
            self._policy,
            run.loop.learner.params,
            run.config.env,
            run.config.eval.episodes,
            seed_of(run, EVALUATION),
            interrupted=lambda: run.stop.requested,
        )
        if result is None:
            return None
        for restart in result.restarts:
            run.console.warn(f"in the evaluation, {restart.line}")
        numbers = summary.summarize(result.returns, result.lengths)
        run.logging.logger.write(run.step, {f"eval/{key}": x for key, x in numbers.items()})
        return numbers
