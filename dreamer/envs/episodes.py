"""The outermost wrapper of one environment: seeds every episode, can repeat one exactly, and says
in one line what went wrong."""

import copy
import hashlib
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np

from dreamer.envs import masks
from dreamer.envs.base import episode_seed
from dreamer.envs.faults import checker, number, story, wrong_reward
from dreamer.errors import EnvironmentFault


class Episodes(gymnasium.Wrapper):
    """Counts and seeds the episodes of environment `index`, keeps the actions of the current one.

    `reset(options={"restore": states})` restores `states[index]`, a result of `episode_state`, or
    else starts the episode after it, and reports which as info["restored"]. `info` of the inner
    environment is dropped, apart from `is_terminal`, which overrides whether a state counts as
    terminal.

    Raises:
      EnvironmentFault: from then on, an exception of the environment, or an observation or reward
        that its spaces do not allow.
    """

    def __init__(self, env: gymnasium.Env, seed: int, index: int) -> None:
        super().__init__(env)
        self._seed = seed
        self._index = index
        self._wrong = checker(env.observation_space)
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
            if not restored:
                self._begin(self._episode + 1)
            return self._observation, {"restored": restored}
        self._begin(self._episode + 1)
        return self._observation, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        # Only after a restore: gymnasium's vector environment does not know that this one is over.
        if self._ended:
            self._begin(self._episode + 1)
            return self._observation, 0.0, False, False, {}
        self._actions.append(copy.deepcopy(action))
        try:
            seen, given, terminated, truncated, info = _five(self.env.step(action))
            reward, terminated, truncated = number(given), bool(terminated), bool(truncated)
            _refuse_masks(info)
            kept = {"is_terminal": bool(info["is_terminal"])} if "is_terminal" in info else {}
        except (Exception, SystemExit) as error:
            raise self._fault(error, "step") from error
        self._accept(seen, self._wrong(seen) or wrong_reward(reward))
        self._ended = terminated or truncated
        return self._observation, reward, terminated, truncated, kept

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
        try:
            seen, info = self.env.reset(seed=seed)
            _refuse_masks(info)
        except (Exception, SystemExit) as error:
            raise self._fault(error, "reset") from error
        self._accept(seen, self._wrong(seen))

    def _fault(self, error: BaseException, method: str) -> EnvironmentFault:
        told = isinstance(error, EnvironmentFault)
        what = str(error) if told else f"failed in its {method} with {story(error)}"
        return EnvironmentFault(f"environment {self._index} {what}")

    def _accept(self, observation: Any, wrong: str) -> None:
        if wrong:
            raise EnvironmentFault(f"environment {self._index} {wrong}")
        self._observation = observation

    def _restore(self, state: Mapping[str, Any]) -> bool:
        """Repeats the saved episode; returns whether it led to the saved observation."""
        try:
            self._begin(state["episode"])
            actions = state["actions"]
            for action in self.action_space.from_jsonable(actions) if actions else []:
                if self._ended:
                    return False
                self.step(action)
        except EnvironmentFault:  # it was changed since; a new episode shows whether it works
            return False
        return self._ended == state["ended"] and digest_of(self._observation) == state["digest"]


def _five(result: Any) -> tuple[Any, Any, Any, Any, Mapping[str, Any]]:
    if not (isinstance(result, tuple) and len(result) == 5 and isinstance(result[4], Mapping)):
        raise EnvironmentFault(
            "gave no observation, reward, terminated, truncated and dict of info in its step"
        )
    return result


def _refuse_masks(info: Mapping[str, Any]) -> None:
    """Those that the environment began with are in its observation by now."""
    if masks.KEY in info:
        raise EnvironmentFault(
            f"gave {masks.KEY} in its info, but none at its first reset; give it at every one"
        )


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
