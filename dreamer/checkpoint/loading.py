"""Reads an agent, or weights, from the folder of a run or a copy of its checkpoints.

Only numbers and text are read: no environment is made, and none that the files name can be made
later without the user's permission, see `trust`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dreamer.agents import agent_spaces
from dreamer.agents.interface import Agent
from dreamer.agents.registry import make_agent
from dreamer.checkpoint import arrays, folder, manager, paths, storage
from dreamer.config import Config, trust
from dreamer.config.env import Env
from dreamer.errors import UserError


@dataclass(frozen=True, repr=False)
class Saved:
    """An agent and what it has learned."""

    folder: Path  # with config.yaml
    config: Config
    agent: Agent
    params: Any  # on the first device
    step: int  # environment steps of training
    checkpoint: Path
    spaces: dict[str, Any]  # in the form of the checkpoint


def load(
    path: str | Path, which: str = "newest", trusted: bool = False, named: Env | None = None
) -> Saved:
    """Reads an agent with its parameters; neither optimizer nor replay.

    Args:
      path: a run folder; or a folder of checkpoints, or one checkpoint, with config.yaml in it or
        above it.
      which: newest or best checkpoint, where there are several.
      trusted: whether the user trusts the run, so that its environment may run code.
      named: the environment that the user named beside the run; must be that of the run.

    Raises:
      UserError: there is no run or checkpoint, it cannot be read, or its environment is another.
    """
    if which not in ("newest", "best"):
        raise UserError(f"which={which}: expected newest or best")
    path = paths.expand(str(path), "run").absolute()
    if not path.is_dir():
        raise UserError(f"{path} is not a folder; name the folder of a training run")
    found = _run_of(path)
    if found is None:
        raise UserError(
            f"{path} is not the folder of a run: it has no config.yaml of one; name a run folder, "
            "or a checkpoint with the config.yaml of its run beside it"
        )
    home, config = found
    if named is not None and trust.named_as(named) != trust.named_as(config.env):
        other = " with other env.kwargs" if named.name == config.env.name else ""
        raise UserError(
            f"env={named.name}: the run in {home} has {config.env.name}{other}; name the same, or "
            "leave it out"
        )
    if trusted:
        trust.allow(config.env)
    checkpoint = find(path, which)
    if checkpoint is None:
        raise UserError(
            f"no {which} checkpoint in {path}; train first, with eval.every set for a best one"
        )
    meta = storage.read(checkpoint).meta
    agent = make_agent(config.agent, *agent_spaces.load(meta["spaces"]), config.updates)
    pattern = jax.eval_shape(agent.init, jax.random.key(0)).params
    params = storage.read_params(checkpoint, pattern)
    step = meta.get("step", meta["learner"]["updates"]) * meta["hosts"]  # offline: updates
    return Saved(home, config, agent, params, step, checkpoint, meta["spaces"])


def load_weights(source: str, modules: Sequence[str], params: Any) -> dict[str, Any]:
    """Parameters of a new run, some or all of them taken from a checkpoint.

    Args:
      source: the folder of a run, or of its checkpoints, the newest of which is read; or of one.
      modules: networks to take from there; all if empty.
      params: the parameters of this run: all others, and the shapes to compare with.

    Raises:
      UserError: there is no checkpoint, it is damaged, or a network is missing or has other shapes.
    """
    path = required(source, "run.init_from")
    for name in modules:
        if name not in params:
            raise UserError(
                f"run.init_modules names {name}, a network that this run does not have; "
                f"it has {', '.join(params)}"
            )
    chosen = {name: params[name] for name in modules or params}
    about = storage.read(path)
    _refuse_other_networks(source, about.structure, chosen)
    pattern = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), chosen)
    # Copied into memory of the device, for an update donates it.
    return jax.tree.map(jnp.array, {**params, **storage.read_networks(path, pattern, about)})


def _refuse_other_networks(source: str, saved: dict[str, str], chosen: dict[str, Any]) -> None:
    """Refuses the first network that differs, and lists those that fit."""
    found = {}
    for name, part in chosen.items():
        inside = f".params[{name!r}]"
        there = {k.removeprefix(inside): v for k, v in saved.items() if k.startswith(inside)}
        found[name] = arrays.difference(there, arrays.structure(part))
    fitting = ",".join(name for name, text in found.items() if not text)
    advice = f"take those that fit, run.init_modules=[{fitting}]" if fitting else "start fresh"
    for name, text in found.items():
        if text:
            key, _, rest = text.partition(" ")
            key = ".".join(re.findall(r"'([^']*)'", key))
            raise UserError(
                f"run.init_from={source}: {name} does not fit: {key} {rest}; give this run the "
                f"same sizes and spaces, or {advice}"
            )


def required(source: str, key: str) -> Path:
    """The folder of the newest checkpoint that an option names.

    Raises:
      UserError: there is none.
    """
    found = find(paths.expand(source, key).absolute())
    if found is None:
        raise UserError(
            f"{key}={source} holds no checkpoint; name the folder of a run that saved one, "
            "or of one checkpoint"
        )
    return found


def find(path: Path, which: str = "newest") -> Path | None:
    """The folder of a checkpoint, or None.

    Args:
      path: absolute; of one checkpoint, of several, or of a run.
      which: newest or best, where there are several.

    Raises:
      UserError: the run's configuration cannot be read.
    """
    if _is_checkpoint(path):
        return path
    # Checkpoints inside take precedence over `checkpoint.dir`: they were copied there.
    places = [place for place in (path, path / paths.CHECKPOINTS) if _holds_checkpoints(place)]
    if not places:
        config = folder.config(path)
        if config is None or not config.checkpoint.dir:
            return None
        places = [paths.checkpoint_folder(config)]
    step = (manager.best if which == "best" else manager.newest)(places[0])
    return None if step is None else places[0] / str(step)


def _run_of(path: Path) -> tuple[Path, Config] | None:
    """The folder of config.yaml and what it says: this folder, or one above if this one holds
    checkpoints."""
    places = [path]
    if _is_checkpoint(path):
        places += [path.parent, path.parent.parent]
    elif _holds_checkpoints(path):
        places.append(path.parent)
    for place in places:
        if (config := folder.config(place)) is not None:
            return place, config
    return None


def _is_checkpoint(path: Path) -> bool:
    return (path / "state").is_dir() or (path / storage.DOCUMENT).is_file()


def _holds_checkpoints(path: Path) -> bool:
    return any(_is_checkpoint(path / str(step)) for step in manager.steps(path))
