"""Where recorded episodes come from: a Minari dataset, a folder of saved ones, a run's replay."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from dreamer import compose, files
from dreamer.config import Config
from dreamer.config.env import Env
from dreamer.envs import minari_data, recorded, registry
from dreamer.envs.recorded import ENV, Episode, Recording, Spaces
from dreamer.errors import UserError, describe
from dreamer.explain import validate
from dreamer.replay import host, tree
from dreamer.run import checkpoint, folder, paths, weights

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
        return compose.from_yaml(saved, str(path / folder.CONFIG)).env
    try:
        text = files.read(path / ENV, folder.MOST).decode()
        section = compose.read_yaml(text, str(path / ENV))
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
    checkpoint.check(home, checkpoint.read(home), "replay/")
    path = home / "replay"
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            arguments = ocp.args.PyTreeRestore(**_without_latents(reader.metadata(path)))
            saved = reader.restore(path, args=arguments)["replay"]
        counters = host.counters_of(saved)
        rings = {tree.name(path): ring for path, ring in tree.flatten(saved["rings"]).items()}
        firsts_of_all = rings["is_first"]
    except Exception as error:  # of as many kinds as there are libraries below
        reason = str(error) if isinstance(error, UserError) else describe(error)[:300]
        raise UserError(f"{key}={source}: {path} cannot be read: {reason}") from error
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


def _episodes(firsts: np.ndarray, rows: np.ndarray) -> list[np.ndarray]:
    """Cuts consecutive rows of a ring where episodes start."""
    starts = np.flatnonzero(firsts[rows])
    return [part for part in np.split(rows, starts) if len(part)]


def _without_latents(metadata: Any) -> dict[str, Any]:
    """How orbax is told to leave out the larger part of what is saved with a replay."""
    if metadata.item_metadata is None:
        raise ValueError("it is not there, or incomplete")
    saved = metadata.item_metadata.tree["replay"]
    rings = {name: part for name, part in saved["rings"].items() if name != "latent"}
    wanted = {"replay": {"rings": rings, "counters": saved["counters"]}}
    checkpoint.refuse_huge(wanted)
    target = jax.tree.map(lambda x: np.zeros(0, x.dtype), wanted)
    kinds = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), target)
    return {"item": target, "restore_args": kinds, "partial_restore": True}
