"""The outermost wrapper of one environment: seeds every episode and can repeat one exactly."""

import copy
import hashlib
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np

from dreamer.envs.base import episode_seed


class Episodes(gymnasium.Wrapper):
    """Counts and seeds the episodes of environment `index`, keeps the actions of the current one.

    `reset(options={"restore": states})` restores `states[index]`, a result of `episode_state`, and
    reports success as info["restored"]. `info` of the inner environment is dropped, apart from
    `is_terminal`, which overrides whether a state counts as terminal.
    """

    def __init__(self, env: gymnasium.Env, seed: int, index: int) -> None:
        super().__init__(env)
        self._seed = seed
        self._index = index
        self._episode = -1
        self._actions: list[Any] = []
        self._ended = False
        self._observation: Any = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Starts the next episode, seeded by its number (`seed` is not used), or restores one."""
        if options and "restore" in options:
            restored = self._restore(options["restore"][self._index])
            return self._observation, {"restored": restored}
        self._begin(self._episode + 1)
        return self._observation, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        # Only after a restore: gymnasium's vector environment does not know that this one is over.
        if self._ended:
            self._begin(self._episode + 1)
            return self._observation, 0.0, False, False, {}
        self._actions.append(copy.deepcopy(action))
        self._observation, reward, terminated, truncated, info = self.env.step(action)
        self._ended = bool(terminated or truncated)
        kept = {"is_terminal": bool(info["is_terminal"])} if "is_terminal" in info else {}
        return self._observation, float(reward), bool(terminated), bool(truncated), kept

    def episode_state(self) -> dict[str, Any]:
        """Returns the episode's number, actions and a digest of the observation, in JSON types."""
        return {
            "episode": self._episode,
            "actions": self.action_space.to_jsonable(self._actions),
            "ended": self._ended,
            "digest": digest_of(self._observation),
        }

    def _begin(self, episode: int) -> None:
        seed = episode_seed(self._seed, self._index, episode)
        self._episode = episode
        self._actions = []
        self._ended = False
        self.action_space.seed(seed)  # some environments draw from it
        self._observation, _ = self.env.reset(seed=seed)

    def _restore(self, state: Mapping[str, Any]) -> bool:
        """Repeats the saved episode; returns whether it led to the saved observation."""
        self._begin(state["episode"])
        actions = state["actions"]
        for action in self.action_space.from_jsonable(actions) if actions else []:
            if self._ended:
                return False
            self.step(action)
        return self._ended == state["ended"] and digest_of(self._observation) == state["digest"]


def digest_of(observation: Any) -> str:
    """Returns a hash of every bit of a nested observation."""
    digest = hashlib.blake2b(digest_size=16)
    _update(digest, observation)
    return digest.hexdigest()


def _update(digest: "hashlib.blake2b", value: Any) -> None:
    if isinstance(value, Mapping):
        for key in sorted(value):
            digest.update(str(key).encode())
            _update(digest, value[key])
    elif isinstance(value, tuple):
        for part in value:
            _update(digest, part)
    else:
        array = np.asarray(value)
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(array.tobytes())
