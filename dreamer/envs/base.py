"""The interface of all environments: batched dm_env time steps.

Legend: N environments stepped together.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import dm_env
import numpy as np
from dm_env import specs

FIRST, MID, LAST = (int(step_type) for step_type in dm_env.StepType)
MASK = "action_mask"  # the boolean observation that masks the action named "action"
RESTARTED = "; restarted"  # separates the cause of a restart from the count

# A key of `info` for the suites of this package: whether the state is terminal, where that differs
# from `terminated`. Not a string, so no environment of a user has it by accident.
TERMINAL = object()

Specs = dict[str, specs.Array]
Actions = Mapping[str, np.ndarray]


if TYPE_CHECKING:  # dm_env has no types

    class TimeStep(NamedTuple):
        """`dm_env.TimeStep` of N environments, see `BatchedEnv`."""

        step_type: np.ndarray
        reward: np.ndarray
        discount: np.ndarray
        observation: Mapping[str, np.ndarray]

        def first(self) -> np.ndarray: ...
        def mid(self) -> np.ndarray: ...
        def last(self) -> np.ndarray: ...

else:
    TimeStep = dm_env.TimeStep


class Restart(NamedTuple):
    """The restart of an environment: its number, the reason in one line, whether it failed."""

    env: int
    line: str
    failed: bool

    @property
    def cause(self) -> str:
        """The reason without the count."""
        return self.line.rsplit(RESTARTED, 1)[0]


class BatchedEnv(ABC):
    """N environments that step together.

    A time step is a `dm_env.TimeStep` whose leaves have a leading axis N:
    - step_type int32 [N]: FIRST, MID or LAST;
    - reward float32 [N]: 0 at FIRST;
    - discount float32 [N]: 0 where the state is terminal, else 1. At LAST, 0 is a termination and 1
      a truncation (a time limit). At MID, 0 marks a state that counts as terminal although the
      episode continues (the loss of a life in Atari with `lives=discount`). At FIRST it is 1;
    - observation dict of arrays [N, ...] as in `observation_spec`. They belong to the caller: later
      steps never write to them.

    Episode k of environment i is seeded by `episode_seed(seed, i, k)` alone. A deterministic
    environment therefore returns to its exact state by a reset with that seed and the actions of
    the episode. `get_state` and `set_state` work that way, without snapshots of simulators. An
    environment that cannot repeat its episodes has `repeats = False`.

    Args:
      num_envs: N.
      observations: As `observation_spec` returns them.
      actions: As `action_spec` returns them.
    """

    repeats = True

    def __init__(self, num_envs: int, observations: Specs, actions: Specs) -> None:
        self.num_envs = num_envs
        self._observations, self._actions = observations, actions
        self._last: TimeStep | None = None

    def __repr__(self) -> str:
        """Number and specs, in at most 200 characters."""
        leaves = (self._observations | self._actions).items()
        parts = ", ".join(f"{key} {np.dtype(leaf.dtype)} {leaf.shape}" for key, leaf in leaves)
        text = f"{type(self).__name__}({self.num_envs} environments, {parts})"
        return text if len(text) <= 200 else f"{text[:197]}..."

    @property
    def restarts(self) -> Sequence[Restart]:
        """All restarts so far, including those of a restored state.

        A failure ends the current episode with LAST in the same step, unless it was over.
        """
        return ()

    def observation_spec(self) -> Specs:
        """Returns the specs without the axis N.

        Images are BoundedArray uint8 (H, W, C); vectors are Array float32 of rank 0 to 2; classes
        are DiscreteArray or BoundedArray int32 from 0 to classes - 1; booleans are masks, named by
        `mask_key`, of the valid classes [..., classes] of a discrete action.
        """
        return dict(self._observations)

    def action_spec(self) -> Specs:
        """Returns the specs without the axis N.

        Continuous actions are BoundedArray float32 of rank 1 in [-1, 1]; discrete ones are
        DiscreteArray int32, or BoundedArray int32 of rank 1 with the same number of classes in
        every entry.
        """
        return dict(self._actions)

    @abstractmethod
    def reset(self) -> TimeStep:
        """Starts the next episode in every environment; all step types are FIRST."""

    @abstractmethod
    def step(self, action: Actions) -> TimeStep:
        """Steps with `action`, arrays [N, ...].

        An environment whose last step was LAST ignores its action and returns FIRST.
        """

    def render(self) -> np.ndarray | None:
        """Returns frames uint8 [N, H, W, 3] of the current states, see `images.picture`.

        None without `render=True`, or where the environment draws nothing.
        """
        return None

    @abstractmethod
    def get_state(self) -> dict[str, Any]:
        """Returns what `set_state` needs: JSON types, or arrays for environments written in JAX.

        It holds the actions of the current episodes, so it grows with their length.
        """

    @abstractmethod
    def set_state(self, state: Mapping[str, Any]) -> tuple[np.ndarray, dm_env.TimeStep]:
        """Restores a result of `get_state` by repeating the actions of the current episodes.

        Returns:
          restored: bool [N]; True where the observation equals the saved one, bit for bit. False
            where the environment is not deterministic: a new episode was started.
          time_step: the saved time step where restored, FIRST of the new episode elsewhere.

        Raises:
          ValueError: The state is of another number of environments.
        """

    def close(self) -> None:  # noqa: B027
        """Ends worker processes and frees simulators; may be called twice."""


def time_step(
    first: np.ndarray,
    last: np.ndarray,
    reward: np.ndarray,
    terminal: np.ndarray,
    observation: dict[str, np.ndarray],
) -> TimeStep:
    """Returns a time step of bool arrays [N]; what is `first` has reward 0 and discount 1."""
    return dm_env.TimeStep(
        np.where(first, FIRST, np.where(last, LAST, MID)).astype(np.int32),
        np.where(first, 0, reward).astype(np.float32),
        np.where(~first & terminal, 0, 1).astype(np.float32),
        observation,
    )


def first_step(num_envs: int, observation: dict[str, np.ndarray]) -> TimeStep:
    """Returns the first time step of N episodes."""
    zeros = np.zeros(num_envs, bool)
    return time_step(~zeros, zeros, zeros, zeros, observation)


def saved_state(episodes: list[dict[str, Any]], last: TimeStep) -> dict[str, Any]:
    """Returns the state of N environments, see `BatchedEnv.get_state`.

    Args:
      episodes: Of each environment its number `episode`, its `actions`, whether it `ended`, and
        the `digest` of the last observation.
      last: The last time step, whose observation is not saved.
    """
    rows = {name: getattr(last, name).tolist() for name in ("step_type", "reward", "discount")}
    return {"episodes": episodes, **rows}


def unrestorable(numbers: np.ndarray) -> dict[str, Any]:
    """Returns a state from which `set_state` starts the episodes after those of these numbers."""
    episodes = [
        {"episode": number, "actions": [], "ended": False, "digest": ""}
        for number in numbers.tolist()
    ]
    return saved_state(episodes, first_step(len(numbers), {}))


def saved_episodes(state: Mapping[str, Any], num_envs: int) -> list[dict[str, Any]]:
    """Returns the episodes of a `saved_state`.

    Raises:
      ValueError: They are of another number of environments.
    """
    episodes: list[dict[str, Any]] = state["episodes"]
    if len(episodes) != num_envs:
        raise ValueError(f"state of {len(episodes)} environments given to {num_envs}")
    return episodes


def episode_seed(seed: int, index: int, episode: int) -> int:
    """Returns the seed of one episode of environment `index`: 31 bits, for any simulator."""
    return int(np.random.SeedSequence([seed, index, episode]).generate_state(1)[0] >> 1)


def mask_key(action: str) -> str:
    """The key of the observation that masks an action."""
    return MASK if action == "action" else f"{MASK}_{action}"


def random_action(
    spec: Specs,
    num_envs: int,
    rng: np.random.Generator,
    observation: Mapping[str, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """Returns uniformly random actions, arrays [N, ...], for an action spec.

    Where `observation` masks an action, only of its valid classes; of all if none is valid.
    """
    masks = observation or {}
    return {
        key: _masked(masks[mask_key(key)], rng)
        if mask_key(key) in masks
        else _uniform(leaf, num_envs, rng)
        for key, leaf in spec.items()
    }


def _masked(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    valid = mask | ~mask.any(-1, keepdims=True)
    return np.argmax(np.where(valid, rng.random(valid.shape), -1), -1).astype(np.int32)


def _uniform(leaf: specs.Array, num_envs: int, rng: np.random.Generator) -> np.ndarray:
    assert isinstance(leaf, specs.BoundedArray), leaf
    shape = (num_envs, *leaf.shape)
    if np.issubdtype(leaf.dtype, np.integer):
        return rng.integers(leaf.minimum, leaf.maximum, shape, dtype=leaf.dtype, endpoint=True)
    return rng.uniform(leaf.minimum, leaf.maximum, shape).astype(leaf.dtype)
