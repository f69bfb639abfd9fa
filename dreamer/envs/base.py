"""What every environment looks like to the rest of the project: batched dm_env time steps.

Legend: N environments stepped together.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import dm_env
import numpy as np
from dm_env import specs

FIRST, MID, LAST = (int(step_type) for step_type in dm_env.StepType)
MASK = "action_mask"  # the observation of booleans that masks the action named "action"
RESTARTED = "; restarted"  # between why and how often


class _Terminal:
    """The type of `TERMINAL`."""


# A key of `info` that no environment of a user has by accident: whether a state counts as terminal,
# where that is not whether the episode terminated. For the suites of this package.
TERMINAL = _Terminal()

Specs = dict[str, specs.Array]
Actions = Mapping[str, np.ndarray]


class Restart(NamedTuple):
    """A restart of an environment: which, why in a line, and whether because it failed."""

    env: int
    line: str
    failed: bool

    @property
    def cause(self) -> str:
        """Why, without how often."""
        return self.line.rsplit(RESTARTED, 1)[0]


class BatchedEnv(Protocol):
    """N environments that step together.

    A time step is a `dm_env.TimeStep` whose leaves have a leading axis N:
    - step_type int32 [N]: FIRST, MID or LAST;
    - reward float32 [N]: 0 at FIRST;
    - discount float32 [N]: 0 where the state is terminal, else 1. At LAST, 0 means that the episode
      terminated and 1 that it was truncated (a time limit). At MID, 0 marks a state that counts as
      terminal although the episode goes on (the loss of a life in Atari with `lives=discount`). At
      FIRST it is 1;
    - observation dict of arrays [N, ...] as in `observation_spec`, the caller's own: later steps
      never write to them.

    Episode k of environment i is seeded by `episode_seed(seed, i, k)` alone. A deterministic
    environment therefore returns to its exact state by resetting with that seed and repeating the
    actions of the episode, which is how `get_state` and `set_state` work for every environment,
    without snapshots of simulators. One that cannot says so by an attribute `repeats = False`.
    """

    num_envs: int

    @property
    def restarts(self) -> Sequence[Restart]:
        """All restarts so far, also those before `get_state` where it was restored.

        The episode of one that failed ended, with LAST, in the step in which it did, unless it was
        over.
        """
        ...

    def observation_spec(self) -> Specs:
        """Returns the specs without the axis N.

        Images are BoundedArray uint8 (H, W, C); vectors are Array float32 of rank 0 to 2; classes
        are DiscreteArray or BoundedArray int32 from 0 to classes - 1; booleans are masks, named by
        `mask_key`, of which classes [..., classes] of a discrete action may be taken.
        """
        ...

    def action_spec(self) -> Specs:
        """Returns the specs without the axis N.

        Continuous actions are BoundedArray float32 of rank 1 in [-1, 1]; discrete ones are
        DiscreteArray int32, or BoundedArray int32 of rank 1 with the same number of classes in
        every entry.
        """
        ...

    def reset(self) -> dm_env.TimeStep:
        """Starts the next episode in every environment; all step types are FIRST."""
        ...

    def step(self, action: Actions) -> dm_env.TimeStep:
        """Steps with `action`, arrays [N, ...].

        An environment whose last step was LAST ignores its action and gives FIRST.
        """
        ...

    def render(self) -> np.ndarray | None:
        """Returns frames uint8 [N, H, W, 3] of the current states, see `images.picture`, or None.

        None when it was made without `render=True` or cannot draw itself.
        """
        ...

    def get_state(self) -> dict[str, Any]:
        """Returns what `set_state` needs, made of JSON types only, or of arrays where the
        environments are written in JAX.

        It grows with the length of the current episodes, where it holds their actions.
        """
        ...

    def set_state(self, state: Mapping[str, Any]) -> tuple[np.ndarray, dm_env.TimeStep]:
        """Restores a result of `get_state` by repeating the actions of the current episodes.

        Returns:
          restored: bool [N]; True where the observation reproduced is the one saved, bit for bit.
            False where the environment is not deterministic: it was started on a new episode.
          time_step: the saved time step where restored, FIRST of the new episode elsewhere.

        Raises:
          ValueError: The state is of another number of environments.
        """
        ...

    def close(self) -> None:
        """Ends worker processes and frees simulators; may be called twice."""
        ...


def short(env: BatchedEnv) -> str:
    """The `repr` of environments: how many, what is seen and what is done, in one short line."""
    specs = {**env.observation_spec(), **env.action_spec()}
    leaves = ", ".join(f"{key} {np.dtype(x.dtype)} {x.shape}" for key, x in specs.items())
    text = f"{type(env).__name__}({env.num_envs} environments, {leaves})"
    return text if len(text) <= 200 else f"{text[:197]}..."


def episode_seed(seed: int, index: int, episode: int) -> int:
    """Returns the seed of one episode of environment `index`: 31 bits, for any simulator."""
    return int(np.random.SeedSequence([seed, index, episode]).generate_state(1)[0] >> 1)


def mask_key(action: str) -> str:
    """The observation that says which classes of an action may be taken."""
    return MASK if action == "action" else f"{MASK}_{action}"


def random_action(
    spec: Specs,
    num_envs: int,
    rng: np.random.Generator,
    observation: Mapping[str, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """Returns uniformly random actions, arrays [N, ...], for an action spec.

    Where `observation` has the mask of an action, only of the classes that it allows; of all where
    it allows none.
    """
    seen = observation or {}
    return {
        key: _masked(seen[mask_key(key)], rng)
        if mask_key(key) in seen
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
