"""Looks at the agent while it trains: evaluations, episode videos, open-loop predictions."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import numpy as np

from dreamer.agent.agent import Agent
from dreamer.agent.report import open_loop
from dreamer.config import Config
from dreamer.errors import UserError, warn
from dreamer.run import summary
from dreamer.run.evaluate import evaluate
from dreamer.run.logger import Logger
from dreamer.run.policy import Policy
from dreamer.run.video import open_loop_grid

Sequences = Callable[[int, tuple[int, ...]], dict[str, Any] | None]

SEQUENCES = 6  # side by side in an open-loop video
FPS = 15  # frames per second of videos


class Reporter:
    """Nothing here changes how training goes on.

    Args:
      agent: networks.
      config: of the run.
      logger: gets what is found.
      warn: prints a warning.
    """

    def __init__(
        self, agent: Agent, config: Config, logger: Logger, warn: Callable[[str], None] = warn
    ) -> None:
        self._config, self._logger, self._warn = config, logger, warn
        num_envs = min(config.eval.num_envs, config.eval.episodes)
        self._policy = Policy(agent, num_envs, config.eval.greedy)
        self._video_policy = Policy(agent, 1, config.eval.greedy)
        self._open_loop = jax.jit(partial(open_loop, agent), static_argnums=2)
        self._agent = agent

    def _seed(self, step: int, purpose: int) -> int:
        """Differs from the training seed, between runs, steps and purposes."""
        sequence = np.random.SeedSequence((self._config.seed, step, purpose))
        return int(sequence.generate_state(1)[0])

    def evaluation(
        self, params: Any, step: int, interrupted: Callable[[], bool]
    ) -> dict[str, float] | None:
        """Plays `eval.episodes` episodes; logs and gives their summary, or None if interrupted."""
        config = self._config
        result = evaluate(
            self._policy,
            params,
            config.env,
            config.eval.episodes,
            self._seed(step, 1),
            interrupted=interrupted,
        )
        if result is None:
            return None
        for restart in result.restarts:
            self._warn(f"in the evaluation, {restart.line}")
        numbers = summary.summarize(result.returns, result.lengths)
        self._logger.write(step, {f"eval/{key}": value for key, value in numbers.items()})
        return numbers

    def episode(self, params: Any, step: int, interrupted: Callable[[], bool]) -> None:
        """Plays an episode and writes its video, unless it is interrupted.

        Raises:
          UserError: the environment fails, or cannot be drawn.
        """
        env, seed = self._config.env, self._seed(step, 2)
        result = evaluate(self._video_policy, params, env, 1, seed, True, interrupted)
        if result is not None and result.not_drawn:
            raise UserError(result.not_drawn)
        if result is not None and result.frames is not None:
            self._logger.video(step, "episode", result.frames, FPS)

    def predictions(self, params: Any, sequences: Sequences, step: int) -> None:
        """Videos of open-loop predictions of every image, when there is something to predict.

        Args:
          params: of the agent.
          sequences: gives replayed sequences by their number and a seed, or None.
          step: names the videos.
        """
        config = self._config
        batch = sequences(SEQUENCES, (config.seed, step, 3)) if images(self._agent) else None
        if batch is None:
            return
        context = config.replay.batch_length // 2
        key = jax.random.key(self._seed(step, 3))
        predictions = self._open_loop(params, batch, context, key)
        grids = open_loop_grids(self._agent, batch, predictions, context)
        for name, grid in grids.items():
            self._logger.video(step, f"open_loop/{name}", grid, FPS)


def images(agent: Agent) -> list[str]:
    """The keys of the images that the model predicts."""
    return [name for name, spec in agent.model.decoder.observations if len(spec.shape) == 3]


def open_loop_grids(
    agent: Agent, batch: Mapping[str, Any], predictions: Mapping[str, Any], context: int
) -> dict[str, np.ndarray]:
    """Videos uint8 [T, H, W, 3] that compare every image with its prediction, see
    `open_loop_grid`.

    Args:
      agent: networks.
      batch: from replay, leaves [B, T + 1, ...].
      predictions: of `open_loop`.
      context: observed steps.
    """
    return {
        name: open_loop_grid(
            np.asarray(batch["observation"][name])[:, 1:],
            np.asarray(predictions[name], np.float32),
            context,
        )
        for name in images(agent)
    }
