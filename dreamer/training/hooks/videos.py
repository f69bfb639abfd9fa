"""Videos while the agent trains: an episode, and open-loop predictions of every image."""

from typing import TYPE_CHECKING

import jax

from dreamer.errors import UserError
from dreamer.rollout.evaluate import evaluate
from dreamer.rollout.policy import Policy
from dreamer.rollout.video import FPS, open_loop_grids
from dreamer.training.callbacks import Callback
from dreamer.training.hooks.evaluation import EPISODE, PREDICTIONS, seed_of
from dreamer.training.schedules import EverySteps

if TYPE_CHECKING:
    from dreamer.training.trainer import Trainer

SEQUENCES = 6  # side by side in an open-loop video


class Videos(Callback):
    """Writes videos every `log.video_every` steps, on the first host."""

    def __init__(self, run: "Trainer") -> None:
        agent, config = run.loop.agent, run.config
        self._clock = EverySteps(config.log.video_every, run.step)
        self._policy = Policy(agent, 1, config.eval.greedy)
        self._open_loop = jax.jit(agent.open_loop, static_argnums=2)

    def next_step(self, run: "Trainer") -> int | None:
        return self._clock.next

    def on_step(self, run: "Trainer") -> None:
        if not self._clock(run.step) or not run.sync.first:
            return
        failure = f"no video of step {run.step:,}"
        with run.console.progress.beside("recording videos"):
            run.console.attempt(failure, self.episode, run)
            if not run.stop.requested:
                run.console.attempt(failure, self.predictions, run)

    def episode(self, run: "Trainer") -> None:
        """Plays an episode and writes its video, unless there is a request to stop.

        Raises:
          UserError: the environment fails, or cannot be drawn.
        """
        result = evaluate(
            self._policy,
            run.loop.learner.params,
            run.config.env,
            1,
            seed_of(run, EPISODE),
            record=True,
            interrupted=lambda: run.stop.requested,
        )
        if result is not None and result.not_drawn:
            raise UserError(result.not_drawn)
        if result is not None and result.frames is not None:
            run.logging.logger.video(run.step, "episode", result.frames, FPS)

    def predictions(self, run: "Trainer") -> None:
        """Writes open-loop predictions of replayed sequences, if there are sequences and images."""
        agent, config = run.loop.agent, run.config
        if not agent.images:
            return
        batch = run.loop.learner.sequences(SEQUENCES, (config.seed, run.step, PREDICTIONS))
        if batch is None:
            return
        context = config.replay.batch_length // 2
        key = jax.random.key(seed_of(run, PREDICTIONS))
        predictions = self._open_loop(run.loop.learner.params, batch, context, key)
        for name, grid in open_loop_grids(agent, batch, predictions, context).items():
            run.logging.logger.video(run.step, f"open_loop/{name}", grid, FPS)
