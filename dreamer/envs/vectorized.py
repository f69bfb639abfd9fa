"""BatchedEnv over environments that somebody else has vectorised already.

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
from dreamer.envs.base import FIRST, LAST, MID, Actions, Restart, Specs, episode_seed, short
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
from dreamer.envs.vector import unrestorable
from dreamer.envs.workers import kill
from dreamer.errors import EnvironmentFault, UserError

MODE = "autoreset_mode"


class Vectorized:
    """Adapts a gymnasium VectorEnv to `BatchedEnv`.

    Every member is stepped at every step, so a member whose last step was LAST must be at the start
    of an episode after the next one. In next-step mode it is. Others are reset then by gymnasium's
    `reset_mask`, in same-step mode after they took a step of an episode that nobody sees, and in
    disabled mode also before, for they cannot be stepped otherwise.

    Episodes cannot be repeated: their seeds are not known. `set_state` starts new ones, and
    `repeats` says so.

    Args:
      vector: of N members.
      num_envs: N.
      seed: of the whole batch.
      render: whether `render` returns frames.
      name: what it is called.
      processes: those that it has started, which are killed where they may hang.

    Raises:
      UserError: it has another number of members, does not tell its mode, or a space is not
        supported.
      EnvironmentFault: later, it fails or gives what its spaces do not allow.
    """

    repeats = False
    restarts: Sequence[Restart] = ()  # nothing is restarted

    __repr__ = short

    def __init__(
        self,
        vector: gymnasium.vector.VectorEnv,
        num_envs: int,
        seed: int,
        render: bool,
        name: str = "the environment",
        processes: Sequence[BaseProcess] = (),
    ) -> None:
        self.num_envs, self._vector, self._seed, self._name = num_envs, vector, seed, name
        self._calls: list[str] = []  # the method that is called
        self.close = weakref.finalize(self, _close, vector, self._calls, processes)
        try:
            self._mode = _mode(vector, num_envs)
            for kind in ("observation_space", "action_space"):
                for full in (kind, f"single_{kind}"):
                    check_space(getattr(vector, full, None), full)
            space, self._read = _without_masks(vector)
            self._observation, self._action = codecs(space, vector.single_action_space)
            warn_of_empty(space, name)
        except BaseException:
            self.close()
            raise
        self._wrong_batch = checker(vector.observation_space)
        self._wrong_one = checker(vector.single_observation_space)
        self._renders = render and vector.render_mode == "rgb_array"
        self._episode = np.full(num_envs, -1)
        self._last: dm_env.TimeStep | None = None

    def observation_spec(self) -> Specs:
        return dict(self._observation.specs)

    def action_spec(self) -> Specs:
        return dict(self._action.specs)

    @property
    def native_actions(self) -> gymnasium.Space:
        """The action space of one environment, in its own units."""
        return self._vector.single_action_space

    def reset(self) -> dm_env.TimeStep:
        start = int(self._episode[0]) + 1
        seen, info = self._ask("reset", two, seed=episode_seed(self._seed, 0, start))
        if masks.KEY in info:
            raise EnvironmentFault(
                f"the environments gave {masks.KEY} in info; those of several environments at once "
                "are taken from their observations: put it there"
            )
        shape = (self.num_envs,)
        observation = self._encode(seen)
        self._blame_masks(observation, np.zeros(shape, bool))
        self._episode = self._episode + 1
        self._last = dm_env.TimeStep(
            np.full(shape, FIRST, np.int32),
            np.zeros(shape, np.float32),
            np.ones(shape, np.float32),
            observation,
        )
        return self._last

    def step(self, action: Actions) -> dm_env.TimeStep:
        assert self._last is not None, "call reset first"
        first = self._last.step_type == LAST
        if first.any() and self._mode is AutoresetMode.DISABLED:
            self._reset_some(first, self._last.observation)
        result = self._ask("step", self._five, self._action.convert(action))
        seen, reward, terminated, truncated, info = result
        self._blame(wrong_reward(reward))
        observation = self._encode(seen)
        terminated = terminated & ~first
        last = terminated | (truncated & ~first)
        if first.any() and self._mode is not AutoresetMode.NEXT_STEP:
            observation = _where(first, self._reset_some(first, observation), observation)
        if last.any() and self._mode is AutoresetMode.SAME_STEP:
            observation = self._put_final(observation, last, info)
        self._blame_masks(observation, last)
        self._episode = self._episode + first
        rewards = np.where(first, 0, reward).astype(np.float32)
        warn_of_large(rewards, self._name)
        self._last = dm_env.TimeStep(
            np.where(first, FIRST, np.where(last, LAST, MID)).astype(np.int32),
            rewards,
            1.0 - terminated.astype(np.float32),
            observation,
        )
        return self._last

    def render(self) -> np.ndarray | None:
        return self._ask("render", self._pictures) if self._renders else None

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

    def get_state(self) -> dict[str, Any]:
        assert self._last is not None, "call reset first"
        return unrestorable(self._episode)

    def set_state(self, state: Mapping[str, Any]) -> tuple[np.ndarray, dm_env.TimeStep]:
        if len(state["episodes"]) != self.num_envs:
            raise ValueError(
                f"state of {len(state['episodes'])} environments given to {self.num_envs}"
            )
        self._episode = np.full(self.num_envs, max(one["episode"] for one in state["episodes"]))
        return np.zeros(self.num_envs, bool), self.reset()

    def _reset_some(
        self, which: np.ndarray, before: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """Resets some members; gives what all see, which is as `before` for the others."""
        seen, _ = self._ask("reset", two, options={"reset_mask": which.copy()})
        observation = self._encode(seen)
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
        """Puts the last observations of episodes in place of the first of those that follow."""
        if "final_obs" not in info:
            raise EnvironmentFault(
                "the environments gave no final_obs in the info of a step that ended an episode, "
                f"which {MODE} same-step asks for; give it, or let the mode be next-step"
            )
        space = self._vector.single_observation_space
        for i in last.nonzero()[0].tolist():
            final = _member(info["final_obs"], i)
            self._blame(self._wrong_one(final), i)
            one = concatenate(space, [final], cast(Any, create_empty_array(space, 1)))
            for key, value in self._observation.convert(self._read(one)).items():
                observation[key][i] = value[0]
        return observation

    def _encode(self, seen: Any) -> dict[str, np.ndarray]:
        """Checks observations of all members and encodes them."""
        wrong = self._wrong_batch(seen)
        if wrong:
            members = iterate(self._vector.observation_space, seen)
            for i, member in enumerate(members):
                self._blame(self._wrong_one(member), i)
            self._blame(wrong)
        encoded: dict[str, np.ndarray] = self._observation.convert(self._read(seen))
        return encoded

    def _five(self, result: Any) -> tuple[Any, Any, np.ndarray, np.ndarray, Mapping[str, Any]]:
        seen, reward, terminated, truncated, info = five(result)
        shape = (self.num_envs,)
        over = flags(terminated, "terminated", shape), flags(truncated, "truncated", shape)
        return seen, numbers(reward, shape), *over, info

    def _ask(self, method: str, take: Callable[[Any], Any], *args: Any, **options: Any) -> Any:
        """Calls a method of the environments, and makes something of what it returns."""
        self._calls.append(method)
        failed = f"failed in their {method} with"
        try:
            result = take(attempt(failed, getattr(self._vector, method), *args, **options))
        except UserError as error:
            raise EnvironmentFault(f"the environments {error}") from error
        self._calls.clear()
        return result

    def _blame_masks(self, observation: Mapping[str, np.ndarray], over: np.ndarray) -> None:
        """Refuses masks that allow nothing where an action follows."""
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
    """Closes it, which waits for ever where a call did not return because a process hangs: they are
    killed then."""
    with contextlib.suppress(EnvironmentFault) if calls else contextlib.nullcontext():
        for process in processes if calls else ():
            kill(process)
        attempt("the environments failed in their close with", vector.close)


def _mode(vector: gymnasium.vector.VectorEnv, num_envs: int) -> AutoresetMode:
    """When a member is reset after its episode is over."""
    if vector.num_envs != num_envs:
        raise UserError(f"makes {vector.num_envs} environments when asked for {num_envs}")
    try:
        mode = (vector.metadata or {}).get(MODE)
        return AutoresetMode(mode)
    except ValueError:
        modes = ", ".join(f"AutoresetMode.{mode.name}" for mode in AutoresetMode)
        raise UserError(
            f"metadata has {MODE}={mode}; expected one of {modes} of gymnasium.vector"
        ) from None


def _without_masks(
    vector: gymnasium.vector.VectorEnv,
) -> tuple[gymnasium.Space, Callable[[Any], Any]]:
    """The space with masks as parts of their own, and what makes them of a batch."""
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
    """One observation out of several, which may be an array of any objects."""
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
