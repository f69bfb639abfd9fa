"""Writes an exported policy with what it takes to load and check it, if it acts as the agent."""

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from dreamer.agents import agent_spaces
from dreamer.api.agent import TrainedAgent
from dreamer.checkpoint import folder
from dreamer.config import ExportOptions
from dreamer.envs.base import BatchedEnv
from dreamer.envs.spaces import action_units
from dreamer.errors import UserError
from dreamer.exporting import onnx, stablehlo
from dreamer.exporting.function import Exported, PolicyFunction, zeros
from dreamer.logs import summary
from dreamer.system import files

SOURCE = Path(__file__).parent


def recorded_envs(options: ExportOptions) -> int:
    """The number of environments to record the agent in."""
    return options.num_envs or {"stablehlo": 4, "onnx": 1}[options.format]


def export(agent: TrainedAgent, env: BatchedEnv, out: Path, options: ExportOptions) -> int:
    """Records the agent in environments, compares the exported policy with it, and writes a folder.

    Args:
      agent: what is exported.
      env: environments to record it in.
      out: folder to make.
      options: how.

    Returns:
      The number of recorded observations.

    Raises:
      UserError: the folder is there already or cannot be made, a package is missing, or the
        exported policy does not act as the agent does.
    """
    check(out)
    function = PolicyFunction(agent.networks, agent.params, options.greedy)
    rows = agent.record(env, options.steps, options.greedy)
    if options.format == "onnx":
        made = onnx.convert(function, env.num_envs)
    else:
        made = stablehlo.convert(function, options.num_envs, options.platforms.split(","))
    tolerance = 1e-4 if agent.networks.dtype == np.float32 else 2e-2  # of numbers
    compare(made, function, rows, tolerance)
    native = getattr(env, "native_actions", None)
    units = action_units(native) if native is not None else {}
    described = _describe(agent, function, options, made, units) | {"tolerance": tolerance}
    _write(out, made, described, _recorded(made, function, rows))
    return int(rows["is_first"].size)


def check(out: Path) -> None:
    """Refuses a folder that is there or cannot be made; leaves no trace.

    Raises:
      UserError: saying which.
    """
    if os.path.lexists(out):
        raise UserError(f"out={out} is there already; name a new folder, or delete it first")
    summary.check(out)


def compare(
    made: Exported, function: PolicyFunction, rows: dict[str, Any], tolerance: float
) -> None:
    """Plays what was recorded to the exported policy.

    Raises:
      UserError: it acts otherwise than the agent did.
    """
    first, acts = rows["is_first"], ~rows["is_last"]
    memory, wrong = zeros(function.memory, len(first)), []
    for step in range(first.shape[1]):
        seen = {key: rows["observation"][key][:, step] for key in function.observation}
        memory, action = made.act(memory, seen, first[:, step], np.uint32(step))
        for key, expected in rows["action"].items():
            theirs, ours = np.asarray(action[key], float), expected[:, step].astype(float)
            differ = (np.abs(theirs - ours) > tolerance).reshape(len(ours), -1).any(1)
            wrong += [(step, env, key) for env in np.flatnonzero(differ & acts[:, step])]
    if wrong:
        step, env, key = wrong[0]
        raise UserError(
            f"the exported policy is not the agent: {len(wrong)} of its actions in {acts.sum()} "
            f"steps differ, the first is {key!r} at step {step} of environment {env}; nothing was "
            "written; export it on the platform that it is to run on"
        )


def _describe(
    agent: TrainedAgent,
    function: PolicyFunction,
    options: ExportOptions,
    made: Exported,
    units: dict[str, dict[str, Any]],
) -> dict[str, Any]:
    """What policy.json says; `units` of actions as `action_units` has them, as far as known."""

    def forms(part: dict[str, Any]) -> dict[str, Any]:
        return {key: {"shape": x.shape, "dtype": x.dtype.name} for key, x in part.items()}

    actions = agent_spaces.dump(agent.networks)["actions"]
    parts = {
        "memory": forms(function.memory),
        "observation": forms(function.observation),
        "action": {key: form | units.get(key, {}) for key, form in actions.items()},
    }
    return {
        "format": options.format,
        "call": made.call,
        "num_envs": made.num_envs or "any",
        "greedy": options.greedy,
        **parts,
        **made.more,
        "task": agent.config.env.name,
        "step": agent.step,
        "environment": agent.config.env.model_dump(mode="json"),
        "versions": folder.versions(),
    }


def _recorded(
    made: Exported, function: PolicyFunction, rows: dict[str, Any]
) -> dict[str, np.ndarray]:
    """What was seen and done, by time: [T, N, ...] by key."""
    found = {key: rows[key] for key in ("is_first", "is_last")}
    found |= {f"observation/{key}": rows["observation"][key] for key in function.observation}
    found |= {f"action/{key}": x for key, x in rows["action"].items()}
    steps, num_envs = rows["is_first"].shape[1], len(rows["is_first"])
    found = {key: np.swapaxes(x, 0, 1) for key, x in found.items()}
    return found | made.draws(steps, num_envs)


def _write(out: Path, made: Exported, described: dict[str, Any], recorded: dict[str, Any]) -> None:
    """The whole folder or nothing: into a temporary one beside it, then renamed."""
    packed = io.BytesIO()
    np.savez_compressed(packed, **recorded)
    contents = {
        made.file: made.data,
        "policy.json": (json.dumps(described, indent=2) + "\n").encode(),
        "recorded.npz": packed.getvalue(),
        "load_policy.py": (SOURCE / made.loader).read_bytes(),
    }
    temporary = out.with_name(files.unguessable())
    with summary.explaining_refusal(out), files.undone_on_failure(temporary):
        for name, data in contents.items():
            (temporary / name).write_bytes(data)
        temporary.rename(out)
