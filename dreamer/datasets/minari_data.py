"""Minari datasets: read as recorded episodes, and made of them."""

import contextlib
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from dm_env import specs
from gymnasium import spaces

from dreamer.datasets.recorded import Episode, Recording, Spaces, checked, compare, space_of
from dreamer.envs.base import Specs
from dreamer.envs.images import resize
from dreamer.envs.spaces import (
    action_codec,
    action_units,
    children,
    classes,
    join,
    observation_codec,
)
from dreamer.errors import UserError, describe
from dreamer.system import files

ID = re.compile(r"([-\w]+/)*[-\w]+-v[0-9]+")
INSTALL = "Minari datasets need a package that is not installed; pip install 'dreamer[minari]'"


# ------------------------------------------------------------------------------------------ reading


def open_dataset(name: str, wanted: Spaces) -> Recording:
    """The episodes of a dataset on this machine, its images resized to those of the environment.

    Raises:
      UserError: Minari is not installed, there is no such dataset, or it has other spaces.
    """
    where = f"minari:{name}"
    dataset, found, actions = _load(name)
    leaves = {f"action.{key}": leaf for key, leaf in actions.items()}
    converters = {}
    for key, leaf in found.items():
        convert = _converter(leaf, wanted.observations.get(key))
        if convert is not None:
            converters[f"observation.{key}"] = convert
        leaves[f"observation.{key}"] = leaf if convert is None else wanted.observations[key]
    compare(where, leaves, wanted)
    _compare_bounds(where, dataset.action_space, wanted)
    with _reading(where):
        metadata = dataset.storage.get_episode_metadata(dataset.episode_indices)
        lengths = [int(one["total_steps"]) + 1 for one in metadata]

    def read() -> Iterator[Episode]:
        for number in dataset.episode_indices:
            with _reading(where):
                (one,) = dataset.iterate_episodes([number])
                rows = episode_of(one, dataset.observation_space, dataset.action_space)
                rows |= {key: convert(rows[key]) for key, convert in converters.items()}
                episode = checked(f"{where}, episode {one.id}", rows, wanted)
            yield episode

    return Recording(where, lengths, read)


def spaces_of(name: str) -> Spaces:
    """The spaces of a dataset on this machine.

    Raises:
      UserError: as `open_dataset`.
    """
    dataset, observations, actions = _load(name)
    env = dataset.env_spec.id if dataset.env_spec else "an unnamed environment"
    return Spaces(env, observations, actions, dataset.action_space)


def episode_of(data: Any, observations: gymnasium.Space, actions: gymnasium.Space) -> Episode:
    """The rows of an episode of Minari, which has T + 1 observations and T of everything else.

    Action, reward and flags of its step t belong to rows t, t + 1 and t + 1.
    """
    observed = observation_codec(observations).convert(data.observations)
    done = encode_actions(actions, data.actions)
    steps = len(data.rewards)
    rows = {f"observation.{key}": value for key, value in observed.items()}
    for key, value in done.items():
        rows[f"action.{key}"] = np.concatenate(
            [value, np.zeros_like(value, shape=(1, *value.shape[1:]))]
        )
    rows["reward"] = np.concatenate([[0], data.rewards]).astype(np.float32)
    first, last, terminal = np.zeros((3, steps + 1), bool)
    first[0] = True
    terminal[1:] = data.terminations
    # An episode may continue after a terminal state, which is then not its end.
    last[-1] = steps > 0 and bool(data.terminations[-1] or data.truncations[-1])
    return rows | {"is_first": first, "is_last": last, "is_terminal": terminal}


def encode_actions(space: gymnasium.Space, actions: Any, key: str = "") -> dict[str, np.ndarray]:
    """The inverse of `action_codec(space, key).convert`: T actions in the environment's units as
    arrays [T, ...] by key. Continuous ones beyond the bounds are clipped."""
    parts = children(space)
    if parts is not None:
        encoded: dict[str, np.ndarray] = {}
        for name, part in parts:
            encoded |= encode_actions(part, actions[name], join(key, name))
        return encoded
    leaves, whole = action_codec(space, key).specs, classes(space)
    if not leaves:
        return {}
    if whole is None:
        (key,), (units,) = leaves, action_units(space, key).values()
        low, high = np.array(units["low"]), np.array(units["high"])
        span = np.where(high > low, high - low, 1.0)
        unit = (np.asarray(actions, np.float64).reshape(-1, low.size) - low) / span * 2.0 - 1.0
        return {key: np.clip(unit, -1, 1).astype(np.float32)}
    start, _ = whole
    flat = np.asarray(actions).astype(np.int64).reshape(-1, start.size) - start.ravel()
    columns = np.split(flat.astype(np.int32), len(leaves), axis=1)
    return {
        name: column.reshape(-1, *leaf.shape)
        for (name, leaf), column in zip(leaves.items(), columns, strict=True)
    }


def _converter(found: specs.Array, wanted: specs.Array | None) -> Callable[[Any], Any] | None:
    """How values [T, ...] become those of a similar spec: images are resized, and masks, which
    Minari has as classes, become booleans. None if the specs are not similar."""
    if wanted is None or found.dtype == np.float32:
        return None
    if wanted.dtype == np.bool_ and wanted.shape == found.shape and np.max(found.maximum) == 1:
        return lambda values: values.astype(bool)
    image = wanted.dtype == found.dtype == np.uint8 and len(wanted.shape) == len(found.shape) == 3
    if image and wanted.shape[2] == found.shape[2]:
        return lambda values: np.stack([resize(one, wanted.shape[:2]) for one in values])
    return None


def _compare_bounds(where: str, actions: gymnasium.Space, wanted: Spaces) -> None:
    found, here = _bounds(actions), _bounds(wanted.native)
    for key, bounds in here.items():
        if not np.allclose(found[key], bounds):
            there = found[key]
            raise UserError(
                f"{where} does not fit the environment {wanted.name}: action.{key} is between "
                f"{there.min(1)[0]:g} and {there.max(1)[1]:g} in the recording and "
                f"between {bounds.min(1)[0]:g} and {bounds.max(1)[1]:g} in the environment; choose "
                "the environment that was recorded, or other episodes"
            )


def _bounds(space: gymnasium.Space) -> dict[str, np.ndarray]:
    """Lowest and highest values [2, A] of the continuous actions, by key."""
    units = action_units(space).items()
    return {key: np.array([unit["low"], unit["high"]]) for key, unit in units if "low" in unit}


def _load(name: str) -> tuple[Any, Specs, Specs]:
    """A dataset, and the specs of its observations and actions."""
    minari, path = _locate(name)
    if not (path / "data").exists():
        raise UserError(
            f"minari:{name} is not on this machine, in {path}; get it with: minari download {name}"
        )
    with _reading(f"minari:{name}"):
        dataset = minari.load_dataset(name)
    try:
        observations = observation_codec(dataset.observation_space).specs
        return dataset, observations, action_codec(dataset.action_space).specs
    except UserError as error:
        raise UserError(f"minari:{name}: {error}") from None


def _locate(name: str) -> tuple[Any, Path]:
    """The package and the folder of a dataset, whose parent folder Minari creates."""
    try:
        import minari
        from minari.storage.datasets_root_dir import get_dataset_path
    except ImportError as error:
        raise UserError(INSTALL) from error
    if not ID.fullmatch(name):
        raise UserError(
            f"{name} is not the id of a Minari dataset; it is written NAME-vN, or with namespaces "
            "before it, such as pendulum/expert-v0"
        )
    try:
        return minari, Path(get_dataset_path(name))
    except OSError as error:
        raise UserError(
            f"Minari cannot create its folder {error.filename}: {error.strerror}; choose another "
            "with MINARI_DATASETS_PATH=PATH"
        ) from error


@contextlib.contextmanager
def _reading(where: str) -> Iterator[None]:
    """Turns what Minari and its libraries raise about their files into a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{where} cannot be read: {describe(error)}") from error


# ------------------------------------------------------------------------------------------ writing


def create(
    name: str, episodes: Iterable[Episode], recorded: Spaces, env_id: str | None
) -> tuple[int, int]:
    """Saves episodes as a dataset on this machine: observations of the agent, actions in the
    environment's own units. Episodes of a single row have no step and are left out.

    Args:
      name: `NAME-vN`, or with namespaces before it.
      episodes: read one by one; never all in memory.
      recorded: their spaces.
      env_id: gymnasium id of the environment, which the dataset records.

    Returns:
      Episodes and steps written.

    Raises:
      UserError: Minari is not installed, there is such a dataset already, or no episode has a step.
    """
    minari, path = _locate(name)
    if os.path.lexists(path):
        raise UserError(f"minari:{name} exists already, in {path}; choose another name")
    missing = files.missing_folders(path)
    with files.undoing():
        try:
            return _write(minari, name, episodes, recorded, env_id)
        except BaseException as error:
            files.remove(path)
            for namespace in missing[1:]:  # made by Minari
                files.remove(namespace / "namespace_metadata.json")
            files.remove_empty(missing)
            if isinstance(error, ImportError | OSError | ValueError):
                raise UserError(f"minari:{name} cannot be written: {describe(error)}") from error
            raise


def _write(
    minari: Any, name: str, episodes: Iterable[Episode], recorded: Spaces, env_id: str | None
) -> tuple[int, int]:
    observed = space_of(recorded.observations)
    buffers = (
        _buffer(minari, episode, recorded, observed)
        for episode in episodes
        if len(episode["reward"]) > 1
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about optional metadata
        dataset = minari.create_dataset_from_buffers(
            name,
            buffers,
            env=_spec(env_id),
            observation_space=observed,
            action_space=recorded.native,
            algorithm_name="DreamerV3",
            jpeg_encoding=False,  # it would change the images
        )
    if not dataset.total_episodes:
        raise UserError(f"minari:{name} would be empty: no episode has a step")
    return int(dataset.total_episodes), int(dataset.total_steps)


def _spec(env_id: str | None) -> Any:
    """How gymnasium makes the environment, if that can be written as JSON."""
    # Not if its package is not imported, or it was registered with a class instead of a name.
    with contextlib.suppress(gymnasium.error.Error, ValueError):
        if env_id is not None:
            spec = gymnasium.spec(env_id)
            spec.to_json()
            return spec
    return None


def _buffer(minari: Any, episode: Episode, recorded: Spaces, observed: gymnasium.Space) -> Any:
    """An episode in the form of Minari, see `episode_of`."""
    observations = {key: episode[f"observation.{key}"] for key in recorded.observations}
    actions = {key: episode[f"action.{key}"][:-1] for key in recorded.actions}
    alone = not isinstance(observed, spaces.Dict)
    terminal, last = episode["is_terminal"][1:], episode["is_last"][1:]
    return minari.data_collector.EpisodeBuffer(
        observations=next(iter(observations.values())) if alone else observations,
        actions=action_codec(recorded.native).convert(actions),
        rewards=episode["reward"][1:],
        terminations=terminal,
        truncations=last & ~terminal,
    )
