"""Reads an agent from the folder of a run, or from a checkpoint that was copied elsewhere.

Nothing but numbers and text is read: no environment is made, and none that the files name can be
made later without the user's word, see `trust`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from dreamer.agents import agent_spaces
from dreamer.agents.interface import Agent
from dreamer.agents.registry import make_agent
from dreamer.checkpoint import finding, folder, paths, storage
from dreamer.config import Config, serialization, trust
from dreamer.config.env import Env
from dreamer.errors import UserError


@dataclass(frozen=True, repr=False)
class Saved:
    """An agent and what it learned."""

    folder: Path  # that of config.yaml
    config: Config
    agent: Agent
    params: Any  # on the first device
    step: int  # environment steps of training
    checkpoint: Path
    spaces: dict[str, Any]  # as the checkpoint has them


def load(
    path: str | Path, which: str = "newest", word: bool = False, named: Env | None = None
) -> Saved:
    """Reads an agent, its parameters alone: neither optimiser nor replay.

    Args:
      path: a run folder; or a folder of checkpoints, or one checkpoint, with config.yaml in it or
        above it.
      which: newest or best checkpoint, where there are several.
      word: whether the user trusts the run, so that the environment that it names may run code.
      named: the environment that the user named beside the run, which must be that of the run.

    Raises:
      UserError: there is no run or checkpoint, or one that cannot be read, or its environment is
        not the one named.
    """
    if which not in ("newest", "best"):
        raise UserError(f"which={which}: expected newest or best")
    path = paths.expand(str(path), "run").absolute()
    if not path.is_dir():
        raise UserError(f"{path} is not a folder; name the folder of a training run")
    home = finding.home(path)
    if home is None:
        raise UserError(
            f"{path} is not the folder of a run: it has no config.yaml of one; name a run folder, "
            "or a checkpoint with the config.yaml of its run beside it"
        )
    config = serialization.from_yaml(folder.saved_config(home) or "", str(home / folder.CONFIG))
    if named is not None and trust.named_as(named) != trust.named_as(config.env):
        other = " with other env.kwargs" if named.name == config.env.name else ""
        raise UserError(
            f"env={named.name}: {home} is a run in {config.env.name}{other}; name what it has, or "
            "leave it out"
        )
    if word:
        trust.allow(config.env)
    found = finding.checkpoint(path, which)
    if found is None:
        raise UserError(
            f"no {which} checkpoint in {path}; train first, with eval.every set if the best is "
            "wanted"
        )
    meta = storage.read(found).meta
    agent = make_agent(config.agent, *agent_spaces.load(meta["spaces"]))
    pattern = jax.eval_shape(agent.init, jax.random.key(0)).params
    params = storage.read_params(found, pattern)
    step = meta.get("step", meta["learner"]["updates"]) * meta["hosts"]  # offline: updates
    return Saved(home, config, agent, params, step, found, meta["spaces"])
