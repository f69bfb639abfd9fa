"""Loads the policy in this folder. `python load_policy.py` checks it against what it recorded.

Needs onnxruntime. policy.json tells shapes, types and how to call it.

Observations are those of the environment as the agent was trained in it, images resized to these
shapes. Actions of floats, clipped to [-1, 1], stand for the environment's own bounds, `low` to
`high` where policy.json knows them; classes count from 0, which is `start` to the environment.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime


def load(folder: Path) -> tuple[Any, dict[str, Any]]:
    """A function of inputs by name to outputs by name, and what policy.json says."""
    form = json.loads((folder / "policy.json").read_text())
    session = onnxruntime.InferenceSession(
        folder / "policy.onnx", providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return lambda inputs: dict(zip(names, session.run(names, inputs), strict=True)), form


if __name__ == "__main__":
    home = Path(__file__).resolve().parent
    policy, form = load(home)
    recorded = np.load(home / "recorded.npz")
    acts, wrong = ~recorded["is_last"], 0
    count = acts.shape[1]
    memory = {
        f"memory/{key}": np.zeros((count, *x["shape"]), x["dtype"])
        for key, x in form["memory"].items()
    }
    for step in range(len(acts)):
        names = (
            "is_first",
            *(key for key in recorded if key.startswith(("observation/", "noise/"))),
        )
        out = policy(memory | {name: recorded[name][step] for name in names})
        memory = {key: out[f"next/{key.removeprefix('memory/')}"] for key in memory}
        for key in form["action"]:
            there = np.abs(out[f"action/{key}"].astype(float) - recorded[f"action/{key}"][step])
            wrong += int((there[acts[step]] > form["tolerance"]).sum())
    print(f"{wrong} of the actions in {acts.sum()} steps differ from those of the agent")
    sys.exit(wrong > 0)
