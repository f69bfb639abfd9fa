"""The page on environments of one's own says what is so: its code and its commands, as they are."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dreamer.config import trust
from dreamer.config.env import GymnasiumEnv
from dreamer.envs import registry
from dreamer.errors import EnvironmentFault
from tests import tiny_run

PAGE = (Path(__file__).parent.parent / "docs" / "your_environment.md").read_text(encoding="utf-8")


def training() -> list[str]:
    """The words of the command that trains."""
    return shlex.split(re.findall(r"^python -m dreamer.train.*$", PAGE, re.MULTILINE)[0])


def save_example(folder: Path) -> None:
    """As a reader saves it."""
    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (folder / "garden.py").write_text(code)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the example is saved."""
    save_example(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_environment_is_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Played by its masks, for two episodes of the days that are configured."""
    monkeypatch.syspath_prepend(folder)
    config = GymnasiumEnv(entry_point="garden:Garden", kwargs={"days": 3}, restarts=0)
    env = registry.make(trust.allow(config), 2, 0)
    assert sorted(env.observation_spec()) == ["action_mask_bed", "beds", "heat", "locked"]
    steps = [env.reset()]
    for _ in range(7):
        beds = steps[-1].observation["action_mask_bed"].argmax(-1).astype(np.int32)
        steps.append(env.step({"bed": beds, "litres": np.zeros((2, 1), np.float32)}))
    assert [int(step.step_type[0]) for step in steps] == [0, 1, 1, 2, 0, 1, 1, 2]
    assert steps[3].discount.tolist() == [1, 1]
    assert all((step.reward >= 0).all() and (step.reward <= 1).all() for step in steps)
    against = {"bed": env.reset().observation["locked"], "litres": np.zeros((2, 1), np.float32)}
    with pytest.raises(EnvironmentFault, match=r"AssertionError: masked action .*garden.py, l"):
        env.step(against)
    monkeypatch.delitem(sys.modules, "garden")


@pytest.mark.slow
def test_the_commands_run(folder: Path) -> None:
    """With tiny networks and few steps."""
    train, evaluate, check = map(shlex.split, re.findall(r"^python -m .*$", PAGE, re.MULTILINE))
    assert train == training()
    done = subprocess.run([sys.executable, *check[1:]], capture_output=True, text=True, cwd=folder)
    assert (done.returncode, done.stderr) == (0, ""), done
    assert done.stdout.endswith("passed\n")
    sizes = [option for option in tiny_run.OPTIONS if not option.startswith("env.")]
    few = ("run.steps=40", f"run.dir={dict_of(train)['run.dir']}")
    for words, more in ((train, [*sizes, *few]), (evaluate, [])):
        options = [f"{key}={value}" for key, value in (dict_of(words) | dict_of(more)).items()]
        command = [sys.executable, *words[1:3], *options]
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
        assert (done.returncode, done.stderr) == (0, ""), done
    assert "garden:Garden, step 40" in done.stdout


def dict_of(words: list[str]) -> dict[str, str]:
    """The options among words, by their keys."""
    return dict(word.split("=", 1) for word in words if "=" in word)
