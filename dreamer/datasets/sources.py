"""Where recorded episodes come from: a Minari dataset, a folder of saved ones, a run's replay."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from dreamer.agents import agent_spaces
from dreamer.checkpoint import folder, paths, storage, weights
from dreamer.config import Config, serialization
from dreamer.config.env import Env
from dreamer.config.explain import validate
from dreamer.datasets import minari_data, recorded
from dreamer.datasets.recorded import ENV, Episode, Recording, Spaces
from dreamer.distributed import mesh
from dreamer.envs import registry, saved_spaces
from dreamer.errors import UserError, describe
from dreamer.replay import host, tree
from dreamer.system import files

MINARI = "minari:"


def open_recording(source: str, key: str, spaces: Spaces) -> Recording:
    """The episodes of `minari:DATASET_ID`, of a folder of them, or of the replay of a run.

    Args:
      source: as the user named it.
      key: with which option, for messages.
      spaces: those that the episodes are wanted for.

    Raises:
      UserError: they are not there, or those of another environment.
    """
    if source.startswith(MINARI):
        return minari_data.open_dataset(source.removeprefix(MINARI), spaces)
    path = paths.expand(source, key)
    if folder.saved_config(path) is not None:
        return _of_replay(source, key, spaces)
    return recorded.open_folder(path, spaces)


def saved_spaces_of(source: str, key: str, env_config: Env) -> Spaces:
    """The spaces of the episodes that a folder or the replay of a run holds, as they were saved.

    Raises:
      UserError: they cannot be read.
    """
    path = paths.expand(source, key)
    if folder.saved_config(path) is None:
        return recorded.read_spaces(path, env_config.name)
    meta = storage.read(weights.find(source, key)).meta
    observations, actions = agent_spaces.load(meta["spaces"])
    native = native_actions(meta["spaces"], actions)
    return Spaces(env_config.name, observations, actions, native or recorded.space_of(actions))


def native_actions(saved: Mapping[str, Any], actions: Any) -> Any:
    """The environment's own action space by a checkpoint, None where it has none.

    Raises:
      UserError: it does not fit the actions.
    """
    try:
        return recorded.fitting(saved_spaces.load_space(saved.get("native")), actions)
    except ValueError as error:
        raise UserError(f"the checkpoint has actions that cannot be: {error}") from None


def spaces_of(env_config: Env, seed: int = 0, observations: Any = None) -> Spaces:
    """The spaces of an environment, which is made for a moment; of observations those given."""
    env = registry.make(env_config, 1, seed)
    try:
        return recorded.spaces_of(env, env_config.name, observations)
    finally:
        env.close()


def env_of(source: str, key: str) -> Env:
    """The environment whose episodes a folder holds.

    Raises:
      UserError: the folder does not say.
    """
    path = paths.expand(source, key)
    saved = folder.saved_config(path)
    if saved is not None:
        return serialization.from_yaml(saved, str(path / folder.CONFIG)).env
    try:
        text = files.read(path / ENV, serialization.MOST).decode()
        section = serialization.read_yaml(text, str(path / ENV))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{key}={source} has no {ENV} that names its environment; say which it is, as in "
            "env.task=CartPole-v1"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path / ENV}: {describe(error)}") from None
    try:
        return validate(Config, {"env": section}).env
    except UserError as error:
        raise UserError(f"{path / ENV}: {error}") from None


def _of_replay(source: str, key: str, spaces: Spaces) -> Recording:
    """The episodes, or parts of them, that the newest checkpoint of a run has in its replay."""
    home = weights.find(source, key)
    storage.check(home, storage.read(home), "replay/")
    path = home / "replay"
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            saved = _restored(reader, path, _replay(reader.metadata(path)))
        counters = host.counters_of(saved)
        rings = {tree.name(path): ring for path, ring in tree.flatten(saved["rings"]).items()}
        firsts_of_all = rings["is_first"]
    except Exception as error:  # of as many kinds as there are libraries below
        raise _unreadable(f"{key}={source}", path, error) from error
    steps = np.arange(counters["oldest"], counters["steps"])
    parts = [
        (env, rows)
        for env, firsts in enumerate(firsts_of_all)
        for rows in _episodes(firsts, steps % len(firsts))
    ]

    def read() -> Iterator[Episode]:
        for number, (env, rows) in enumerate(parts):
            episode = {name: ring[env, rows] for name, ring in rings.items()}
            yield recorded.checked(f"{source}, episode {number}", episode, spaces)

    return Recording(f"the replay of {source}", [len(rows) for _, rows in parts], read)


def first_rows(home: Path, observations: Any, actions: Any, count: int) -> list[Episode]:
    """About so many rows, of all rings together, from where the rings of a checkpoint begin; the
    others are not read. All where there are fewer; none without a replay.

    Raises:
      UserError: they cannot be read, or do not fit these specs.
    """
    path = home / "replay"
    if not path.is_dir():
        return []
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            saved = _replay(reader.metadata(path))
            counters = _restored(reader, path, {"counters": saved["counters"]})["counters"]
            num_envs, capacity = saved["rings"]["is_first"].shape[:2]
            rows = min(-(-count // num_envs), capacity, int(counters["steps"][0]))  # rounded up
            if rows < 1:
                return []
            rings = _restored(reader, path, {"rings": saved["rings"]}, rows)["rings"]
    except Exception as error:  # of as many kinds as there are libraries below
        raise _unreadable(f"the checkpoint {home}", path, error) from error
    flat = {tree.name(key): ring for key, ring in tree.flatten(rings).items()}
    wanted = Spaces("of the agent", observations, actions, recorded.space_of(actions))
    parts = ({name: ring[env] for name, ring in flat.items()} for env in range(num_envs))
    return [recorded.checked(f"{path}, ring {i}", part, wanted) for i, part in enumerate(parts)]


def _episodes(firsts: np.ndarray, rows: np.ndarray) -> list[np.ndarray]:
    """Cuts consecutive rows of a ring where episodes start."""
    starts = np.flatnonzero(firsts[rows])
    return [part for part in np.split(rows, starts) if len(part)]


def _replay(metadata: Any) -> dict[str, Any]:
    """What is saved of a replay without its latents, which are the larger part of it."""
    if metadata.item_metadata is None:
        raise ValueError("it is not there, or incomplete")
    saved = metadata.item_metadata.tree["replay"]
    rings = {name: part for name, part in saved["rings"].items() if name != "latent"}
    return {"rings": rings, "counters": saved["counters"]}


def _restored(reader: Any, path: Path, parts: Any, rows: int | None = None) -> Any:
    """Parts of a replay as numpy arrays; of rings [N, capacity, ...] the first rows, or all."""
    wanted = {"replay": parts}
    if rows is None:
        storage.refuse_huge(wanted)
    target = jax.tree.map(lambda x: np.zeros(0, x.dtype), wanted)

    def kind(saved: Any) -> ocp.RestoreArgs:
        if rows is None:
            return ocp.RestoreArgs(restore_type=np.ndarray)
        shape = (saved.shape[0], rows, *saved.shape[2:])
        sharding = mesh.first_device()
        return ocp.ArrayRestoreArgs(sharding=sharding, global_shape=shape, strict=False)

    how = {"item": target, "restore_args": jax.tree.map(kind, wanted), "partial_restore": True}
    return jax.device_get(reader.restore(path, args=ocp.args.PyTreeRestore(**how))["replay"])


def _unreadable(what: str, path: Path, error: Exception) -> UserError:
    reason = str(error) if isinstance(error, UserError) else describe(error)[:300]
    return UserError(f"{what}: {path} cannot be read: {reason}")
