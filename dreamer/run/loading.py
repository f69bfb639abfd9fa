"""Reads an agent from the folder of a run, or from a checkpoint that was copied elsewhere.

Nothing but numbers and text is read: no environment is made and no code of others runs.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from dreamer import compose
from dreamer.agent import agent as agents
from dreamer.agent import interface
from dreamer.agent.agent import Agent
from dreamer.config import Config
from dreamer.errors import UserError
from dreamer.run import checkpoint, checkpointer, folder, paths


@dataclass(frozen=True)
class Saved:
    """An agent and what it learned."""

    folder: Path  # that of config.yaml
    config: Config
    agent: Agent
    params: Any  # on the first device
    step: int  # environment steps of training


def load(path: str | Path, which: str = "newest") -> Saved:
    """Reads an agent, its parameters alone: neither optimiser nor replay.

    Args:
      path: a run folder; or a folder of checkpoints, or one checkpoint, with config.yaml in it or
        above it.
      which: newest or best checkpoint, where there are several.

    Raises:
      UserError: there is no run or checkpoint, or one that cannot be read.
    """
    if which not in ("newest", "best"):
        raise UserError(f"which={which}: expected newest or best")
    path = paths.expand(str(path), "run").absolute()
    if not path.is_dir():
        raise UserError(f"{path} is not a folder; name the folder of a training run")
    home = _home(path)
    config = compose.from_yaml(folder.saved_config(home) or "")
    found = path if _is_checkpoint(path) else _choose(path, home, config, which)
    meta = checkpoint.read(found).meta
    agent = _agent(config, meta)
    pattern = jax.eval_shape(lambda: agents.init_params(agent, jax.random.key(0)))
    params = checkpoint.read_params(found, pattern)
    return Saved(home, config, agent, params, int(meta["step"]))


def _home(path: Path) -> Path:
    """The folder of config.yaml: this one, or for checkpoints one above it."""
    places = [path]
    if _is_checkpoint(path):
        places += [path.parent, path.parent.parent]
    elif _numbered(path):
        places.append(path.parent)
    for place in places:
        if folder.saved_config(place) is not None:
            return place
    raise UserError(
        f"{path} is not the folder of a run: it has no config.yaml of one; name a run folder, or a "
        "checkpoint with the config.yaml of its run beside it"
    )


def _choose(path: Path, home: Path, config: Config, which: str) -> Path:
    """The newest or best checkpoint of a folder."""
    inside = path / "checkpoints"
    here = next((place for place in (path, inside) if _numbered(place)), None)
    run = config.run.model_copy(update={"dir": str(home)})
    directory = here or paths.checkpoint_folder(config.model_copy(update={"run": run}))
    choose = checkpointer.best if which == "best" else checkpointer.newest
    step = choose(directory)
    if step is None:
        raise UserError(
            f"no {which} checkpoint in {directory}; train first, with eval.every set if the best "
            "is wanted"
        )
    return directory / str(step)


def _is_checkpoint(path: Path) -> bool:
    return (path / "state").is_dir()


def _numbered(path: Path) -> bool:
    """Whether there are checkpoints directly in a folder."""
    return any(place.name.isdigit() and _is_checkpoint(place) for place in path.glob("*"))


def _agent(config: Config, meta: dict[str, Any]) -> Agent:
    """The networks for the spaces that the checkpoint tells of."""
    if "spaces" not in meta:
        raise UserError(
            "the checkpoint is older than the note of its spaces; resume its run once, by which it "
            "gets one"
        )
    return agents.make_agent(config.agent, *interface.load(meta["spaces"]))
