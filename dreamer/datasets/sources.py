"""Sources of recorded episodes: a Minari dataset, a folder of saved episodes, a run's replay."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dreamer.agents import agent_spaces
from dreamer.checkpoint import arrays, folder, integrity, loading, paths, storage
from dreamer.config import Config, serialization
from dreamer.config.env import Env
from dreamer.config.explain import validate
from dreamer.datasets import minari_data, recorded
from dreamer.datasets.recorded import ENV, Episode, Recording, Spaces
from dreamer.envs import registry
from dreamer.errors import UserError, describe
from dreamer.replay import host, tree
from dreamer.system import files

MINARI = "minari:"


def open_recording(source: str, key: str, spaces: Spaces) -> Recording:
    """The episodes of `minari:DATASET_ID`, of a folder of them, or of the replay of a run.

    Args:
      source: as the user named it.
      key: of the option that names it, for messages.
      spaces: what the episodes have to fit.

    Raises:
      UserError: there are none, or they are from another environment.
    """
    if source.startswith(MINARI):
        return minari_data.open_dataset(source.removeprefix(MINARI), spaces)
    path = paths.expand(source, key)
    if folder.saved_config(path) is None:
        return recorded.open_folder(path, spaces)
    return _open_replay(source, key, spaces)


def saved_spaces_of(source: str, key: str, env_config: Env) -> Spaces:
    """The spaces that were saved with the episodes of a folder, or with the replay of a run.

    Raises:
      UserError: they cannot be read.
    """
    path = paths.expand(source, key)
    if folder.saved_config(path) is None:
        return recorded.read_spaces(path, env_config.name)
    meta = storage.read(loading.required(source, key)).meta
    observations, actions = agent_spaces.load(meta["spaces"])
    native = native_actions(meta["spaces"], actions)
    return Spaces(env_config.name, observations, actions, native or recorded.space_of(actions))


def native_actions(saved: dict[str, Any], actions: Any) -> Any:
    """The environment's own action space as a checkpoint has it; None if it has none.

    Raises:
      UserError: it does not fit the actions.
    """
    try:
        return recorded.load_native(saved.get("native"), actions)
    except ValueError as error:
        raise UserError(f"the action space of the checkpoint is invalid: {error}") from None


def spaces_of(env_config: Env, seed: int = 0, observations: Any = None) -> Spaces:
    """The spaces of an environment, which is made and closed; with these observations, if given."""
    with contextlib.closing(registry.make(env_config, 1, seed)) as env:
        return recorded.spaces_of(env, env_config.name, observations)


def env_of(source: str, key: str) -> Env:
    """The environment whose episodes a folder holds.

    Raises:
      UserError: the folder does not name it.
    """
    path = paths.expand(source, key)
    if (config := folder.config(path)) is not None:
        return config.env
    try:
        text = files.read(path / ENV, serialization.MOST).decode()
        return validate(Config, {"env": serialization.read_yaml(text, "it")}).env
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{key}={source} has no {ENV} that names its environment; name it, as in "
            "env.task=CartPole-v1"
        ) from None
    except (OSError, UnicodeDecodeError, UserError) as error:
        raise UserError(f"{path / ENV} cannot be used: {describe(error)}") from None


def first_rows(home: Path, observations: Any, actions: Any, count: int) -> list[Episode]:
    """The first rows of every ring in a checkpoint, about `count` of all rings together.

    Nothing else is read. Fewer rows if there are no more; no rings if no replay was saved.

    Raises:
      UserError: they cannot be read, or do not fit these specs.
    """
    if not (home / "replay").is_dir():
        return []
    with integrity.reading(home):
        rings, counters = _read_replay(home, count)
        rows, num_envs = int(counters["steps"][0]), len(rings["is_first"])
    spaces = Spaces("of the agent", observations, actions, recorded.space_of(actions))
    parts = [{name: ring[i, :rows] for name, ring in rings.items()} for i in range(num_envs)]
    return [
        recorded.checked(f"{home}/replay, ring {i}", part, spaces)
        for i, part in enumerate(parts)
        if rows
    ]


def _open_replay(source: str, key: str, spaces: Spaces) -> Recording:
    """The episodes, or parts of them, in the replay of the newest checkpoint of a run."""
    home = loading.required(source, key)
    storage.check(home, storage.read(home), "replay/")
    with integrity.reading(home):
        rings, saved = _read_replay(home)
        counters = host.counters_of({"counters": saved, "rings": rings})
        parts = []
        for number, firsts in enumerate(rings["is_first"]):
            rows = np.arange(counters["oldest"], counters["steps"]) % len(firsts)
            episodes = np.split(rows, np.flatnonzero(firsts[rows]))
            parts += [(number, part) for part in episodes if len(part)]

    def read() -> Iterator[Episode]:
        for count, (number, rows) in enumerate(parts):
            episode = {name: ring[number, rows] for name, ring in rings.items()}
            yield recorded.checked(f"{source}, episode {count}", episode, spaces)

    return Recording(f"the replay of {source}", [len(rows) for _, rows in parts], read)


def _read_replay(home: Path, count: int | None = None) -> tuple[Episode, dict[str, Any]]:
    """The rings of a checkpoint by name, without latents, which are the larger part; and the
    counters."""

    def select(stored: Any) -> Any:
        replay = stored["replay"]
        rings = {key: ring for key, ring in replay["rings"].items() if key != "latent"}
        return {"replay": {"rings": rings, "counters": replay["counters"]}}

    found = arrays.read(home / "replay", select, count)["replay"]
    rings = {tree.name(path): ring for path, ring in tree.flatten(found["rings"]).items()}
    return rings, found["counters"]
