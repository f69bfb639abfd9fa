"""Writes an exported policy, verified against its agent, with a script to load and check it."""

import io
import json
import os
from pathlib import Path
from typing import Any

import dm_env
import jax
import numpy as np

from dreamer.agents import agent_spaces
from dreamer.api.agent import TrainedAgent
from dreamer.checkpoint import folder, loading, paths
from dreamer.config.env import Env
from dreamer.config.options import ExportOptions
from dreamer.datasets import sources
from dreamer.envs.base import FIRST, LAST, MID
from dreamer.envs.spaces import action_units
from dreamer.errors import UserError
from dreamer.exporting import observations, onnx, stablehlo
from dreamer.exporting.function import Exported, PolicyFunction, forms
from dreamer.system import files

SOURCE = Path(__file__).parent


def export_run(options: ExportOptions, named: Env | None = None) -> None:
    """Exports the policy of a run folder, and prints how to check it.

    Args:
      options: of the command.
      named: the environment that the user named beside the run, see `loading.load`.

    Raises:
      UserError: no run, no checkpoint, or as `export`.
    """
    saved = loading.load(options.run, options.checkpoint, options.trust, named)
    agent = TrainedAgent(saved.config, saved.agent, saved.params, saved.step)
    default = saved.folder / f"policy-{agent.step}"
    out = paths.expand(options.out, "out") if options.out else default
    check(out)
    num_envs = options.num_envs or {"stablehlo": 4, "onnx": 1}[options.format]
    rows, origin = observations.choose(saved, num_envs, options.steps, options.seed)
    native = sources.native_actions(saved.spaces, agent.networks.actions)
    export(agent, rows, out, options, native)
    size = sum(file.stat().st_size for file in out.iterdir())
    count = rows["is_first"].size
    print(f"written to {out}: {size / 1e6:,.1f} MB")
    print(f"it acts as the agent of step {agent.step:,} does on {count:,} {origin} observations")
    print(f"python {out / 'load_policy.py'} checks it again, without dreamer")


def export(
    agent: TrainedAgent, rows: dict[str, Any], out: Path, options: ExportOptions, native: Any = None
) -> None:
    """Converts a policy, compares it with its agent on given observations, and writes a folder.

    Args:
      agent: to export.
      rows: observation by key, is_first, is_last: leaves [N, T, ...].
      out: new folder.
      options: of the export.
      native: gymnasium's action space in its own units, or None.

    Raises:
      UserError: the folder exists or cannot be written, a package is missing, or the exported
        policy does not act as the agent does.
    """
    check(out)
    function = PolicyFunction(agent.networks, agent.params, options.greedy)
    if options.format == "onnx":
        made = onnx.convert(function, len(rows["is_first"]))
    else:
        made = stablehlo.convert(function, options.num_envs, options.platforms.split(","))
    by_time = {key: rows[key] for key in ("observation", "is_first", "is_last")}
    by_time = jax.tree.map(lambda x: np.swapaxes(x, 0, 1), by_time)
    ours, theirs = _actions(agent, made, function, by_time, options.greedy)
    tolerance = 1e-4 if agent.networks.dtype == np.float32 else 2e-2  # of numbers
    _compare(ours, theirs, ~by_time["is_last"], tolerance)
    units = action_units(native) if native is not None else {}
    form = _form(agent, function, options, made, units) | {"tolerance": tolerance}
    seen = by_time.pop("observation")
    recorded = {f"observation/{key}": seen[key] for key in function.observation}
    recorded |= {f"action/{key}": x for key, x in ours.items()}
    _write(out, made, form, by_time | recorded | made.draws(len(by_time["is_first"])))


def check(out: Path) -> None:
    """Refuses a folder that exists or cannot be written; leaves no trace.

    Raises:
      UserError: saying which.
    """
    if os.path.lexists(out):
        raise UserError(f"out={out} already exists; name a new folder, or delete it first")
    files.check_writable(out)


def _actions(
    agent: TrainedAgent,
    made: Exported,
    function: PolicyFunction,
    rows: dict[str, Any],
    greedy: bool,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Actions of the agent and of the exported policy on the same observations [T, N, ...]."""
    steps, num_envs = rows["is_first"].shape
    policy = agent.bare_policy(num_envs, greedy)
    policy.reset(jax.random.key(0))
    memory = {key: np.zeros((num_envs, *x.shape), x.dtype) for key, x in function.memory.items()}
    ours, theirs = [], []
    for step in range(steps):
        now = jax.tree.map(lambda x, step=step: x[step], rows)
        kind = np.where(now["is_first"], FIRST, np.where(now["is_last"], LAST, MID))
        time_step = dm_env.TimeStep(kind, None, None, now["observation"])
        ours.append(policy(agent.params, time_step, step)[0])
        seen = {key: now["observation"][key] for key in function.observation}
        memory, action = made.act(memory, seen, now["is_first"], np.uint32(step))
        theirs.append(action)
    one, other = (jax.tree.map(lambda *x: np.stack(x), *actions) for actions in (ours, theirs))
    return one, other


def _compare(
    ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray], acts: np.ndarray, tolerance: float
) -> None:
    """Refuses an exported policy whose actions [T, N, ...] differ from those of the agent.

    Raises:
      UserError: they differ where `acts` [T, N] is True.
    """
    wrong: list[tuple[int, int, str]] = []
    for key, expected in ours.items():
        differ = np.abs(theirs[key].astype(float) - expected.astype(float)) > tolerance
        found = np.argwhere(differ.reshape(*acts.shape, -1).any(-1) & acts)
        wrong += [(step, env, key) for step, env in found.tolist()]
    if wrong:
        step, env, key = min(wrong)
        raise UserError(
            f"the exported policy is not the agent: {len(wrong)} of its actions in {acts.sum()} "
            f"steps differ, the first is {key!r} at step {step} of environment {env}; nothing was "
            "written; export it on the platform on which it will run"
        )


def _form(
    agent: TrainedAgent,
    function: PolicyFunction,
    options: ExportOptions,
    made: Exported,
    units: dict[str, dict[str, Any]],
) -> dict[str, Any]:
    """The content of policy.json; `units` of actions are those of `action_units`, if known."""
    actions = agent_spaces.dump(agent.networks)["actions"]
    return {
        "format": options.format,
        "call": made.call,
        "num_envs": made.num_envs or "any",
        "greedy": options.greedy,
        "memory": forms(function.memory),
        "observation": forms(function.observation),
        "action": {key: form | units.get(key, {}) for key, form in actions.items()},
        **made.more,
        "task": agent.config.env.name,
        "step": agent.step,
        "environment": agent.config.env.model_dump(mode="json"),
        "versions": folder.versions(),
    }


def _write(out: Path, made: Exported, form: dict[str, Any], recorded: dict[str, Any]) -> None:
    """Writes the whole folder or nothing: a temporary one beside it, then renamed."""
    packed = io.BytesIO()
    np.savez_compressed(packed, **recorded)
    contents = {
        made.file: made.data,
        "policy.json": (json.dumps(form, indent=2) + "\n").encode(),
        "recorded.npz": packed.getvalue(),
        "load_policy.py": (SOURCE / made.loader).read_bytes(),
    }
    temporary = out.with_name(files.unguessable())
    with files.explaining_refusal(out), files.undone_on_failure(temporary):
        for name, data in contents.items():
            (temporary / name).write_bytes(data)
        temporary.rename(out)
