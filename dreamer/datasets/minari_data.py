"""Minari datasets as recorded episodes, and the way back."""

import contextlib
import os
import re
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from dm_env import specs
from gymnasium import spaces

from dreamer.datasets.recorded import Episode, Recording, Spaces, checked, compare, space_of
from dreamer.envs.base import Specs
from dreamer.envs.images import resize
from dreamer.envs.spaces import action_codec, action_units, children, observation_codec
from dreamer.errors import UserError, describe
from dreamer.system import files

ID = re.compile(r"([-\w]+/)*[-\w]+-v[0-9]+")
INSTALL = "Minari datasets need a package that is not installed; pip install 'dreamer[minari]'"


# ------------------------------------------------------------------------------------------ reading


def open_dataset(name: str, wanted: Spaces) -> Recording:
    """The episodes of a dataset on this machine, its images resized to those of the environment.

    Raises:
      UserError: Minari is not installed, there is no such dataset, or its spaces are others.
    """
    dataset = _load(name)
    where = f"minari:{name}"
    found, actions = _specs(dataset, where)
    similar = {
        key: leaf for key, leaf in wanted.observations.items() if _similar(leaf, found.get(key))
    }
    leaves = {f"observation.{key}": leaf for key, leaf in (found | similar).items()}
    leaves |= {f"action.{key}": leaf for key, leaf in actions.items()}
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
                for key, leaf in similar.items():
                    name = f"observation.{key}"
                    rows[name] = _like(leaf, rows[name])
                episode = checked(f"{where}, episode {one.id}", rows, wanted)
            yield episode

    return Recording(where, lengths, read)


def spaces_of(name: str) -> Spaces:
    """The spaces of a dataset on this machine.

    Raises:
      UserError: as `open_dataset`.
    """
    dataset = _load(name)
    env = dataset.env_spec.id if dataset.env_spec else "an environment that it does not name"
    return Spaces(env, *_specs(dataset, f"minari:{name}"), dataset.action_space)


def _specs(dataset: Any, where: str) -> tuple[Specs, Specs]:
    try:
        observations = observation_codec(dataset.observation_space).specs
        return observations, action_codec(dataset.action_space).specs
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def episode_of(data: Any, observations: gymnasium.Space, actions: gymnasium.Space) -> Episode:
    """The rows of an episode as Minari has it: T + 1 observations, T of everything else.

    Action, reward and flags of its step t belong to rows t, t + 1 and t + 1.
    """
    seen = observation_codec(observations).convert(data.observations)
    done = encode_actions(actions, data.actions)
    steps = len(data.rewards)
    rows = {f"observation.{key}": value for key, value in seen.items()}
    for key, value in done.items():
        rows[f"action.{key}"] = np.concatenate(
            [value, np.zeros_like(value, shape=(1, *value.shape[1:]))]
        )
    rows["reward"] = np.concatenate([[0], data.rewards]).astype(np.float32)
    flags = np.zeros((3, steps + 1), bool)
    first, last, terminal = flags
    first[0] = True
    terminal[1:] = data.terminations
    # Where an episode goes on after a terminal state, that state is not its end.
    last[-1] = steps > 0 and bool(data.terminations[-1] or data.truncations[-1])
    return rows | {"is_first": first, "is_last": last, "is_terminal": terminal}


def encode_actions(space: gymnasium.Space, actions: Any) -> dict[str, np.ndarray]:
    """The inverse of `action_codec(space).convert`: T actions in the environment's units as arrays
    [T, ...] by key. Continuous ones beyond the bounds are clipped."""
    return _encode(space, actions, "")


def _encode(space: gymnasium.Space, actions: Any, key: str) -> dict[str, np.ndarray]:
    parts = children(space)
    if parts is not None:
        encoded = {}
        for name, part in parts:
            # The codec of one part alone names its leaves as that of the whole space does.
            inner = f"{key}_{name}" if key else str(name)
            encoded.update(_encode(part, actions[name], inner.replace("/", "_")))
        return encoded
    leaves = action_codec(space, key).specs
    if not leaves:
        return {}
    if isinstance(space, spaces.Box) and _is_continuous(space):
        (key,) = leaves
        low, high = space.low.astype(np.float64), space.high.astype(np.float64)
        span = np.where(high > low, high - low, 1.0)
        unit = (np.asarray(actions, np.float64) - low) / span * 2.0 - 1.0
        return {key: np.clip(unit, -1, 1).reshape(len(unit), -1).astype(np.float32)}
    # Observed classes count from 0 as well, but are laid out otherwise from rank 2 on.
    columns = observation_codec(space, key or "action").convert(actions).values()
    flat = np.concatenate([column.reshape(len(column), -1) for column in columns], 1)
    if len(leaves) == 1:
        return {name: flat.reshape(-1, *leaf.shape) for name, leaf in leaves.items()}
    return {name: flat[:, i].copy() for i, name in enumerate(leaves)}


def _similar(wanted: Any, found: Any) -> bool:
    """Whether `_like` makes one of the other: images of the same channels, or masks, which Minari
    knows as classes."""
    if found is None:
        return False
    images = wanted.dtype == found.dtype == np.uint8 and len(wanted.shape) == len(found.shape) == 3
    if images:
        return bool(wanted.shape[2] == found.shape[2])
    binary = isinstance(found, specs.BoundedArray) and np.max(found.maximum) == 1
    return bool(wanted.dtype == np.bool_ and wanted.shape == found.shape and binary)


def _like(wanted: specs.Array, values: np.ndarray) -> np.ndarray:
    """Values [T, ...] of a similar spec as one wants them."""
    if wanted.dtype == np.bool_:
        return values.astype(bool)
    return np.stack([resize(image, wanted.shape[:2]) for image in values])


def _compare_bounds(where: str, actions: gymnasium.Space, wanted: Spaces) -> None:
    found, here = _bounds(actions), _bounds(wanted.native)
    for key, bounds in here.items():
        if not np.allclose(found[key], bounds):
            there = found[key]
            raise UserError(
                f"{where} does not fit the environment {wanted.name}: action.{key} is between "
                f"{there.min(1)[0]:g} and {there.max(1)[1]:g} there and between "
                f"{bounds.min(1)[0]:g} and {bounds.max(1)[1]:g} in the environment; choose the "
                "environment that was recorded, or other episodes"
            )


def _bounds(space: gymnasium.Space) -> dict[str, np.ndarray]:
    """Lowest and highest values [2, A] of the continuous actions, by key."""
    units = action_units(space).items()
    return {key: np.array([unit["low"], unit["high"]]) for key, unit in units if "low" in unit}


def _is_continuous(space: gymnasium.Space) -> bool:
    return any(leaf.dtype == np.float32 for leaf in action_codec(space).specs.values())


def _load(name: str) -> Any:
    minari = _minari()
    _check_id(name)
    try:
        with _reading(f"minari:{name}"):
            return minari.load_dataset(name)
    except UserError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        raise UserError(
            f"minari:{name} is not on this machine, in {_root()}; get it with: minari download "
            f"{name}"
        ) from None


@contextlib.contextmanager
def _reading(where: str) -> Iterator[None]:
    """Turns what Minari and the libraries below it raise of their files into a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{where} cannot be read: {describe(error)}") from error


def _check_id(name: str) -> None:
    if not ID.fullmatch(name):
        raise UserError(
            f"{name} is not the id of a Minari dataset; it is written NAME-vN, or with namespaces "
            "before it, such as pendulum/expert-v0"
        )


# ------------------------------------------------------------------------------------------ writing


def create(
    name: str, episodes: Iterable[Episode], recorded: Spaces, env_id: str | None
) -> tuple[int, int]:
    """Saves episodes as a dataset on this machine: observations as the agent sees them, actions in
    the environment's own units. Those of a single row hold no step and are left out.

    Args:
      name: `NAME-vN`, or with namespaces before it.
      episodes: one after the other; all are never in memory together.
      recorded: their spaces.
      env_id: gymnasium id of the environment, for those who want to make it.

    Returns:
      Episodes and steps written.

    Raises:
      UserError: Minari is not installed, there is such a dataset already, or no episode has a step.
    """
    minari = _minari()
    _check_id(name)
    path = _root() / name
    if os.path.lexists(path):
        raise UserError(f"minari:{name} is there already, in {path}; choose another name")
    missing = files.missing_folders(path)
    with files.undoing():
        try:
            return _write(minari, name, episodes, recorded, env_id)
        except BaseException as error:
            files.remove(path)
            for namespace in missing[1:]:  # which Minari has made for it
                files.remove(namespace / "namespace_metadata.json")
            files.remove_empty(missing)
            if isinstance(error, ImportError | OSError | ValueError):
                raise UserError(f"minari:{name} cannot be written: {describe(error)}") from error
            raise


def _write(
    minari: Any, name: str, episodes: Iterable[Episode], recorded: Spaces, env_id: str | None
) -> tuple[int, int]:
    seen = space_of(recorded.observations)
    dataset, count, steps = None, 0, 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of what Minari would like to know besides
        for episode in episodes:
            if len(episode["reward"]) < 2:
                continue
            buffer = _buffer(minari, episode, recorded, seen)
            if dataset is None:
                dataset = minari.create_dataset_from_buffers(
                    name,
                    [buffer],
                    env=_spec(env_id),
                    observation_space=seen,
                    action_space=recorded.native,
                    algorithm_name="DreamerV3",
                    jpeg_encoding=False,  # which would change what was seen
                )
            else:
                dataset.update_dataset_from_buffer([buffer])
            count, steps = count + 1, steps + len(episode["reward"]) - 1
    if not count:
        raise UserError(f"minari:{name} would be empty: no episode has a step")
    return count, steps


def _spec(env_id: str | None) -> Any:
    """How gymnasium makes the environment, where that can be written down."""
    if env_id is None:
        return None
    try:
        spec = gymnasium.spec(env_id)
        spec.to_json()
    except gymnasium.error.Error:  # of a package that was not imported
        return None
    except ValueError:  # it was registered with a class or function, not with the name of one
        return None
    return spec


def _buffer(minari: Any, episode: Episode, recorded: Spaces, seen: gymnasium.Space) -> Any:
    """An episode as Minari has it, see `episode_of`."""
    observations = {key: episode[f"observation.{key}"] for key in recorded.observations}
    actions = {key: episode[f"action.{key}"][:-1] for key in recorded.actions}
    alone = not isinstance(seen, spaces.Dict)
    terminal, last = episode["is_terminal"][1:], episode["is_last"][1:]
    return minari.data_collector.EpisodeBuffer(
        observations=next(iter(observations.values())) if alone else observations,
        actions=action_codec(recorded.native).convert(actions),
        rewards=episode["reward"][1:],
        terminations=terminal,
        truncations=last & ~terminal,
    )


def _minari() -> Any:
    try:
        import minari
    except ImportError as error:
        raise UserError(INSTALL) from error
    return minari


def _root() -> Path:
    """Where Minari keeps its datasets, which it makes."""
    from minari.storage.datasets_root_dir import get_dataset_path

    try:
        return Path(get_dataset_path())
    except OSError as error:
        raise UserError(
            f"Minari cannot make its folder {error.filename}: {error.strerror}; name another by "
            "MINARI_DATASETS_PATH=PATH"
        ) from error
