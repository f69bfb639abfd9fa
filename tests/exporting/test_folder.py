"""An exported policy acts as its agent, loads without this package, or is not written."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from dreamer.cli import export as command
from dreamer.cli.compose import compose
from dreamer.config.options import ExportOptions
from dreamer.errors import UserError
from dreamer.exporting import folder, load_policy
from dreamer.exporting.function import PolicyFunction
from tests import tiny_run
from tests.api import agents


def options(**changes: Any) -> ExportOptions:
    return ExportOptions(run="", **changes)


def rows(num_envs: int, steps: int) -> dict[str, Any]:
    """Observations to export `agents.agent()` on."""
    return agents.agent().record(agents.env(num_envs), steps)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: Any) -> Path:
    """Of actions of every kind, two of them masked, for any number of environments."""
    out = tmp_path_factory.mktemp("exported") / "policy"
    folder.export(agents.agent(), rows(4, 250), out, options(), agents.Choice.action_space)
    return out


def run_loader(out: Path) -> subprocess.CompletedProcess:
    """The script as on a machine without this package: it must not be found from there."""
    code = (
        "import runpy, sys; sys.modules['dreamer'] = None; "
        f"runpy.run_path({str(out / 'load_policy.py')!r}, run_name='__main__')"
    )
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=out
    )


def test_greedy_actions_are_those_of_the_agent_on_a_thousand_observations(exported: Path) -> None:
    done = run_loader(exported)
    assert done.returncode == 0, done.stderr
    recorded = np.load(exported / "recorded.npz")
    steps = int((~recorded["is_last"]).sum())
    assert recorded["is_last"].shape == (250, 4)
    assert done.stdout == f"0 of the actions in {steps} steps differ from those of the agent\n"
    for key, classes in (("action", 3), ("pair", 4)):
        taken = recorded[f"action/{key}"][~recorded["is_last"]]
        assert set(taken.ravel().tolist()) == set(range(classes))


def test_the_check_finds_a_changed_action(exported: Path, tmp_path: Path) -> None:
    copy = tmp_path / "policy"
    shutil.copytree(exported, copy)
    recorded = dict(np.load(copy / "recorded.npz"))
    recorded["action/action"][5, 2] += 1
    np.savez(copy / "recorded.npz", **recorded)
    done = run_loader(copy)
    assert done.returncode == 1
    assert done.stdout.startswith("1 of the actions in ")


def test_any_number_of_environments_and_masks(exported: Path) -> None:
    policy, form, start = load_policy.load(exported)
    assert form["num_envs"] == "any"
    assert form["action"] == {
        "action": {"shape": [], "dtype": "int32", "classes": 3, "start": 0},
        "pair": {"shape": [2], "dtype": "int32", "classes": 4, "start": [0, 0]},
        "push": {"shape": [1], "dtype": "float32", "low": [0.0], "high": [4.0]},
    }
    assert form["observation"]["action_mask"] == {"shape": [3], "dtype": "bool"}
    assert form["platforms"] == ["cpu", "cuda"]
    env = agents.env(7)
    memory, step = start(7), env.reset()
    for number in range(9):
        first = step.step_type == 0
        memory, action = policy(memory, step.observation, first, np.uint32(number))
        action = {key: np.asarray(value) for key, value in action.items()}
        for key, mask in (("action", "action_mask"), ("pair", "action_mask_pair")):
            valid = step.observation[mask]
            assert np.take_along_axis(valid, action[key][..., None], -1).all()
        step = env.step(action)


def test_samples_of_a_fixed_number_of_environments(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "policy"
    chosen = options(greedy=False, num_envs=2, platforms="cpu")
    own = compose(["env.entry_point=my_module:make"])
    folder.export(replace(agents.agent(), config=own), rows(2, 20), out, chosen)
    policy, form, start = load_policy.load(out)
    assert (form["num_envs"], form["greedy"], form["task"]) == (2, False, "my_module:make")
    assert form["action"]["push"] == {"shape": [1], "dtype": "float32"}  # units are not known
    seen = {key: value[0] for key, value in recorded_observations(out).items()}
    drawn = {
        int(x)
        for seed in range(40)
        for x in policy(start(2), seen, np.ones(2, bool), np.uint32(seed))[1]["action"]
    }
    assert len(drawn) > 1
    with pytest.raises(ValueError, match="shape"):
        policy(start(3), seen, np.ones(2, bool), np.uint32(0))


def recorded_observations(out: Path) -> dict[str, np.ndarray]:
    recorded = np.load(out / "recorded.npz")
    return {
        key.removeprefix("observation/"): value
        for key, value in recorded.items()
        if key.startswith("observation/")
    }


def test_a_policy_that_acts_otherwise_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = PolicyFunction.noise
    monkeypatch.setattr(PolicyFunction, "noise", lambda self, n, seed: noise(self, n, seed + 1))
    with pytest.raises(
        UserError, match="is not the agent: .* differ, the first is .* at step 0 of .*nothing"
    ):
        folder.export(agents.agent(), rows(2, 250), tmp_path / "a", options(num_envs=2))
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def run(tmp_path_factory: Any) -> Path:
    return tiny_run.finished(tmp_path_factory)[0]


def test_the_command(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "policy"
    argv = [f"run={run}", f"out={out}", "steps=10", "num_envs=2", "platform=cpu", "platforms=cpu"]
    assert command.main(argv) == 0
    text = capsys.readouterr().out
    assert f"written to {out}: " in text
    assert "it acts as the agent of step 100 does on 20 recorded observations" in text
    names = sorted(path.name for path in out.iterdir())
    assert names == ["load_policy.py", "policy.json", "policy.stablehlo", "recorded.npz"]
    form = json.loads((out / "policy.json").read_text())
    assert (form["step"], form["environment"]["task"]) == (100, "tests.probe_envs:probe/Drawn-v0")
    before = {path: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(UserError, match="already exists; name a new folder, or delete it first"):
        command.main(argv)
    assert {path: path.read_bytes() for path in out.iterdir()} == before


def refused(run: Path, out: Path, *more: str) -> str:
    with pytest.raises(UserError) as caught:
        command.main([f"run={run}", f"out={out}", "steps=2", "platform=cpu", *more])
    return str(caught.value)


def test_what_cannot_be_exported_is_refused(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert refused(tmp_path / "none", out).startswith(f"run={tmp_path / 'none'} is not a folder")
    assert refused(run, out, "platforms=cpu,gpu") == (
        "platforms=cpu,gpu: 'gpu' is not one of cpu, cuda, rocm, tpu"
    )
    assert "cannot write" in refused(run, run / "config.yaml" / "out")
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    monkeypatch.setitem(sys.modules, "jax._src.export.serialization", None)
    assert "pip install flatbuffers" in refused(run, out)
    assert list(tmp_path.iterdir()) == []


def test_the_function_itself_is_the_policy() -> None:
    """Draws, memory and actions of the function are those that `record` makes, step by step."""
    agent = agents.agent()
    for greedy in (True, False):
        function = PolicyFunction(agent.networks, agent.params, greedy)
        taken = agent.record(agents.env(4), 5, greedy)
        memory = {key: np.zeros((4, *x.shape), x.dtype) for key, x in function.memory.items()}
        step = jax.jit(function)
        for number in range(5):
            seen = {key: x[:, number] for key, x in taken["observation"].items()}
            first = taken["is_first"][:, number]
            memory, action = step(memory, seen, first, np.uint32(number))
            deter = taken["latent"]["deter"][:, number]
            np.testing.assert_allclose(memory["deter"], deter, rtol=1e-3, atol=1e-6)
            for key, value in action.items():
                np.testing.assert_allclose(value, taken["action"][key][:, number], atol=1e-5)
