"""Recorded episodes: rows of replay without latents, and the folders they are saved in.

An episode is a flat dict of arrays by name, whose leading axis are its T + 1 rows:
- `observation.KEY` and `action.KEY` as in the specs of the environment; row t holds what was seen
  at t and the action then taken, which is zero in the last row;
- `reward` float32, received on arriving at t, so 0 in the first row;
- `is_first`, `is_last`, `is_terminal` bool; an episode that was cut off has no last row, one that
  ended by a time limit has a last row that is not terminal.

A folder holds one `.npz` file of these arrays per episode, `env.yaml`, the section `env` of the
configuration they were made with, and `spaces.json`, the spaces of that environment; the last two
only those need who do not say which environment it is.
"""

import contextlib
import json
import math
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import numpy.lib.format as npy
import psutil
from dm_env import specs
from gymnasium import spaces

from dreamer.envs import saved_spaces
from dreamer.envs.base import BatchedEnv, Specs
from dreamer.envs.spaces import action_codec
from dreamer.errors import UserError
from dreamer.errors import describe as told
from dreamer.system import files

Episode = dict[str, np.ndarray]

ENV = "env.yaml"
SPACES = "spaces.json"
FLAGS = ("is_first", "is_last", "is_terminal")
_MOST = 2**26  # bytes of saved spaces
_ADVICE = "choose the environment that was recorded, or other episodes"


@dataclass(frozen=True)
class Spaces:
    """What the episodes are wanted for."""

    name: str  # of the environment
    observations: Specs  # those that are used
    actions: Specs
    native: gymnasium.Space  # of actions, in the environment's own units


@dataclass(frozen=True)
class Recording:
    """Episodes that can be read one after the other, as often as needed."""

    name: str
    lengths: list[int]  # rows of each
    read: Callable[[], Iterator[Episode]]  # raises UserError for values that cannot be

    @property
    def rows(self) -> int:
        return sum(self.lengths)


def spaces_of(
    env: BatchedEnv, name: str, observations: Mapping[str, specs.Array] | None = None
) -> Spaces:
    """The spaces of an environment, of its observations only those given."""
    actions = env.action_spec()
    native = getattr(env, "native_actions", None) or space_of(actions)
    return Spaces(name, dict(observations or env.observation_spec()), actions, native)


def fitting(native: gymnasium.Space | None, actions: Specs) -> gymnasium.Space | None:
    """The space, if actions of these specs are made into its elements.

    Raises:
      ValueError: they are not.
    """
    try:
        specs_of = {} if native is None else action_codec(native).specs
    except UserError as error:
        raise ValueError(str(error)) from error
    forms = [{key: describe(leaf) for key, leaf in part.items()} for part in (specs_of, actions)]
    if native is not None and forms[0] != forms[1]:
        raise ValueError("its actions are not those of the space that it has for them")
    return native


def space_of(leaves: Specs) -> gymnasium.Space:
    """A gymnasium space with these specs: of one leaf named as such, else a Dict."""
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
    """Refuses episodes of another environment; observations that nobody uses do not count.

    Args:
      name: where the episodes are from.
      found: specs of their observations and actions, by name.
      wanted: what they are compared with.

    Raises:
      UserError: the first difference.
    """
    leaves = expected(wanted)
    unused = [key for key in found if key.startswith("action.") and key not in leaves]
    for key in [*leaves, *unused]:
        if key in ("reward", *FLAGS):
            continue
        there = describe(found[key]) if key in found else "missing"
        here = describe(leaves[key]) if key in leaves else "missing"
        if there != here:
            raise UserError(
                f"{name} does not fit the environment {wanted.name}: {key} is {there} there and "
                f"{here} in the environment; {_ADVICE}"
            )


def describe(leaf: specs.Array) -> str:
    """Type, shape and classes of a spec, in words."""
    text = f"{leaf.dtype} {list(leaf.shape)}"
    if np.issubdtype(leaf.dtype, np.signedinteger) and isinstance(leaf, specs.BoundedArray):
        return f"{text} of {int(np.max(leaf.maximum)) + 1} classes"
    return text


def checked(name: str, episode: Mapping[str, Any], wanted: Spaces) -> Episode:
    """The arrays of an episode that are used.

    Args:
      name: what the episode is called in messages.
      episode: its arrays by name.
      wanted: what they have to fit.

    Raises:
      UserError: an array is missing, of another shape or type, or holds values that cannot be.
    """
    leaves, found = expected(wanted), {}
    for key, leaf in leaves.items():
        if key not in episode:
            raise UserError(f"{name} has no array {key}; it needs {', '.join(leaves)}")
        found[key] = value = np.asarray(episode[key])
        if not value.ndim or value.shape[1:] != leaf.shape or value.dtype != leaf.dtype:
            raise UserError(
                f"{name} does not fit the environment {wanted.name}: a row of {key} is "
                f"{value.dtype} {list(value.shape[1:])} there and {describe(leaf)} in the "
                f"environment; {_ADVICE}"
            )
        _check_values(name, key, value, leaf)
    lengths = {key: len(value) for key, value in found.items()}
    if len(set(lengths.values())) > 1 or not lengths["reward"]:
        raise UserError(
            f"{name}: the arrays of an episode have equally many rows, at least one, not "
            + ", ".join(f"{key} {length}" for key, length in lengths.items())
        )
    # What comes before in replay is another episode, also where the beginning of this one is lost.
    found["is_first"] = np.concatenate([[True], found["is_first"][1:]])
    return found


def _check_values(name: str, key: str, value: np.ndarray, leaf: specs.Array) -> None:
    if value.dtype == np.float32 and not np.isfinite(value).all():
        raise UserError(f"{name}: {key} is not finite in row {_row(~np.isfinite(value))}")
    # Floats have no bounds here: a continuous action is kept as the policy drew it, which the model
    # is told as well, and only the environment clips it.
    if isinstance(leaf, specs.BoundedArray) and np.issubdtype(leaf.dtype, np.signedinteger):
        outside = (value < leaf.minimum) | (value > leaf.maximum)
        if outside.any():
            raise UserError(
                f"{name}: {key} in row {_row(outside)} is not between {np.min(leaf.minimum)} and "
                f"{np.max(leaf.maximum)}"
            )


def _row(wrong: np.ndarray) -> int:
    return int(np.argwhere(wrong)[0, 0])


# ------------------------------------------------------------------------------------------ folders


def save(folder: Path, number: int, episode: Episode) -> Path:
    """Writes one episode whole or not at all.

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
      UserError: they cannot be read, or are none.
    """
    file = folder / SPACES
    try:
        saved = json.loads(files.read(file, _MOST))
        observations, actions = (
            saved_spaces.load_specs(saved[key]) for key in ("observations", "actions")
        )
        if not (observations and actions):
            raise ValueError("it has no observations or no actions")
        native = fitting(saved_spaces.load_space(saved["native"]), actions)
    except (OSError, ValueError, KeyError, TypeError, RecursionError, UserError) as error:
        what = error.strerror if isinstance(error, OSError) else error
        raise UserError(
            f"{file} cannot be read as the spaces of an environment: {what}; say which it is, as "
            "in env.task=CartPole-v1"
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
    lengths = [_rows(file) for file in found]

    def read() -> Iterator[Episode]:
        for file in found:
            yield checked(str(file), _arrays(file, expected(wanted)), wanted)

    return Recording(str(folder), lengths, read)


def _rows(file: Path) -> int:
    """The rows of a saved episode, of which no array is read."""
    with _opened(file) as members:
        shape, _ = _form(members, "reward")
        if not shape:
            raise ValueError("reward has no axis of rows")
        return shape[0]


def _arrays(file: Path, names: Iterable[str]) -> Episode:
    """Those of these arrays that a file has."""
    with _opened(file) as members:
        there = [name for name in names if f"{name}.npy" in members.namelist()]
        forms = [_form(members, name) for name in there]
        size = sum(math.prod(shape) * dtype.itemsize for shape, dtype in forms)
        if size > (free := psutil.virtual_memory().available):
            raise ValueError(f"its arrays have {size:,} bytes, and {free:,} of memory are free")
        arrays = {}
        for name in there:
            with members.open(f"{name}.npy") as member:
                arrays[name] = npy.read_array(member, allow_pickle=False)
        return arrays


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with open(files.open_regular(file), "rb") as opened, zipfile.ZipFile(opened) as members:
            yield members
    except Exception as error:  # of many kinds, for files that are no archives of arrays
        raise UserError(f"{file} cannot be read as a saved episode: {told(error)}") from None


def _form(members: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype of an array, which must be all that the file says of its size."""
    if f"{name}.npy" not in members.namelist():
        raise ValueError(f"it has no array {name}")
    with members.open(f"{name}.npy") as member:
        version = npy.read_magic(member)
        header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = header(member)
        size = member.tell() + math.prod(shape) * dtype.itemsize
    if dtype.hasobject:
        raise ValueError(f"{name} holds objects, which are not read")
    if (there := members.getinfo(f"{name}.npy").file_size) != size or min(shape, default=0) < 0:
        raise ValueError(f"{name} has {there:,} bytes where its header says {size:,}")
    return shape, dtype
