"""Recorded episodes: rows of replay without latents, and the folders they are saved in.

An episode is a flat dict of arrays by name, whose leading axis are its T + 1 rows:
- `observation.KEY` and `action.KEY` as in the specs of the environment; row t has the observation
  at t and the action taken then, which is zero in the last row;
- `reward` float32, received on arriving at t, so 0 in the first row;
- `is_first`, `is_last`, `is_terminal` bool; an incomplete episode has no last row, a truncated one
  has a last row that is not terminal.

A folder has one `.npz` file of these arrays per episode; `env.yaml`, the section `env` of the
configuration they were made with; and `spaces.json`, the spaces of that environment. The last two
are only needed where the user does not name the environment.
"""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import psutil
from dm_env import specs
from gymnasium import spaces

from dreamer.envs import saved_spaces
from dreamer.envs.base import BatchedEnv, Specs
from dreamer.envs.spaces import action_codec
from dreamer.errors import UserError
from dreamer.errors import describe as message
from dreamer.system import files

Episode = dict[str, np.ndarray]

ENV = "env.yaml"
SPACES = "spaces.json"
FLAGS = ("is_first", "is_last", "is_terminal")
_MOST = 2**26  # bytes of saved spaces
_ADVICE = "choose the environment that was recorded, or other episodes"


@dataclass(frozen=True)
class Spaces:
    """What episodes have to fit."""

    name: str  # of the environment
    observations: Specs  # only those in use
    actions: Specs
    native: gymnasium.Space  # of actions, in the environment's own units


@dataclass(frozen=True)
class Recording:
    """Episodes that are read one after the other, as often as needed."""

    name: str
    lengths: list[int]  # rows of each
    read: Callable[[], Iterator[Episode]]  # raises UserError for invalid values

    @property
    def rows(self) -> int:
        return sum(self.lengths)


def spaces_of(
    env: BatchedEnv, name: str, observations: Mapping[str, specs.Array] | None = None
) -> Spaces:
    """The spaces of an environment; with these observations only, if given."""
    actions = env.action_spec()
    native = getattr(env, "native_actions", None) or space_of(actions)
    return Spaces(name, dict(observations or env.observation_spec()), actions, native)


def load_native(saved: Any, actions: Specs) -> gymnasium.Space | None:
    """The saved space of native actions, see `saved_spaces`; None if none was saved.

    Raises:
      ValueError, UserError: it cannot be loaded, or does not have these actions.
    """
    native = saved_spaces.load_space(saved)
    if native is None:
        return None
    found, own = (
        {key: describe(leaf) for key, leaf in part.items()}
        for part in (action_codec(native).specs, actions)
    )
    if found != own:
        raise ValueError(f"the space has actions {found}, expected {own}")
    return native


def space_of(leaves: Specs) -> gymnasium.Space:
    """A gymnasium space with these specs: a Dict, or that of a single leaf with a default name."""
    parts = {key: _space(leaf) for key, leaf in leaves.items()}
    (key, leaf), *others = parts.items()
    image = leaf.dtype == np.uint8
    alone = not others and key in ("action", "image" if image else "observation")
    return leaf if alone else spaces.Dict(parts)


def _space(leaf: specs.Array) -> gymnasium.Space:
    if isinstance(leaf, specs.DiscreteArray):
        return spaces.Discrete(leaf.num_values)
    if not isinstance(leaf, specs.BoundedArray):
        return spaces.Box(-np.inf, np.inf, leaf.shape, np.float32)
    low, high = (np.broadcast_to(x, leaf.shape) for x in (leaf.minimum, leaf.maximum))
    if leaf.dtype == np.bool_:
        return spaces.MultiBinary(leaf.shape)
    if leaf.dtype == np.int32:
        return spaces.MultiDiscrete(high.astype(np.int64) + 1)
    return spaces.Box(low.astype(leaf.dtype), high.astype(leaf.dtype), dtype=leaf.dtype.type)


# ---------------------------------------------------------------------------------------- comparing


def expected(wanted: Spaces) -> dict[str, specs.Array]:
    """The spec of every array of an episode, by name and without the axis of rows."""
    leaves = {f"observation.{key}": leaf for key, leaf in wanted.observations.items()}
    leaves |= {f"action.{key}": leaf for key, leaf in wanted.actions.items()}
    leaves["reward"] = specs.Array((), np.float32)
    return leaves | {flag: specs.Array((), np.bool_) for flag in FLAGS}


def compare(name: str, found: Mapping[str, specs.Array], wanted: Spaces) -> None:
    """Refuses episodes of another environment; unused observations do not matter.

    Args:
      name: of the source of the episodes.
      found: specs of their observations and actions, by name.
      wanted: what they have to fit.

    Raises:
      UserError: naming the first difference.
    """
    here = {key: describe(leaf) for key, leaf in expected(wanted).items() if "." in key}
    there = {
        key: describe(leaf)
        for key, leaf in found.items()
        if key in here or key.startswith("action.")
    }
    for key in here | there:
        if here.get(key) != there.get(key):
            raise UserError(
                f"{name} does not fit the environment {wanted.name}: {key} is "
                f"{there.get(key, 'missing')} in the recording and {here.get(key, 'missing')} in "
                f"the environment; {_ADVICE}"
            )


def describe(leaf: specs.Array) -> str:
    """Dtype, shape and classes of a spec, for messages."""
    text = f"{leaf.dtype} {list(leaf.shape)}"
    if np.issubdtype(leaf.dtype, np.signedinteger) and isinstance(leaf, specs.BoundedArray):
        return f"{text} of {int(np.max(leaf.maximum)) + 1} classes"
    return text


def checked(name: str, episode: Mapping[str, Any], wanted: Spaces) -> Episode:
    """The used arrays of an episode, after they are checked.

    Args:
      name: of the episode, for messages.
      episode: its arrays by name.
      wanted: what they have to fit.

    Raises:
      UserError: an array is missing, has another shape or dtype, or invalid values.
    """
    leaves, found = expected(wanted), {}
    for key, leaf in leaves.items():
        if key not in episode:
            raise UserError(f"{name} has no array {key}; it needs {', '.join(leaves)}")
        found[key] = value = np.asarray(episode[key])
        if not value.ndim or value.shape[1:] != leaf.shape or value.dtype != leaf.dtype:
            raise UserError(
                f"{name} does not fit the environment {wanted.name}: a row of {key} is "
                f"{value.dtype} {list(value.shape[1:])} in the recording and {describe(leaf)} in "
                f"the environment; {_ADVICE}"
            )
        _check_values(name, key, value, leaf)
    lengths = {key: len(value) for key, value in found.items()}
    if len(set(lengths.values())) > 1 or not lengths["reward"]:
        raise UserError(
            f"{name}: all arrays of an episode need the same number of rows, at least one, not "
            + ", ".join(f"{key} {length}" for key, length in lengths.items())
        )
    # The rows before it in replay are another episode, also if its first rows are lost.
    found["is_first"] = np.concatenate([[True], found["is_first"][1:]])
    return found


def _check_values(name: str, key: str, value: np.ndarray, leaf: specs.Array) -> None:
    wrong, what = ~np.isfinite(value), "not finite"
    # Floats have no bounds here: a continuous action is kept as the policy has sampled it, which is
    # also the input of the model; only the environment clips it.
    if isinstance(leaf, specs.BoundedArray) and np.issubdtype(leaf.dtype, np.signedinteger):
        wrong = (value < leaf.minimum) | (value > leaf.maximum)
        what = f"not between {np.min(leaf.minimum)} and {np.max(leaf.maximum)}"
    if wrong.any():
        raise UserError(f"{name}: {key} in row {np.argwhere(wrong)[0, 0]} is {what}")


# ------------------------------------------------------------------------------------------ folders


def save(folder: Path, number: int, episode: Episode) -> Path:
    """Writes one episode atomically.

    Raises:
      OSError: it cannot be written.
    """
    path = folder / f"{number:06}.npz"
    with files.replacing(path) as file:
        np.savez_compressed(file, **episode)  # type: ignore[arg-type]
    return path


def save_spaces(folder: Path, spaces: Spaces) -> None:
    """Writes the spaces of the episodes in a folder.

    Raises:
      OSError: they cannot be written.
    """
    content = {
        "observations": saved_spaces.dump_specs(spaces.observations),
        "actions": saved_spaces.dump_specs(spaces.actions),
        "native": saved_spaces.dump_space(spaces.native),
    }
    files.write_atomic(folder / SPACES, json.dumps(content, indent=1) + "\n")


def read_spaces(folder: Path, name: str) -> Spaces:
    """The spaces that were saved with the episodes in a folder.

    Raises:
      UserError: they cannot be read, or are invalid.
    """
    file = folder / SPACES
    try:
        saved = json.loads(files.read(file, _MOST))
        observations, actions = (
            saved_spaces.load_specs(saved[key]) for key in ("observations", "actions")
        )
        if not (observations and actions):
            raise ValueError("it has no observations or no actions")
        native = load_native(saved["native"], actions)
    except (OSError, ValueError, KeyError, TypeError, RecursionError, UserError) as error:
        raise UserError(
            f"{file} cannot be read as the spaces of an environment: {message(error)}; name "
            "the environment, as in env.task=CartPole-v1"
        ) from None
    return Spaces(name, observations, actions, native or space_of(actions))


def open_folder(folder: Path, wanted: Spaces) -> Recording:
    """The episodes saved in a folder, in the order of their names.

    Raises:
      UserError: there are none, or one cannot be read.
    """
    found = sorted(folder.glob("*.npz"))
    if not found:
        raise UserError(
            f"{folder} holds no saved episodes (*.npz); save some with python -m dreamer.data "
            "collect, or name a Minari dataset as minari:DATASET_ID"
        )
    lengths = []
    for file in found:
        with _opened(file) as members:
            lengths.append(len(_array(members, "reward")))

    def read() -> Iterator[Episode]:
        for file in found:
            with _opened(file) as members:
                names = [name for name in expected(wanted) if name in members]
                episode = {name: _array(members, name) for name in names}
            yield checked(str(file), episode, wanted)

    return Recording(str(folder), lengths, read)


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """The file of an episode, whose arrays are read one by one."""
    try:
        with open(files.open_regular(file), "rb") as opened, np.load(opened) as members:
            yield members
    except Exception as error:  # of many kinds, for files that are no archives of arrays
        raise UserError(f"{file} cannot be read as a saved episode: {message(error)}") from None


def _array(members: Any, name: str) -> np.ndarray:
    """An array that fits into memory: a small file may unpack to a large one."""
    size = members.zip.getinfo(f"{name}.npy").file_size
    if size > (free := psutil.virtual_memory().available):
        raise ValueError(f"{name} has {size:,} bytes, and {free:,} of memory are free")
    return np.asarray(members[name])
