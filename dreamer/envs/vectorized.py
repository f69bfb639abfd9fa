"""BatchedEnv over a gymnasium VectorEnv of the user.

Legend: N environments.
"""

import contextlib
import weakref
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.process import BaseProcess
from typing import Any, cast

import dm_env
import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import concatenate, create_empty_array, iterate

from dreamer.envs import images, masks
from dreamer.envs.base import (
    LAST,
    Actions,
    BatchedEnv,
    episode_seed,
    first_step,
    saved_episodes,
    time_step,
    unrestorable,
)
from dreamer.envs.faults import (
    attempt,
    check_space,
    checker,
    five,
    flags,
    numbers,
    two,
    warn_of_empty,
    warn_of_large,
    wrong_reward,
)
from dreamer.envs.spaces import codecs
from dreamer.envs.workers import kill
from dreamer.errors import EnvironmentFault, UserError

MODE = "autoreset_mode"


class Vectorized(BatchedEnv):
    """Adapts a gymnasium VectorEnv.

    Every member steps at every step, so after LAST a member must be at the start of an episode. In
    next-step mode it is. In the other modes gymnasium's `reset_mask` resets it: in same-step mode
    after a step of an episode that is discarded, in disabled mode before the step, which would fail
    otherwise, and after it.

    Episodes cannot be repeated, since their seeds are unknown: `set_state` starts new ones.

    Args:
      vector: Of N members.
      num_envs: N.
      seed: Of the whole batch.
      render: Whether `render` returns frames.
      name: Of the environment.
      processes: Those that it started; they are killed where they may hang.

    Raises:
      UserError: It has another number of members, no autoreset mode, or a space that is not
        supported.
      EnvironmentFault: Later, it fails or leaves its spaces.
    """

    repeats = False

    def __init__(
        self,
        vector: gymnasium.vector.VectorEnv,
        num_envs: int,
        seed: int,
        render: bool,
        name: str = "the environment",
        processes: Sequence[BaseProcess] = (),
    ) -> None:
        self._vector, self._seed, self._name = vector, seed, name
        self._calls: list[str] = []  # the current call
        self._close = weakref.finalize(self, _close, vector, self._calls, processes)
        try:
            self._mode = _mode(vector, num_envs)
            for kind in ("observation_space", "action_space"):
                for full in (kind, f"single_{kind}"):
                    check_space(getattr(vector, full, None), full)
            space, self._read = _without_masks(vector)
            self._encoder, self._decoder = codecs(space, vector.single_action_space)
            warn_of_empty(space, name)
        except BaseException:
            self.close()
            raise
        super().__init__(num_envs, self._encoder.specs, self._decoder.specs)
        self.native_actions = vector.single_action_space  # in its own units
        self._wrong_batch = checker(vector.observation_space)
        self._wrong_one = checker(vector.single_observation_space)
        self._renders = render and vector.render_mode == "rgb_array"
        self._episode = np.full(num_envs, -1)

    def reset(self) -> dm_env.TimeStep:
        start = int(self._episode[0]) + 1
        native, info = self._ask("reset", two, seed=episode_seed(self._seed, 0, start))
        if masks.KEY in info:
            raise EnvironmentFault(
                f"the environments gave {masks.KEY} in info; those of several environments at once "
                "are taken from their observations: put it there"
            )
        observation = self._encode(native)
        self._blame_masks(observation, np.zeros(self.num_envs, bool))
        self._episode = self._episode + 1
        self._last = first_step(self.num_envs, observation)
        return self._last

    def step(self, action: Actions) -> dm_env.TimeStep:
        assert self._last is not None, "call reset first"
        first = self._last.step_type == LAST
        if first.any() and self._mode is AutoresetMode.DISABLED:
            self._reset_some(first, self._last.observation)
        result = self._ask("step", self._five, self._decoder.convert(action))
        native, reward, terminated, truncated, info = result
        self._blame(wrong_reward(reward))
        observation = self._encode(native)
        last = ~first & (terminated | truncated)
        if first.any() and self._mode is not AutoresetMode.NEXT_STEP:
            observation = _where(first, self._reset_some(first, observation), observation)
        if last.any() and self._mode is AutoresetMode.SAME_STEP:
            observation = self._put_final(observation, last, info)
        self._blame_masks(observation, last)
        self._episode = self._episode + first
        self._last = time_step(first, last, reward, terminated, observation)
        warn_of_large(self._last.reward, self._name)
        return self._last

    def render(self) -> np.ndarray | None:
        return self._ask("render", self._pictures) if self._renders else None

    def get_state(self) -> dict[str, Any]:
        assert self._last is not None, "call reset first"
        return unrestorable(self._episode)

    def set_state(self, state: Mapping[str, Any]) -> tuple[np.ndarray, dm_env.TimeStep]:
        saved = saved_episodes(state, self.num_envs)
        self._episode = np.full(self.num_envs, max(one["episode"] for one in saved))
        return np.zeros(self.num_envs, bool), self.reset()

    def close(self) -> None:
        self._close()

    def _pictures(self, rendered: Any) -> np.ndarray | None:
        """Frames of all members; None where one has none now."""
        if isinstance(rendered, np.ndarray) and len(rendered) != self.num_envs:
            rendered = [rendered]  # one picture of all of them
        try:
            frames = [] if rendered is None else [images.picture(one) for one in rendered]
        except (ValueError, TypeError) as error:
            raise UserError(str(error)) from error
        drawn = [frame for frame in frames if frame is not None]
        return images.stack(drawn) if drawn and len(drawn) == len(frames) else None

    def _reset_some(
        self, which: np.ndarray, before: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """Resets some members; returns the observations of all, `before` for the others."""
        native, _ = self._ask("reset", two, options={"reset_mask": which.copy()})
        observation = self._encode(native)
        for key, value in observation.items():
            if not np.array_equal(value[~which], before[key][~which]):
                raise EnvironmentFault(
                    "the environments were all reset although reset_mask named some; obey "
                    f"options['reset_mask'], or let their {MODE} be next-step"
                )
        return observation

    def _put_final(
        self, observation: dict[str, np.ndarray], last: np.ndarray, info: Mapping[str, Any]
    ) -> dict[str, np.ndarray]:
        """Replaces the first observations of the next episodes by the last of these."""
        if "final_obs" not in info:
            raise EnvironmentFault(
                "the environments gave no final_obs in the info of a step that ended an episode, "
                f"which {MODE} same-step requires; return it, or set the mode to next-step"
            )
        space = self._vector.single_observation_space
        for i in last.nonzero()[0].tolist():
            final = _member(info["final_obs"], i)
            self._blame(self._wrong_one(final), i)
            one = concatenate(space, [final], cast(Any, create_empty_array(space, 1)))
            for key, value in self._encoder.convert(self._read(one)).items():
                observation[key][i] = value[0]
        return observation

    def _encode(self, native: Any) -> dict[str, np.ndarray]:
        """Checks observations of all members and encodes them."""
        wrong = self._wrong_batch(native)
        if wrong:
            for i, member in enumerate(iterate(self._vector.observation_space, native)):
                self._blame(self._wrong_one(member), i)
            self._blame(wrong)
        encoded: dict[str, np.ndarray] = self._encoder.convert(self._read(native))
        return encoded

    def _five(self, result: Any) -> tuple[Any, Any, np.ndarray, np.ndarray, Mapping[str, Any]]:
        native, reward, terminated, truncated, info = five(result)
        shape = (self.num_envs,)
        over = flags(terminated, "terminated", shape), flags(truncated, "truncated", shape)
        return native, numbers(reward, shape), *over, info

    def _ask(self, method: str, take: Callable[[Any], Any], *args: Any, **options: Any) -> Any:
        """Calls a method of the environments, and converts its result by `take`."""
        self._calls.append(method)
        failed = f"failed in their {method} with"
        try:
            result = take(attempt(failed, getattr(self._vector, method), *args, **options))
        except UserError as error:
            raise EnvironmentFault(f"the environments {error}") from error
        self._calls.clear()
        return result

    def _blame_masks(self, observation: Mapping[str, np.ndarray], over: np.ndarray) -> None:
        """Refuses masks without a valid class, except where an episode is over."""
        for key, value in observation.items():
            if value.dtype == np.bool_:
                none = ~value.reshape(self.num_envs, -1).any(-1) & ~over
                if none.any():
                    self._blame(f"gave {key} {masks.NOTHING}", int(np.argmax(none)))

    def _blame(self, wrong: str, index: int | None = None) -> None:
        if wrong:
            who = "one of the environments" if index is None else f"environment {index}"
            raise EnvironmentFault(f"{who} {wrong}")


def _close(
    vector: gymnasium.vector.VectorEnv, calls: list[str], processes: Sequence[BaseProcess]
) -> None:
    """Closes it. Its own close waits for a call that does not return, so then it kills first."""
    with contextlib.suppress(EnvironmentFault) if calls else contextlib.nullcontext():
        for process in processes if calls else ():
            kill(process)
        attempt("the environments failed in their close with", vector.close)


def _mode(vector: gymnasium.vector.VectorEnv, num_envs: int) -> AutoresetMode:
    """Returns when a member is reset after the end of its episode."""
    if vector.num_envs != num_envs:
        raise UserError(f"makes {vector.num_envs} environments instead of {num_envs}")
    mode = (vector.metadata or {}).get(MODE)
    try:
        return AutoresetMode(mode)
    except ValueError:
        modes = ", ".join(f"AutoresetMode.{mode.name}" for mode in AutoresetMode)
        raise UserError(
            f"metadata has {MODE}={mode}; expected one of {modes} of gymnasium.vector"
        ) from None


def _without_masks(
    vector: gymnasium.vector.VectorEnv,
) -> tuple[gymnasium.Space, Callable[[Any], Any]]:
    """The space with each mask as a part, and a function that converts a batch to it."""
    space = vector.single_observation_space
    if not (isinstance(space, spaces.Dict) and masks.KEY in space.spaces):
        return space, lambda batch: batch
    found, read_one = masks.reader_of(vector.single_action_space)
    others = {key: part for key, part in space.spaces.items() if key != masks.KEY}
    inner = cast(spaces.Dict, vector.observation_space)[masks.KEY]

    def read(batch: Any) -> dict[str, Any]:
        each = [read_one(mask, masks.KEY) for mask in iterate(inner, batch[masks.KEY])]
        stacked = {key: np.stack([one[key] for one in each]) for key in found}
        return {key: batch[key] for key in others} | stacked

    return spaces.Dict(others | found), read


def _member(batch: Any, index: int) -> Any:
    """Returns one observation of several, which may be an array of any objects."""
    if isinstance(batch, Mapping):
        return {key: _member(part, index) for key, part in batch.items()}
    return tuple(_member(p, index) for p in batch) if isinstance(batch, tuple) else batch[index]


def _where(
    which: np.ndarray, left: Mapping[str, np.ndarray], right: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    return {
        key: np.where(which.reshape(-1, *[1] * (value.ndim - 1)), left[key], value)
        for key, value in right.items()
    }
