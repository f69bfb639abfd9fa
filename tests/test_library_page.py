"""The blocks of docs/library.md run as they stand, on runs of tiny sizes."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dreamer.cli import compose, export
from tests import tiny_run

PAGE = Path(__file__).resolve().parent.parent / "docs" / "library.md"


def blocks() -> list[tuple[str, str]]:
    """(package that it needs, code) of every block of Python."""
    found = re.findall(r"^```python *(?:needs=(\w+))?\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
    assert len(found) >= 7
    return found


@pytest.mark.slow
def test_every_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cartpole = ("env.task=CartPole-v1", "run.steps=6")
    tiny_run.train(tmp_path / "runs" / "cartpole", *cartpole)
    pixels = ("env.task=Pendulum-v1", "env.pixels=true", "run.steps=6")
    tiny_run.train(tmp_path / "runs" / "pixels", *pixels)
    argv = ["run=runs/cartpole", "out=policy", "steps=5", "platform=cpu", "platforms=cpu"]
    assert export.main(argv) == 0

    compose_for_real = compose.compose

    def tiny(argv: list[str]) -> Any:
        if "experiment=cartpole" not in argv:
            return compose_for_real(argv)
        assert compose_for_real(argv).run.dir == "runs/new"
        return tiny_run.config(Path("runs/new"), *cartpole)

    monkeypatch.setattr(compose, "compose", tiny)
    names: dict[str, Any] = {}
    for needed, code in blocks():
        if not needed or importlib.util.find_spec(needed):
            exec(compile(code, str(PAGE), "exec"), names)
    assert names["imagination"].observations["observation"].shape == (51, 8, 4)
    assert names["imagination"].values.shape == (51, 8)
    assert names["frames"]["image"].shape[0] == 32
    assert Path("predictions.mp4").stat().st_size > 500
    assert names["agent"].step == 6
    assert np.asarray(names["action"]["action"]).shape == (8,)
