"""A trained agent as a model of stable-baselines3: raw observations in, raw actions out."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import dm_env
import gymnasium
import jax
import numpy as np
from dm_env import specs
from gymnasium import spaces

from dreamer.agents import agent_spaces
from dreamer.agents.interface import Carry
from dreamer.api import arguments
from dreamer.config.env import GymnasiumEnv
from dreamer.envs.images import resize
from dreamer.envs.spaces import action_codec, children, observation_codec
from dreamer.errors import UserError
from dreamer.rollout.policy import Policy

if TYPE_CHECKING:
    from dreamer.api.agent import TrainedAgent

Adapt = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Memory:
    """What `predict` remembers of N environments."""

    carry: Carry
    step: int  # decides the draws of the next one

    def __repr__(self) -> str:
        return f"Memory({self.num_envs} environments, step {self.step:,})"

    @property
    def num_envs(self) -> int:
        return int(jax.tree.leaves(self.carry)[0].shape[0])


class GymnasiumPolicy:
    """Serves programs that evaluate models of stable-baselines3, as its `evaluate_policy` does.

    What the agent's own environments did to those of gymnasium (`env.repeat`, `env.pixels`,
    `env.time_limit`) the given one must do itself; only images are resized here, where the suite
    gymnasium did. To be made by `TrainedAgent.sb3`.
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
        given = {key: spec for key, (spec, _) in adapted.items()}
        agent_spaces.check(networks, given, self._action.specs)
        self._adapt = {key: function for key, (_, function) in adapted.items()}
        self._policy = cache(self._make_policy)

    def __repr__(self) -> str:
        return f"GymnasiumPolicy({self._agent})"

    def predict(
        self,
        observation: Any,
        state: Memory | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = True,
    ) -> tuple[Any, Memory]:
        """Actions, and the memory to pass to the next call.

        Args:
          observation: element of the environment's space, or a batch of N, leaves [N, ...].
          state: of the call before; None forgets.
          episode_start: bool [N], where an episode starts; None is everywhere without a state,
            nowhere with one.
          deterministic: mode of the policy instead of a sample; latents are sampled either way.

        Raises:
          UserError: an observation of another shape, or a state of another number of environments.
        """
        is_state = state is None or isinstance(state, Memory)
        arguments.expect(is_state, "state", state, "None or what predict gave before")
        several = _count(self.observation_space, observation)
        if several is None:
            observation = _map(self.observation_space, np.expand_dims, observation)
        encoded = self._codec.convert(observation)
        seen = {key: self._adapt[key](encoded[key]) for key in self._seen}
        count = several or 1
        starts = np.full(count, state is None) if episode_start is None else episode_start
        for name, size in (("state", state and state.num_envs), ("episode_start", np.size(starts))):
            if size not in (None, count):
                raise UserError(
                    f"{name} is of {size} environments, the observation of {count}; where their "
                    "number changes, begin with state=None"
                )
        policy, fresh = self._policy(count, deterministic)
        policy.carry = state.carry if state else fresh
        first = np.asarray(starts, bool).reshape(count)
        step = state.step if state else 0
        kind = np.where(first, dm_env.StepType.FIRST, dm_env.StepType.MID)
        time_step = dm_env.TimeStep(kind, None, None, seen)
        action, _ = policy(self._agent.params, time_step, step)
        native = self._action.convert(action)
        memory = Memory(policy.carry, step + 1)
        if several is not None:
            return native, memory
        return _map(self.action_space, lambda value, axis: value[axis], native), memory

    def _make_policy(self, num_envs: int, greedy: bool) -> tuple[Policy, Carry]:
        policy = self._agent.bare_policy(num_envs, greedy)
        policy.reset(jax.random.key(self._seed))
        return policy, policy.carry

    def _adapted(self, key: str, spec: specs.Array) -> tuple[specs.Array, Adapt]:
        """What becomes of an observation [N, ...] that the codec gives: its spec, and how."""
        wanted = self._seen.get(key, spec)
        same = spec.shape == wanted.shape
        if wanted.dtype == np.bool_ and same and np.all(getattr(spec, "maximum", 0) == 1):
            return wanted, lambda x: x.astype(bool)  # a mask
        images = len(spec.shape) == len(wanted.shape) == 3 and spec.shape[2] == wanted.shape[2]
        if images and isinstance(self._agent.config.env, GymnasiumEnv):
            size = wanted.shape[0], wanted.shape[1]
            return wanted, lambda x: np.stack([resize(image, size) for image in x])
        return spec, lambda x: x


def _count(space: gymnasium.Space, value: Any, key: str = "observation") -> int | None:
    """The number of elements of a batch; None for a single element.

    Raises:
      UserError: it is neither; naming the part, what was expected and what is there.
    """
    parts = children(space)
    if parts is not None:
        counts = []
        for name, part in parts:
            try:
                inner = value[name]
            except (LookupError, TypeError):
                raise UserError(f"observation {name!r} is missing from {key!r}") from None
            counts.append(_count(part, inner, str(name)))
        if len(set(counts)) > 1:
            raise UserError(f"the parts of {key!r} are of different numbers of environments")
        return counts[0]
    array, shape = np.asarray(value), space.shape or ()
    cut = np.dtype(space.dtype).kind in "iub" and array.dtype.kind == "f"  # to whole numbers
    if cut or shape not in (array.shape, array.shape[1:]):
        raise UserError(
            f"observation {key!r}: expected {space.dtype} {shape}, or (N, ...) of N environments, "
            f"got {array.dtype} {array.shape}"
        )
    return None if array.shape == shape else len(array)


def _map(space: gymnasium.Space, function: Any, value: Any) -> Any:
    """Applies a function of (array, axis 0) to every leaf of an element of a space."""
    parts = children(space)
    if parts is None:
        return function(value, 0)
    mapped = {name: _map(part, function, value[name]) for name, part in parts}
    return mapped if isinstance(space, spaces.Dict) else tuple(mapped.values())
