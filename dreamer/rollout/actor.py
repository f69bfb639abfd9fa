"""The worker of an actor: acts in its part of the environments with the newest weights it received,
and returns its rows in chunks."""

import time
from typing import Any

import jax
import numpy as np

from dreamer.agents.registry import make_agent
from dreamer.config import Config
from dreamer.distributed import mesh
from dreamer.envs import registry
from dreamer.ops.random import purpose_key
from dreamer.rollout.chunks import Chunk, stack
from dreamer.rollout.driver import Driver, Row
from dreamer.rollout.policy import Policy

STEPS = 16  # of a chunk
SECONDS = 1.0  # after which a chunk is sent with fewer: environments may be slow


class ActorWorker:
    """Acts on CPU, in the process that creates it.

    Args:
      config: of the run, with the dtype of the learner's networks.
      life: number of this actor among all that the run started; determines the seeds.

    Raises:
      UserError: the environment cannot be made on this machine.
      EnvironmentFault: also in `play`: it failed more often than `env.restarts` allows.
    """

    def __init__(self, config: Config, life: int) -> None:
        count = config.env.num_envs // config.run.num_actors
        seed = int(np.random.SeedSequence([config.seed, life]).generate_state(1)[0])
        env = registry.make(config.env, count, seed)
        agent = make_agent(config.agent, env.observation_spec(), env.action_spec())
        self._device = mesh.cpu_device()
        policy = Policy(agent, count, device=self._device)
        policy.reset(jax.random.fold_in(purpose_key(config.seed, "act"), life))
        self._driver = Driver(env, policy, agent.observations)
        self._driver.reset()
        self._params: Any
        self._version = -1
        self._reported = 0  # restarts of environments

    def play(self, version: int, weights: Any) -> Chunk:
        """Acts for up to `STEPS` steps of every environment, or `SECONDS`.

        Args:
          version: number of the weights.
          weights: of the networks that acting needs, as numpy arrays.
        """
        if version != self._version:
            self._params = mesh.copy_to(weights, self._device)
            self._version = version
        rows, end = [self._step()], time.monotonic() + SECONDS
        while len(rows) < STEPS and time.monotonic() < end:
            rows.append(self._step())
        all_restarts = self._driver.env.restarts
        new, self._reported = all_restarts[self._reported :], len(all_restarts)
        return Chunk(stack(rows), [(one.cause, one.failed) for one in new], version)

    def _step(self) -> Row:
        row = jax.device_get(self._driver.act(self._params))
        self._driver.step()
        return row
