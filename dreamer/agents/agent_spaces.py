"""Spaces of an agent: saved with its weights and compared with those of an environment."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from dm_env import specs

from dreamer.agents.interface import Agent
from dreamer.errors import UserError
from dreamer.nets import spaces
from dreamer.nets.spaces import Spec, Specs

WHOLE = {np.dtype(np.uint8): 255, np.dtype(bool): 1}  # highest values of images and masks


def dump(agent: Agent) -> dict[str, Any]:
    """Observations and actions of an agent by key, as JSON types, in the order of channels."""
    parts = {"observations": agent.observations, "actions": agent.actions}
    return {name: {key: _form(spec) for key, spec in part.items()} for name, part in parts.items()}


def load(saved: Mapping[str, Any]) -> tuple[dict[str, Spec], dict[str, Spec]]:
    """Observations and actions from a result of `dump`; bounds of floats are not kept."""
    observations, actions = (
        {key: _spec(key, form) for key, form in saved[name].items()}
        for name in ("observations", "actions")
    )
    return observations, actions


def check(agent: Agent, observations: Specs, actions: Specs, whole: bool = False) -> None:
    """Refuses an environment whose spaces differ from the agent's; it may have more observations.

    Args:
      agent: networks.
      observations, actions: of the environment, by key.
      whole: whether observations that are only predicted are required too.

    Raises:
      UserError: names the first key that is missing or differs.
    """
    needed = agent.observations if whole else agent.seen
    for what, expected, found in (
        ("observation", needed, observations),
        ("action", agent.actions, actions),
    ):
        more = sorted(found.keys() - expected.keys()) if what == "action" else []
        for key in (*expected, *more):
            wanted, got = (_describe(key, part) for part in (expected, found))
            if wanted != got:
                raise UserError(
                    f"{what} {key!r}: the agent expects {wanted}, but the environment has {got}; "
                    "use the environment that the agent was trained in"
                )


def _describe(key: str, part: Specs) -> str:
    return describe(part[key]) if key in part else f"none, only {', '.join(sorted(part))}"


def describe(spec: Spec) -> str:
    """A spec in words, such as `uint8 (64, 64, 3)` or `int32 () of 18 classes`."""
    form = _form(spec)
    count = f" of {form['classes']} classes" if "classes" in form else ""
    return f"{form['dtype']} {tuple(form['shape'])}{count}"


def _form(spec: Spec) -> dict[str, Any]:
    form: dict[str, Any] = {"shape": list(spec.shape), "dtype": np.dtype(spec.dtype).name}
    if spaces.kind(spec) == "discrete":
        form["classes"] = spaces.classes(spec)
    return form


def _spec(key: str, form: Mapping[str, Any]) -> Spec:
    shape, dtype = tuple(form["shape"]), np.dtype(form["dtype"])
    if "classes" in form:
        return specs.BoundedArray(shape, dtype, 0, form["classes"] - 1, key)
    if dtype in WHOLE:
        return specs.BoundedArray(shape, dtype, 0, WHOLE[dtype], key)
    return specs.Array(shape, dtype, key)
