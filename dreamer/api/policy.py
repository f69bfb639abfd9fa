"""The policy of a trained agent, which keeps its memory between time steps."""

from collections.abc import Mapping
from typing import Any

import dm_env
import jax
import numpy as np

from dreamer.agents.interface import Carry
from dreamer.api import arguments
from dreamer.envs.base import Specs
from dreamer.errors import UserError
from dreamer.rollout.policy import Policy


class AgentPolicy:
    """Acts in N environments; to be made by `TrainedAgent.policy`.

    Args:
      policy: for N environments.
      seen: the observations that it needs.
      params: of the networks.
      seed: of the draws.
    """

    def __init__(self, policy: Policy, seen: Specs, params: Any, seed: int) -> None:
        self.num_envs = policy.num_envs
        self._policy, self._seen, self._params, self._seed = policy, seen, params, seed
        self.reset()

    def __repr__(self) -> str:
        return f"AgentPolicy({self.num_envs} environments, step {self.step:,})"

    def reset(self) -> None:
        """Forgets everything, and draws from the seed again."""
        self.step = 0
        self._policy.reset(jax.random.key(self._seed))

    @property
    def state(self) -> Carry:
        """The carry, for `TrainedAgent.imagine`: latents and the actions chosen last."""
        if not self.step:
            raise UserError("the policy has seen nothing yet; call it with a time step first")
        return self._policy.carry

    def __call__(self, time_step: dm_env.TimeStep) -> dict[str, np.ndarray]:
        """Actions [N, ...] by key for a time step, leaves [N, ...]. Where it is the first of an
        episode, what was before is forgotten.

        Raises:
          UserError: it is no time step or of another number of environments, or an observation is
            missing or of another shape or type.
        """
        check(self._seen, self.num_envs, time_step)
        action, _ = self._policy(self._params, time_step, self.step)
        self.step += 1
        return action


def check(seen: Specs, num_envs: int, time_step: dm_env.TimeStep) -> None:
    """Refuses a time step that is not of so many environments of these observations.

    Raises:
      UserError: naming the key, what was expected and what is there.
    """
    is_step = isinstance(time_step, dm_env.TimeStep)
    arguments.expect(is_step, "time_step", time_step, "one of env.reset() or env.step(action)")
    observation = time_step.observation
    is_dict = isinstance(observation, Mapping)
    arguments.expect(is_dict, "time_step.observation", observation, "a dict of arrays by key")
    shape = getattr(time_step.step_type, "shape", ())
    if shape != (num_envs,):
        there = f"of {shape[0]} environments" if shape else "not of several environments"
        raise UserError(
            f"the time step is {there}, the policy for {num_envs}: step_type has shape {shape}; "
            "make environments and policy with the same num_envs"
        )
    for key, spec in seen.items():
        expected = f"{np.dtype(spec.dtype).name} {(num_envs, *spec.shape)}"
        value = observation.get(key)
        if value is None:
            got = f"none, only {', '.join(sorted(observation))}"
        elif not hasattr(value, "dtype"):
            got = f"a {type(value).__name__}, which is no array"
        else:
            got = f"{value.dtype.name} {value.shape}"
        if got != expected:
            raise UserError(f"observation {key!r}: the agent expects {expected}, but got {got}")
