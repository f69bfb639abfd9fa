"""Loads the policy in this folder. `python load_policy.py` checks it against recorded actions.

Needs jax and flatbuffers. policy.json has shapes, types and the signature.

Observations are those of the training environment, images resized to these shapes. Float actions
are clipped to [-1, 1], and map linearly to the bounds of the environment, `low` to `high` in
policy.json if known. Classes count from 0, which is `start` in the environment.
"""

import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export


def load(folder: Path) -> tuple[Any, dict[str, Any], Any]:
    """The compiled policy, the content of policy.json, and a function of N to an initial memory."""
    form = json.loads((folder / "policy.json").read_text())
    call = export.deserialize(bytearray((folder / "policy.stablehlo").read_bytes())).call

    def start(num_envs: int) -> dict[str, np.ndarray]:
        return {k: np.zeros((num_envs, *x["shape"]), x["dtype"]) for k, x in form["memory"].items()}

    return jax.jit(call), form, start


if __name__ == "__main__":
    home = Path(__file__).resolve().parent
    policy, form, start = load(home)
    recorded = np.load(home / "recorded.npz")
    first, acts, wrong = recorded["is_first"], ~recorded["is_last"], 0
    memory = start(first.shape[1])
    for step in range(len(first)):
        observation = {key: recorded[f"observation/{key}"][step] for key in form["observation"]}
        memory, action = policy(memory, observation, first[step], np.uint32(step))
        for key, value in action.items():
            error = np.abs(np.asarray(value, float) - recorded[f"action/{key}"][step])
            wrong += int((error[acts[step]] > form["tolerance"]).sum())
    print(f"{wrong} of the actions in {acts.sum()} steps differ from those of the agent")
    sys.exit(wrong > 0)
