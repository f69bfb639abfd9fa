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
from dreamer.run import checkpoint, finding, folder, paths


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
    home = finding.home(path)
    if home is None:
        raise UserError(
            f"{path} is not the folder of a run: it has no config.yaml of one; name a run folder, "
            "or a checkpoint with the config.yaml of its run beside it"
        )
    config = compose.from_yaml(folder.saved_config(home) or "", str(home / folder.CONFIG))
    found = finding.checkpoint(path, which)
    if found is None:
        raise UserError(
            f"no {which} checkpoint in {path}; train first, with eval.every set if the best is "
            "wanted"
        )
    meta = checkpoint.read(found).meta
    agent = _agent(config, meta)
    pattern = jax.eval_shape(lambda: agents.init_params(agent, jax.random.key(0)))
    params = checkpoint.read_params(found, pattern)
    step = meta.get("step", meta["learner"]["updates"]) * meta.get("hosts", 1)  # offline: updates
    return Saved(home, config, agent, params, step)


def _agent(config: Config, meta: dict[str, Any]) -> Agent:
    """The networks for the spaces that the checkpoint tells of."""
    if "spaces" not in meta:
        raise UserError(
            "the checkpoint is older than the note of its spaces; resume its run once, by which it "
            "gets one"
        )
    return agents.make_agent(config.agent, *interface.load(meta["spaces"]))
