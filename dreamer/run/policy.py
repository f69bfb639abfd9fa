"""Acts in a set of environments with the agent's compiled policy, and makes rows of replay."""

from collections.abc import Callable
from functools import partial
from typing import Any

import dm_env
import jax
import numpy as np

from dreamer import parallel
from dreamer.agent import agent as agents
from dreamer.agent.agent import Agent, Carry
from dreamer.replay import tree

PARTS = ("encoder", "rssm", "actor")  # networks that acting needs


class Policy:
    """Holds the carry of N environments between steps; `reset` before the first.

    Args:
      agent: networks.
      num_envs: N.
      greedy: mode of the policy instead of a sample.
      device: that of the parameters; None is the first.
      act: of `compile_act`, to share it between policies.
      share: number of this policy, and of how many that draw as one with all their environments.
    """

    def __init__(
        self,
        agent: Agent,
        num_envs: int,
        greedy: bool = False,
        device: jax.Device | None = None,
        act: Callable | None = None,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        self.num_envs = num_envs
        self._device = device
        self.carry: Carry
        self._first = True
        self._agent = agent
        self._seen = [key for key, _ in agent.model.encoder.observations]
        self._key: jax.Array

        self._act = act or compile_act(agent, greedy, share)

    def reset(self, key: jax.Array) -> None:
        """Forgets everything; from here on the draws of step n follow from `key` and n."""
        self._first = True  # whether no call came since
        fresh = key, agents.initial_carry(self._agent, self.num_envs)
        self._key, self.carry = parallel.to_device(fresh, self._device)

    def get_state(self) -> dict[str, Any]:
        """The carry as numpy arrays."""
        carry = jax.device_get(self.carry)
        return {"latent": dict(carry.latent), "action": carry.action}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores a carry, also one that was computed in another dtype.

        Raises:
          UserError: it is another one.
        """
        own = {"latent": dict(self.carry.latent), "action": self.carry.action}
        tree.refuse_others("carry", state, own)
        saved = Carry(state["latent"], state["action"])
        cast = jax.tree.map(lambda x, now: np.asarray(x).astype(now.dtype), saved, self.carry)
        self.carry = parallel.to_device(cast, self._device)
        self._first = True

    def __call__(
        self, params: Any, time_step: dm_env.TimeStep, step: int
    ) -> tuple[dict[str, np.ndarray], dict[str, jax.Array]]:
        """One action per environment.

        Args:
          params: at least those of `PARTS`.
          time_step: batched, leaves [N, ...].
          step: number of this step, which decides the random draws, modulo 2**32.

        Returns:
          Actions [N, ...] by key, and the latents as replay stores them, still on the device.
        """
        needed = {name: params[name] for name in PARTS}
        first = time_step.step_type == dm_env.StepType.FIRST
        seen = {key: time_step.observation[key] for key in self._seen}
        if self._first:  # or acting would be compiled again for the carry that it gives
            self.carry, self._first = parallel.place_like(self.carry, needed), False
        carry, action, latent = self._act(
            needed, self.carry, seen, first, self._key, np.uint32(step % 2**32)
        )
        action, self.carry = jax.device_get(action), carry  # unless the call failed
        return action, dict(latent)


def compile_act(agent: Agent, greedy: bool, share: tuple[int, int] = (0, 1)) -> Callable:
    """One step of the policy, with the number of the step for its draws, see `agents.act`."""

    def act(params: Any, carry: Carry, observation: Any, first: Any, key: Any, step: Any) -> Any:
        key = jax.random.fold_in(key, step)
        return agents.act(agent, params, carry, observation, first, key, greedy, share)

    return jax.jit(act)


def transition(
    agent: Agent, time_step: dm_env.TimeStep, action: Any, latent: Any, where: Callable = np.where
) -> dict[str, Any]:
    """One row of replay: what was seen of what the agent uses, the action then taken (zero at
    LAST), the latent.

    `where` is that of numpy, or of jax.numpy in compiled code.
    """
    last = time_step.step_type == dm_env.StepType.LAST

    def unless_last(a: Any) -> Any:
        return where(last.reshape(-1, *[1] * (a.ndim - 1)), 0, a).astype(a.dtype)

    return {
        "observation": {key: time_step.observation[key] for key in agent.observations},
        "action": {key: unless_last(a) for key, a in action.items()},
        "reward": time_step.reward,
        "is_first": time_step.step_type == dm_env.StepType.FIRST,
        "is_last": last,
        "is_terminal": time_step.discount == 0,
        "latent": latent,
    }


def transition_spec(agent: Agent) -> dict[str, Any]:
    """Shapes and dtypes of `transition` for one environment, as replay wants them."""

    def shapes(specs: Any) -> dict[str, Any]:
        return {key: (spec.shape, spec.dtype) for key, spec in specs.items()}

    carry = jax.eval_shape(partial(agents.initial_carry, agent, 1))
    latent = jax.eval_shape(partial(agents.stored_latent, agent), carry.latent)
    flag = ((), np.dtype(bool))
    return {
        "observation": shapes(agent.observations),
        "action": shapes(agent.actions),
        "reward": ((), np.dtype(np.float32)),
        "is_first": flag,
        "is_last": flag,
        "is_terminal": flag,
        "latent": {key: (x.shape[1:], np.dtype(x.dtype)) for key, x in latent.items()},
    }
