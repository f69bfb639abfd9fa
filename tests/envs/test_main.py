"""`python -m dreamer.envs`: the list of suites, the check and the speed."""

import os
import subprocess
import sys

import pytest

from dreamer.cli import groups
from dreamer.envs import __main__ as command
from dreamer.envs import registry
from dreamer.errors import UserError


def test_the_table_has_every_group_and_says_what_is_installed(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command.main([]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.split()[0] for line in lines] == groups.choices("env")
    assert any(line.split()[:3] == ["gymnasium", "CartPole-v1", "gymnasium"] for line in lines)
    lost = registry.Suite("", "no-such-package", "pip install it")
    monkeypatch.setitem(registry.SUITES, "crafter", lost)
    monkeypatch.setitem(command.NEEDS, "car_racing", ("no-such-package", "pip install box"))
    rows = {line.split()[0]: line for line in command.table().splitlines()}
    assert rows["crafter"].endswith("no: pip install it")
    assert rows["car_racing"].endswith("no: pip install box")


def test_listing_needs_no_jax() -> None:
    code = "import sys; from dreamer.envs.__main__ import main; main([]); "
    code += "assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize(
    ("name", "task"),
    [("gymnasium", "CartPole-v1"), ("atari100k", "ms_pacman")],
)
def test_the_tasks_of_a_suite_are_listed(
    name: str, task: str, capsys: pytest.CaptureFixture
) -> None:
    command.main([name])
    assert task in capsys.readouterr().out.splitlines()


def test_a_correct_environment_passes(capsys: pytest.CaptureFixture) -> None:
    command.main(["check", "gymnasium", "CartPole-v1", "steps=80", "env.repeat=2"])
    said = capsys.readouterr().out
    assert said.endswith("passed\n")
    assert "observation float32 (4,)" in said
    assert "terminated, 0 truncated" in said
    assert "no episode ended" not in said
    command.main(["check", "gymnasium", "Pendulum-v1", "steps=20"])
    assert "no episode ended by itself: take more steps" in capsys.readouterr().out


@pytest.mark.slow  # compiles three times
def test_an_environment_in_jax_is_checked_too(capsys: pytest.CaptureFixture) -> None:
    command.main(["check", "gymnax", "CartPole-v1", "steps=30", "num_envs=3"])
    assert "30 steps of 3 environments" in capsys.readouterr().out


def test_a_broken_environment_is_named_in_one_line_with_status_2() -> None:
    code = """
import sys, gymnasium
from dreamer.envs import __main__ as command
from dreamer.errors import exit_on_user_error
import tests.envs.conftest
gymnasium.register("Unseeded-v0", entry_point="tests.envs.probe_envs:Unseeded")
sys.exit(exit_on_user_error(lambda: command.main(["check", "gymnasium", "Unseeded-v0"])))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ}
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: gymnasium Unseeded-v0: ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("entry_point", "more"),
    [("Counter", "time limit  truncates"), ("several", "; a resume starts new episodes")],
)
def test_user_environments_are_checked(
    entry_point: str, more: str, capsys: pytest.CaptureFixture
) -> None:
    command.main(["check", "gymnasium", f"entry_point=tests.envs.probe_envs:{entry_point}"])
    said = capsys.readouterr().out
    assert more in said
    assert said.endswith("passed\n")
    command.main(["check", "gymnasium", "id=CartPole-v1", "steps=20"])


def test_speed_counts_the_steps_of_all_environments(capsys: pytest.CaptureFixture) -> None:
    command.main(["speed", "gymnasium", "CartPole-v1", "steps=200", "num_envs=2"])
    said = capsys.readouterr().out
    assert said.startswith("gymnasium CartPole-v1: ")
    assert said.endswith(" steps/s with 2 together\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("gymnasiun", ["gymnasiun is no suite; did you mean gymnasium?", "crafter"]),
        ("check gymnasium", ["python -m dreamer.envs check SUITE TASK"]),
        ("check gymnasium steps=3", ["python -m dreamer.envs check SUITE TASK"]),
        ("check gymnasium CartPole-v1 entry_point=a:b", ["entry_point=MODULE:FUNCTION"]),
        ("check gymnasium entry_point=a.b:c", ["a.b"]),
        ("check gymnasiun CartPole-v1", ["did you mean gymnasium?"]),
        ("check gymnasium CartPol-v1", ["did you mean CartPole-v1?"]),
        ("check gymnasium CartPole-v1 steps=no", ["steps=no", "whole number"]),
        ("check gymnasium CartPole-v1 num_envs=0", ["num_envs=0", "at least 1"]),
        ("check gymnasium CartPole-v1 repet=2", ["env.repet=2: no such key", "repeat"]),
        ("check gymnasium CartPole-v1 repeat", ["SUITE TASK [KEY=VALUE ...]"]),
        ("list gymnasium", ["list gymnasium", "expected check, speed"]),
    ],
)
def test_a_user_error_is_one_line(arguments: str, words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        command.main(arguments.split())
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value)
