"""One environment episode by episode: each has its own seed and can be repeated.

Every failure is reported in one line. Observations do not go through pipes: each environment writes
them to its row of shared arrays [N, ...], nested as its space.

Legend: N environments.
"""

import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np

from dreamer.envs import masks
from dreamer.envs.base import FIRST, LAST, MID, TERMINAL, episode_seed
from dreamer.envs.faults import Checker, attempt, checker, wrong_reward
from dreamer.envs.spaces import children
from dreamer.errors import EnvironmentFault, UserError

Memory = Any  # nested dicts of bytes
Slots = Any  # nested dicts of arrays [N, ...]
Row = tuple[int, float, float]  # step type, reward and discount, as in `BatchedEnv`


class Episodes:
    """Plays environment `index` and writes its observations to its rows of `place`.

    Of `info` only `base.TERMINAL` is used.

    Args:
      make: Makes the environment, when its first episode starts; one that keeps to gymnasium's
        interface, as `wrappers.Checked` ensures.
      seed: Of the whole batch.
      index: Of this environment in it.
      place: See `view_rows`; observations outside of the space are never written.
      number: From which its seeds derive; None is the index.

    Raises:
      EnvironmentFault: By all methods: the environment raised an exception, or returned an
        observation outside of its space, or an infinite reward.
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
        """Starts the episode of this number."""
        if self.env is None:
            self.env = self._try("cannot be made:", self._make)
            self._wrong = checker(self.env.observation_space)
        seed = episode_seed(self._seed, self._number, episode)
        self.env.action_space.seed(seed)  # some environments draw from it
        observation, info = self._try("failed in its reset with", self.env.reset, seed=seed)
        self._accept(observation, info)
        return FIRST, 0.0, 1.0

    def step(self, action: Any) -> Row:
        """Takes a step of the episode."""
        observation, reward, terminated, truncated, info = self._try(
            "failed in its step with", self.env.step, copy.deepcopy(action)
        )
        self._accept(observation, info, float(reward))
        over = bool(terminated) or bool(truncated)
        return LAST if over else MID, float(reward), 1.0 - bool(info.get(TERMINAL, terminated))

    def repeat(self, episode: int, actions: Sequence[Any]) -> bool | None:
        """Repeats an episode; returns whether it is over, None if it took another course."""
        over = False
        try:
            self.begin(episode)
            for action in actions:
                if over:
                    return None
                over = self.step(action)[0] == LAST
        except EnvironmentFault:  # its code changed since; a new episode shows whether it works
            return None
        return over

    def render(self) -> Any:
        """Draws a frame; None before the first episode."""
        return None if self.env is None else self._try("failed in its render with", self.env.render)

    def close(self) -> None:
        """Closes the environment if there is one."""
        if self.env is not None:
            self._try("failed in its close with", self.env.close)

    def _try(self, failed: str, function: Callable, *arguments: Any, **options: Any) -> Any:
        try:
            return attempt(failed, function, *arguments, **options)
        except UserError as error:
            raise EnvironmentFault(f"environment {self._index} {error}") from error

    def _accept(self, observation: Any, info: Mapping[str, Any], reward: float = 0.0) -> None:
        """Writes an observation, or raises what is wrong with it or its reward."""
        wrong = self._wrong(observation) or wrong_reward(reward)
        if masks.KEY in info:  # masks of its first reset are in the observation by now
            wrong = (
                f"gave {masks.KEY} in its info, but not at its first reset; give it at each reset"
            )
        if wrong:
            raise EnvironmentFault(f"environment {self._index} {wrong}")
        write_row(self._place, self._index, observation)


def allocate_rows(space: gymnasium.Space, num_envs: int, take: Callable[[int], Any]) -> Memory:
    """Allocates memory for N observations of a space; `take(size)` returns that many zero bytes."""
    parts = children(space)
    if parts is None:
        one = np.dtype(space.dtype).itemsize * int(np.prod(space.shape or ()))
        return take(max(1, num_envs * one))
    return {name: allocate_rows(part, num_envs, take) for name, part in parts}


def view_rows(space: gymnasium.Space, num_envs: int, memory: Memory) -> Slots:
    """Returns the arrays in memory of `allocate_rows`; of a Tuple they are a dict by number."""
    parts = children(space)
    if parts is None:
        return np.ndarray((num_envs, *(space.shape or ())), space.dtype, memory)
    return {name: view_rows(part, num_envs, memory[name]) for name, part in parts}


def write_row(slots: Slots, index: int, observation: Any) -> None:
    """Writes the observation of one environment into its rows."""
    if isinstance(slots, dict):
        for name, part in slots.items():
            write_row(part, index, observation[name])
    else:
        slots[index] = observation


def read_row(slots: Slots, index: int) -> Any:
    """Returns the rows of one environment."""
    if isinstance(slots, dict):
        return {name: read_row(part, index) for name, part in slots.items()}
    return slots[index]


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
