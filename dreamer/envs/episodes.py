"""One environment, played episode by episode: every episode has a seed of its own and can be
repeated, and what goes wrong is reported in one line."""

import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np

from dreamer.envs import masks, slots
from dreamer.envs.base import FIRST, LAST, MID, TERMINAL, episode_seed
from dreamer.envs.faults import Checker, attempt, checker, wrong_reward
from dreamer.envs.slots import Slots
from dreamer.errors import EnvironmentFault, UserError

Row = tuple[int, float, float]  # step type, reward and discount, as in `BatchedEnv`


class Episodes:
    """Plays environment `index`, whose observations go into its rows of `place`.

    Of `info` only `base.TERMINAL` is used.

    Args:
      make: makes the environment, when its first episode begins; one that keeps to gymnasium's
        interface, as `wrappers.Checked` does.
      seed: of the whole batch.
      index: of this environment in it.
      place: see `slots`; observations that a space does not allow never get there.
      number: by which its seeds derive; None is the index.

    Raises:
      EnvironmentFault: from all methods: the environment raised an exception, or gave an
        observation or reward that its spaces do not allow.
    """

    def __init__(
        self,
        make: Callable[[], gymnasium.Env],
        seed: int,
        index: int,
        place: Slots,
        number: int | None = None,
    ) -> None:
        self._make, self._seed, self._index, self._place = make, seed, index, place
        self._number = index if number is None else number
        self.env: Any = None  # until its first episode begins
        self._wrong: Checker

    def begin(self, episode: int) -> Row:
        """Begins the episode of this number."""
        if self.env is None:
            self.env = self._try("cannot be made:", self._make)
            self._wrong = checker(self.env.observation_space)
        seed = episode_seed(self._seed, self._number, episode)
        self.env.action_space.seed(seed)  # some environments draw from it
        seen = self._try("failed in its reset with", self._reset, seed)
        self._accept(seen, self._wrong(seen))
        return FIRST, 0.0, 1.0

    def step(self, action: Any) -> Row:
        """Takes a step of the episode."""
        seen, reward, over, terminal = self._try(
            "failed in its step with", self._step, copy.deepcopy(action)
        )
        self._accept(seen, self._wrong(seen) or wrong_reward(reward))
        return LAST if over else MID, reward, 1.0 - terminal

    def repeat(self, episode: int, actions: Sequence[Any]) -> bool | None:
        """Plays an episode again; returns whether it is over then, None when it went another
        way."""
        over = False
        try:
            self.begin(episode)
            for action in actions:
                if over:
                    return None
                over = self.step(action)[0] == LAST
        except EnvironmentFault:  # it was changed since; a new episode shows whether it works
            return None
        return over

    def render(self) -> Any:
        """Draws a frame; None before the first episode."""
        return None if self.env is None else self._try("failed in its render with", self.env.render)

    def close(self) -> None:
        """Closes the environment if there is one."""
        if self.env is not None:
            self._try("failed in its close with", self.env.close)

    def _reset(self, seed: int) -> Any:
        seen, info = self.env.reset(seed=seed)
        _refuse_masks(info)
        return seen

    def _step(self, action: Any) -> tuple[Any, float, bool, bool]:
        seen, reward, terminated, truncated, info = self.env.step(action)
        _refuse_masks(info)
        terminal = bool(info.get(TERMINAL, terminated))
        return seen, float(reward), bool(terminated) or bool(truncated), terminal

    def _try(self, failed: str, function: Callable, *arguments: Any) -> Any:
        try:
            return attempt(failed, function, *arguments)
        except UserError as error:
            raise EnvironmentFault(f"environment {self._index} {error}") from error

    def _accept(self, observation: Any, wrong: str) -> None:
        if wrong:
            raise EnvironmentFault(f"environment {self._index} {wrong}")
        slots.write(self._place, self._index, observation)


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
