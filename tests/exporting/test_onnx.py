"""The policy in ONNX acts as its agent in onnxruntime."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dreamer.errors import UserError
from dreamer.exporting import folder
from tests.api import agents
from tests.exporting.test_folder import options, rows


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"format=onnx needs .* pip install 'dreamer\[onnx\]'"):
        folder.export(agents.agent(), rows(1, 2), tmp_path / "a", options(format="onnx"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("greedy", [True, False])
def test_actions_are_those_of_the_agent(greedy: bool, tmp_path: Path) -> None:
    pytest.importorskip("jax2onnx")
    pytest.importorskip("onnxruntime")
    out, chosen = tmp_path / "policy", options(format="onnx", num_envs=4, greedy=greedy)
    folder.export(agents.agent(), rows(4, 250), out, chosen)
    form: dict[str, Any] = json.loads((out / "policy.json").read_text())
    kinds = {key: x["distribution"].split()[1] for key, x in form["noise"].items()}
    actions = {} if greedy else {"action": "gumbel", "pair": "gumbel", "push": "normal"}
    assert kinds == {"latent": "gumbel", **actions}
    code = (
        "import runpy, sys; sys.modules['jax'] = sys.modules['dreamer'] = None; "
        f"runpy.run_path({str(out / 'load_policy.py')!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    steps = int((~np.load(out / "recorded.npz")["is_last"]).sum())
    assert done.stdout == f"0 of the actions in {steps} steps differ from those of the agent\n"
