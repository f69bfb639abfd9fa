"""Policies of a trained agent: on time steps of dm_env, and with the interface of
stable-baselines3."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import dm_env
import gymnasium
import jax
import numpy as np
from dm_env import specs

from dreamer.agents import agent_spaces
from dreamer.agents.interface import Carry
from dreamer.api import arguments
from dreamer.config.env import GymnasiumEnv
from dreamer.envs.base import Specs, TimeStep
from dreamer.envs.images import resize
from dreamer.envs.spaces import action_codec, children, observation_codec
from dreamer.errors import UserError
from dreamer.rollout.policy import Policy

if TYPE_CHECKING:
    from dreamer.api.agent import TrainedAgent

Adapt = Callable[[np.ndarray], np.ndarray]


class AgentPolicy:
    """Acts in N environments, see `TrainedAgent.policy`.

    Args:
      policy: for N environments.
      seen: specs of the observations that it encodes.
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
        """Resets the carry and the random numbers."""
        self.step = 0
        self._policy.reset(jax.random.key(self._seed))

    @property
    def state(self) -> Carry:
        """The carry, for `TrainedAgent.imagine`: latents and the last actions."""
        if not self.step:
            raise UserError("the policy has no state yet; call it with a time step first")
        return self._policy.carry

    def __call__(self, time_step: TimeStep) -> dict[str, np.ndarray]:
        """Actions [N, ...] by key for a time step, leaves [N, ...]. The carry is reset where it is
        the first step of an episode.

        Raises:
          UserError: it is no time step or of another number of environments, or an observation is
            missing or of another shape or type.
        """
        check(self._seen, self.num_envs, time_step)
        action, _ = self._policy(self._params, time_step, self.step)
        self.step += 1
        return action


def check(seen: Specs, num_envs: int, time_step: TimeStep) -> None:
    """Refuses a time step that is not of N environments with these observations.

    Raises:
      UserError: naming the key, the expected form and the given one.
    """
    is_step = isinstance(time_step, dm_env.TimeStep)
    arguments.expect(is_step, "time_step", time_step, "one of env.reset() or env.step(action)")
    observation = time_step.observation
    is_dict = isinstance(observation, Mapping)
    arguments.expect(is_dict, "time_step.observation", observation, "a dict of arrays by key")
    shape = getattr(time_step.step_type, "shape", ())
    if shape != (num_envs,):
        raise UserError(
            f"time_step: step_type has shape {shape}, but the policy is for {num_envs} "
            "environments; make environments and policy with the same num_envs"
        )
    for key, spec in seen.items():
        expected = f"{np.dtype(spec.dtype).name} {(num_envs, *spec.shape)}"
        value = observation.get(key)
        got = f"a {type(value).__name__}, which is no array"
        if value is None:
            got = f"none, only {', '.join(sorted(observation))}"
        elif hasattr(value, "dtype"):
            got = f"{value.dtype.name} {value.shape}"
        if got != expected:
            raise UserError(f"observation {key!r}: the agent expects {expected}, but got {got}")


@dataclass(frozen=True)
class PolicyState:
    """The state that `predict` returns, of N environments."""

    carry: Carry
    step: int  # the random numbers of the next call depend on it

    def __repr__(self) -> str:
        return f"PolicyState({self.num_envs} environments, step {self.step:,})"

    @property
    def num_envs(self) -> int:
        return int(jax.tree.leaves(self.carry)[0].shape[0])


class GymnasiumPolicy:
    """A model for programs such as `evaluate_policy` of stable-baselines3; see `TrainedAgent.sb3`.

    The given environment must apply wrappers of training itself (`env.repeat`, `env.pixels`,
    `env.time_limit`); only images are resized here, if the suite gymnasium did so in training.
    """

    def __init__(self, agent: "TrainedAgent", env: Any, seed: int) -> None:
        has_spaces = isinstance(getattr(env, "observation_space", None), gymnasium.Space)
        arguments.expect(has_spaces, "env", env, "an environment of gymnasium, or a VecEnv")
        self._agent, self._seed = agent, arguments.seed(seed)
        networks = agent.networks
        self.observation_space = getattr(env, "single_observation_space", env.observation_space)
        self.action_space = getattr(env, "single_action_space", env.action_space)
        self._codec = observation_codec(self.observation_space)
        self._action = action_codec(self.action_space)
        self._seen = networks.seen
        adapted = {key: self._adapted(key, spec) for key, spec in self._codec.specs.items()}
        self._adapt = {key: function for key, (_, function) in adapted.items()}
        given = {key: spec for key, (spec, _) in adapted.items()}
        agent_spaces.check(networks, given, self._action.specs)
        self._policy = cache(self._make_policy)

    def __repr__(self) -> str:
        return f"GymnasiumPolicy({self._agent})"

    def predict(
        self,
        observation: Any,
        state: PolicyState | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = True,
    ) -> tuple[Any, PolicyState]:
        """Returns actions, and the state to pass to the next call.

        Args:
          observation: element of the environment's space, or a batch of N, leaves [N, ...].
          state: of the previous call; None resets.
          episode_start: bool [N], where an episode starts; None is everywhere without a state,
            nowhere with one.
          deterministic: mode of the policy instead of a sample; latents are sampled either way.

        Raises:
          UserError: an observation of another shape, or a state of another number of environments.
        """
        is_state = state is None or isinstance(state, PolicyState)
        arguments.expect(is_state, "state", state, "None or the state that predict returned")
        several, batch = _batch(self.observation_space, observation)
        encoded = self._codec.convert(batch)
        adapted = {key: self._adapt[key](encoded[key]) for key in self._seen}
        count = several or 1
        starts = np.full(count, state is None) if episode_start is None else episode_start
        for name, size in (("state", state and state.num_envs), ("episode_start", np.size(starts))):
            if size not in (None, count):
                raise UserError(
                    f"{name} is of {size} environments, the observation of {count}; where their "
                    "number changes, start from state=None"
                )
        policy, fresh = self._policy(count, deterministic)
        policy.carry = state.carry if state else fresh
        step = state.step if state else 0
        is_first = np.asarray(starts, bool).reshape(count)
        kind = np.where(is_first, dm_env.StepType.FIRST, dm_env.StepType.MID)
        action, _ = policy(self._agent.params, dm_env.TimeStep(kind, None, None, adapted), step)
        native = self._action.convert(action)
        if several is None:
            native = jax.tree.map(lambda x: x[0], native)
        return native, PolicyState(policy.carry, step + 1)

    def _make_policy(self, num_envs: int, greedy: bool) -> tuple[Policy, Carry]:
        policy = self._agent.bare_policy(num_envs, greedy)
        policy.reset(jax.random.key(self._seed))
        return policy, policy.carry

    def _adapted(self, key: str, spec: specs.Array) -> tuple[specs.Array, Adapt]:
        """The spec that the agent expects of an observation of the codec, and the conversion."""
        expected = self._seen.get(key, spec)
        same = spec.shape == expected.shape
        if expected.dtype == np.bool_ and same and np.all(getattr(spec, "maximum", 0) == 1):
            return expected, lambda x: x.astype(bool)  # a mask
        images = len(spec.shape) == len(expected.shape) == 3 and spec.shape[2] == expected.shape[2]
        if images and isinstance(self._agent.config.env, GymnasiumEnv):
            size = expected.shape[0], expected.shape[1]
            return expected, lambda x: np.stack([resize(image, size) for image in x])
        return spec, lambda x: x


def _batch(
    space: gymnasium.Space, value: Any, key: str = "observation"
) -> tuple[int | None, dict[Any, Any] | np.ndarray]:
    """The size of a batch, None for a single element, and the batch.

    Raises:
      UserError: it is neither; naming the part, the expected shape and the given one.
    """
    parts = children(space)
    if parts is not None:
        sizes, batch = set(), {}
        for name, part in parts:
            try:
                inner = value[name]
            except (LookupError, TypeError):
                raise UserError(f"observation {name!r} is missing from {key!r}") from None
            size, batch[name] = _batch(part, inner, str(name))
            sizes.add(size)
        if len(sizes) > 1:
            raise UserError(f"the parts of {key!r} are of different numbers of environments")
        return sizes.pop(), batch
    array, shape = np.asarray(value), space.shape or ()
    truncates = np.dtype(space.dtype).kind in "iub" and array.dtype.kind == "f"
    if truncates or shape not in (array.shape, array.shape[1:]):
        raise UserError(
            f"observation {key!r}: expected {space.dtype} {shape}, or (N, ...) of N environments, "
            f"got {array.dtype} {array.shape}"
        )
    return (None, array[None]) if array.shape == shape else (len(array), array)
