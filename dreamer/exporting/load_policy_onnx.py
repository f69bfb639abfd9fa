"""Loads the policy in this folder. `python load_policy.py` checks it against recorded actions.

Needs onnxruntime. policy.json has shapes, types and the signature.

Observations are those of the training environment, images resized to these shapes. Float actions
are clipped to [-1, 1], and map linearly to the bounds of the environment, `low` to `high` in
policy.json if known. Classes count from 0, which is `start` in the environment.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime


def load(folder: Path) -> tuple[Any, dict[str, Any]]:
    """A function of inputs by name to outputs by name, and the content of policy.json."""
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
    memory = {
        f"memory/{key}": np.zeros((acts.shape[1], *x["shape"]), x["dtype"])
        for key, x in form["memory"].items()
    }
    names = [x for x in recorded if x == "is_first" or x.startswith(("observation/", "noise/"))]
    for step in range(len(acts)):
        out = policy(memory | {name: recorded[name][step] for name in names})
        memory = {key: out[f"next/{key.removeprefix('memory/')}"] for key in memory}
        for key in form["action"]:
            error = np.abs(out[f"action/{key}"].astype(float) - recorded[f"action/{key}"][step])
            wrong += int((error[acts[step]] > form["tolerance"]).sum())
    print(f"{wrong} of the actions in {acts.sum()} steps differ from those of the agent")
    sys.exit(wrong > 0)
