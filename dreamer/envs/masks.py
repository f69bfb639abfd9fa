"""Action masks: the valid classes of a discrete action, as observations.

An environment gives them under the key `action_mask` of a Dict observation, or of the info of every
reset and step. A mask is 1 or 0 for each class: an array [classes] for Discrete; for MultiDiscrete
and MultiBinary a tuple of such arrays, one array of equal rows [entries, classes], or all of them
in one array. For Dict and Tuple actions it is a dict or tuple of the masks of their parts; every
class is valid for a part that is missing or None.
"""

from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from dreamer.envs.base import MASK
from dreamer.envs.faults import attempt
from dreamer.envs.spaces import Mask, children, class_specs, classes, image_shape, join
from dreamer.errors import EnvironmentFault, UserError

KEY = MASK  # in environments and in observations
ADVICE = f"; fix it, or rename {KEY} in a wrapper if it is no mask of the actions"

NOTHING = "that allows no class, expected one at least until the episode is over; fix it"

Masks = dict[str, np.ndarray]  # int8 [*action, classes] by the key that the observation gets
Reader = Callable[[Any, str], Masks]


def with_masks(env: gymnasium.Env) -> gymnasium.Env:
    """Moves the masks of an environment into its observation, if a reset gives any.

    Raises:
      UserError: The mask does not fit its actions.
    """
    observation, info = attempt("failed in its reset with", env.reset, seed=0)
    inside = isinstance(env.observation_space, spaces.Dict) and KEY in env.observation_space.spaces
    if not inside and KEY not in info:
        return env
    masked = Masked(env, inside)
    attempt("failed in its masks with", masked.with_masks, observation, info)
    return masked


class Masked(gymnasium.Wrapper):
    """Adds masks to a Dict observation, as `Mask` spaces named `action_mask`.

    The mask of the part KEY of an action is named `action_mask_KEY`.

    Args:
      env: Gives masks.
      inside: Whether it gives them as a part of its observation, which is removed; else in info.
    """

    def __init__(self, env: gymnasium.Env, inside: bool) -> None:
        super().__init__(env)
        self._inside = inside
        self._keep = _keep(env.observation_space)
        masks, self._read = reader_of(env.action_space)
        kept = self._keep(dict(children(env.observation_space) or ()) or env.observation_space)
        for key in masks.keys() & kept.keys():
            raise UserError(f"observation '{key}' has the name of a mask; rename it in a wrapper")
        self.observation_space = spaces.Dict(kept | masks)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        return self.with_masks(observation, info), _without(info)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        over = bool(terminated or truncated)
        masked = self.with_masks(observation, info, over)
        return masked, reward, terminated, truncated, _without(info)

    def with_masks(
        self, observation: Any, info: Mapping[str, Any], over: bool = False
    ) -> dict[str, Any]:
        """Returns the observation with its masks.

        Where the episode is over, no action follows, so the mask may be missing.

        Raises:
          EnvironmentFault: It is missing elsewhere, does not fit the actions, or allows none.
        """
        source = observation if self._inside else info
        mask = source.get(KEY) if isinstance(source, Mapping) else None
        if mask is None and not over:
            where = "observation" if self._inside else "info"
            raise EnvironmentFault(f"gave no {KEY} in its {where}, expected at every step{ADVICE}")
        found = self._read(mask, KEY)
        none = next((key for key, valid in found.items() if not valid.any()), None)
        if none and not over:
            raise EnvironmentFault(f"gave {none} {NOTHING}")
        return self._keep(observation) | found


def _without(info: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in info.items() if key != KEY}


def _keep(space: gymnasium.Space) -> Callable[[Any], dict[str, Any]]:
    """Makes a function that converts a space, or an observation of it, to a dict without masks."""
    if isinstance(space, spaces.Dict):
        return lambda whole: {key: part for key, part in whole.items() if key != KEY}
    if isinstance(space, spaces.Tuple):
        names = [str(number) for number in range(len(space.spaces))]
        return lambda whole: dict(
            zip(names, whole.values() if isinstance(whole, dict) else whole, strict=True)
        )
    name = "image" if image_shape(space) else "observation"
    return lambda whole: {name: whole}


def reader_of(space: gymnasium.Space) -> tuple[dict[str, Mask], Reader]:
    """Returns `_reader` of a whole action space.

    Raises:
      UserError: It has no discrete action.
    """
    masks, read = _reader(space)
    if not masks:
        raise UserError(
            f"{KEY} is the name of masks of discrete actions, but the actions are {space}{ADVICE}"
        )
    return masks, read


def _reader(space: gymnasium.Space, key: str = "") -> tuple[dict[str, Mask], Reader]:
    """Returns the masks of an action space, and the reader of those of an environment.

    The reader takes a mask, None if every class is valid, and its name in messages. It raises
    EnvironmentFault for one that does not fit.
    """
    parts = children(space)
    if parts is None:
        return _leaf(space, key)
    readers = {name: _reader(part, join(key, name)) for name, part in parts}
    found = {key: mask for masks, _ in readers.values() for key, mask in masks.items()}

    def read(given: Any, what: str) -> Masks:
        given = _by_name(given, list(readers), what)
        result: Masks = {}
        for name, (_, inner) in readers.items():
            result |= inner(given.get(name), f"{what} {name}")
        return result

    return found, read


def _by_name(given: Any, names: list[Any], what: str) -> Mapping[Any, Any]:
    """Returns the masks of the parts of a Dict or Tuple action, by part."""
    if given is None:
        return {}
    numbered = all(isinstance(name, int) for name in names)  # of a Tuple; keys have no order
    if numbered and isinstance(given, list | tuple) and len(given) == len(names):
        given = dict(zip(names, given, strict=True))
    if not isinstance(given, Mapping) or not given.keys() <= set(names):
        got = sorted(map(str, given)) if isinstance(given, Mapping) else _shown(given)
        raise EnvironmentFault(f"gave {what} as {got}, expected masks of {names}{ADVICE}")
    return given


def _leaf(space: gymnasium.Space, key: str) -> tuple[dict[str, Mask], Reader]:
    whole = classes(space)
    if whole is None or 0 in whole[1].shape:

        def none(given: Any, what: str) -> Masks:
            if given is not None:
                raise EnvironmentFault(f"gave {what} of an action that is not discrete{ADVICE}")
            return {}

        return {}, none
    count = whole[1]
    sizes = count.ravel()
    masks = {
        KEY if name == "action" else join(KEY, name): Mask((*leaf.shape, int(leaf.maximum) + 1))
        for name, leaf in class_specs(key or "action", count, max_rank=1).items()
    }
    ends = np.cumsum([np.prod(mask.shape) for mask in masks.values()])[:-1]

    def read(given: Any, what: str) -> Masks:
        valid = np.ones(sizes.sum(), np.int8) if given is None else _flat(given, sizes, what)
        pieces = np.split(valid, ends)
        return {
            name: piece.reshape(mask.shape)
            for (name, mask), piece in zip(masks.items(), pieces, strict=True)
        }

    return masks, read


def _flat(given: Any, sizes: np.ndarray, what: str) -> np.ndarray:
    """Returns the mask of entries with these numbers of classes as one array."""
    pieces = _pieces(given)
    flat, lengths = np.concatenate(pieces), [len(piece) for piece in pieces]
    if lengths not in (sizes.tolist(), [sizes.sum()]) or not np.isin(flat, (0, 1)).all():
        expected = " + ".join(map(str, sizes))
        raise EnvironmentFault(
            f"gave {what} as {_shown(given)}, expected 1 or 0 for each of {expected} classes"
            f"{ADVICE}"
        )
    return flat.astype(np.int8)


def _pieces(given: Any) -> list[np.ndarray]:
    """Returns the arrays of nested tuples or lists of them."""
    nested = isinstance(given, list | tuple) and any(np.ndim(part) for part in given)
    return [piece for part in given for piece in _pieces(part)] if nested else [np.ravel(given)]


def _shown(given: Any) -> str:
    text = " ".join(str(given).split())
    text = text if len(text) <= 60 else f"{text[:57]}..."
    return f"{text} of shape {given.shape}" if isinstance(given, np.ndarray) else text
