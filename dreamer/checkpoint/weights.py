"""Weights of another run, whole or network by network."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dreamer.checkpoint import finding, paths, storage
from dreamer.errors import UserError


def load(source: str, modules: Sequence[str], params: Any) -> dict[str, Any]:
    """Parameters of which some come from a checkpoint.

    Args:
      source: a run's folder, that of its checkpoints, of which the newest is meant, or that of one.
      modules: networks that come from there; none named is all.
      params: those of this run, for everything else and to compare shapes with.

    Raises:
      UserError: no checkpoint, one that is damaged, a network that is not there, or one of
        another shape.
    """
    path = find(source, "run.init_from")
    chosen = {name: _part(name, params, source) for name in modules or params}
    about = storage.read(path)
    _compare(source, about.structure, chosen)
    storage.check(path, about, "state/")
    pattern = {"params": jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), chosen)}
    restored = storage.read_arrays(path, "state", pattern, partial=True)
    # Copies, in memory of the device alone: an update takes it.
    return jax.tree.map(jnp.array, {**params, **restored["params"]})


def find(source: str, key: str) -> Path:
    """The folder of the checkpoint that is meant by an option.

    Raises:
      UserError: there is none.
    """
    found = finding.checkpoint(paths.expand(source, key).absolute())
    if found is None:
        raise UserError(
            f"{key}={source} holds no checkpoint; name the folder of a run that saved one, "
            "or of one checkpoint"
        )
    return found


def _part(name: str, params: Any, source: str) -> Any:
    if name not in params:
        raise UserError(
            f"run.init_modules names {name}, a network that this run does not have; "
            f"it has {', '.join(params)}"
        )
    return params[name]


def _compare(source: str, saved: dict[str, str], chosen: dict[str, Any]) -> None:
    """Refuses the first tensor that is another one there."""
    unlike = {name: _difference(name, saved, part) for name, part in chosen.items()}
    fitting = ",".join(name for name, difference in unlike.items() if not difference)
    for name, difference in unlike.items():
        if difference:
            advice = (
                f"take those that fit, run.init_modules=[{fitting}]" if fitting else "train anew"
            )
            raise UserError(
                f"run.init_from={source}: {name} does not fit: {difference}; give this run the "
                f"sizes and spaces of that one, or {advice}"
            )


def _difference(name: str, saved: dict[str, str], part: Any) -> str:
    """The first tensor of a network that is another one there, or ''."""
    inside = f".params[{name!r}]"
    leaves = jax.tree_util.tree_leaves_with_path(part)
    here = {jax.tree_util.keystr(path): f"{x.dtype}{list(x.shape)}" for path, x in leaves}
    there = {
        key.removeprefix(inside): text for key, text in saved.items() if key.startswith(inside)
    }
    for key in [*here, *there]:
        got, expected = there.get(key, "missing"), here.get(key, "missing")
        if got != expected:
            words = ".".join(re.findall(r"'([^']*)'", key))
            return f"{words} is {got} there and {expected} here"
    return ""
