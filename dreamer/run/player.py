"""What an actor does: it acts in its share of the environments, with the newest weights it was
given, and gives what came of it in chunks."""

import time
from typing import Any

import jax
import numpy as np

from dreamer import parallel
from dreamer.agent import agent as agents
from dreamer.config import Config
from dreamer.envs import registry
from dreamer.run.chunks import Chunk, stack
from dreamer.run.learner import purpose_key
from dreamer.run.policy import Policy, transition

STEPS = 16  # of a chunk
SECONDS = 1.0  # after which it is sent although it has fewer: environments may be slow


class Player:
    """Acts on CPU; to be made where it acts.

    Args:
      config: of the run, with the dtype of the learner's networks.
      life: number of this actor among all that the run has started; seeds follow from it.

    Raises:
      UserError: the environment cannot be made here.
      EnvironmentFault: also by `play`; it failed more often than `env.restarts` allows.
    """

    def __init__(self, config: Config, life: int) -> None:
        count = config.env.num_envs // config.run.num_actors
        seed = int(np.random.SeedSequence([config.seed, life]).generate_state(1)[0])
        self.env = registry.make(config.env, count, seed)
        specs = self.env.observation_spec(), self.env.action_spec()
        self._agent = agents.make_agent(config.agent, *specs)
        self._device = parallel.cpu_device()
        self._policy = Policy(self._agent, count, device=self._device)
        self._policy.reset(jax.random.fold_in(purpose_key(config.seed, "act"), life))
        self._params: Any
        self._version = -1
        self._told = 0  # restarts of environments
        self._steps = 0
        self._time_step = self.env.reset()

    def play(self, version: int, weights: Any) -> Chunk:
        """Acts for up to `STEPS` steps of every environment, or `SECONDS`.

        Args:
          version: a number that says which weights they are.
          weights: those of `policy.PARTS`, numpy arrays.
        """
        if version != self._version:
            self._params = parallel.copy_to(weights, self._device)
            self._version = version
        rows, end = [self._step()], time.monotonic() + SECONDS
        while len(rows) < STEPS and time.monotonic() < end:
            rows.append(self._step())
        new, self._told = self.env.restarts[self._told :], len(self.env.restarts)
        restarts = [(one.cause, one.failed) for one in new]
        return Chunk(stack(rows), restarts, version)

    def _step(self) -> dict[str, Any]:
        action, latent = self._policy(self._params, self._time_step, self._steps)
        row = transition(self._agent, self._time_step, action, jax.device_get(latent))
        self._time_step = self.env.step(action)
        self._steps += 1
        return row
