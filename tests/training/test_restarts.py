"""Runs that continue although environments fail."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dreamer.errors import EnvironmentFault
from dreamer.training.trainer import Trainer
from tests import probe_envs, tiny_run
from tests.probe_envs import task

FRAGILE = (task("Fragile"), "log.progress=plain")
FAILED_AT = 72  # steps of the run


@pytest.fixture(scope="module")
def broken(tmp_path_factory: Any) -> tuple[Path, dict[str, Any]]:
    """A run whose second environment failed once: its folder, saved then, and its end."""
    folder = tmp_path_factory.mktemp("broken")
    probe_envs.Fragile.steps_left = 61
    save = f"checkpoint.every_steps={FAILED_AT}"
    return folder, tiny_run.train(folder, *FRAGILE, save, "checkpoint.keep=2")


def counted(folder: Path) -> list[tuple[int, float]]:
    lines = tiny_run.lines(folder)
    return [(line["step"], line["env/restarts"]) for line in lines if "env/restarts" in line]


def test_the_replay_holds_a_truncated_episode(broken: tuple[Path, dict]) -> None:
    """Whose last row repeats the previous observation, as no other row does."""
    folder, state = broken
    assert counted(folder) == [(FAILED_AT, 1)]
    rings = state["arrays"]["replay"]["rings"]
    seen = rings["observation"]["observation"]
    ((env, last),) = np.argwhere((seen == np.roll(seen, 1, axis=1)).all(-1)).tolist()
    rows = np.arange(last - 1, last + 2) % seen.shape[1]
    assert env == 1
    assert rings["is_last"][1, rows].tolist() == [False, True, False]
    assert rings["is_first"][1, rows].tolist() == [False, False, True]
    assert not rings["is_terminal"][1, rows].any()
    assert rings["reward"][1, rows[1:]].tolist() == [0, 0]
    assert rings["reward"][1, rows[0]] != 0


def test_a_run_stopped_after_a_failure_resumes_exactly(
    broken: tuple[Path, dict], tmp_path: Path
) -> None:
    """Right after it, at the end that was made."""
    folder, expected = broken
    copied = tiny_run.copy(folder, tmp_path / "run", FAILED_AT)
    probe_envs.Fragile.steps_left = -1
    tiny_run.assert_same(tiny_run.train(copied, *FRAGILE), expected)
    assert counted(copied) == counted(folder)


def test_failures_are_reported_and_counted_over_a_resume_until_the_limit(
    broken: tuple[Path, dict], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """The third ends the run, after all is saved."""
    folder = tiny_run.copy(broken[0], tmp_path / "run", 100)
    options = (*FRAGILE, "env.restarts=2", "run.steps=120")
    with Trainer(tiny_run.config(folder, *options)) as trainer:
        while len(counted(folder)) < 2:
            probe_envs.Fragile.steps_left = 2
            trainer.begin()
            trainer.after(trainer.loop.advance(2**63))
        probe_envs.Fragile.steps_left = 2
        with pytest.raises(
            EnvironmentFault,
            match="failure 3 of the run, with env.restarts=2; all that was learned until step "
            f"1.. is saved in {folder}, and the same command resumes$",
        ):
            trainer.run()
        assert trainer.checkpoints.manager.latest_step() == trainer.step
    noted = [line for line in capsys.readouterr().err.splitlines() if "; restarted" in line]
    assert len(noted) == 1
    assert noted[0].endswith("; restarted, 2 of env.restarts=2")
    assert [count for _, count in counted(folder)] == [1, 2]
