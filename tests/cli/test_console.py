"""The console script `dreamer` and its subcommands."""

import sys
from pathlib import Path

import pytest

from dreamer.cli import console


def run(monkeypatch: pytest.MonkeyPatch, *argv: str) -> int:
    """The exit status of `dreamer ARGV`."""
    monkeypatch.setattr(sys, "argv", ["dreamer", *argv])
    monkeypatch.setattr(sys, "path", sys.path[:])
    for name in ("envs", "bench"):  # which other tests import
        monkeypatch.delitem(sys.modules, f"dreamer.{name}.__main__", raising=False)
    try:
        console.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.mark.parametrize("argv", [(), ("--help",), ("-h",)])
def test_help_lists_the_commands(
    argv: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assert run(monkeypatch, *argv) == 0
    said = capsys.readouterr().out
    assert all(f"\n  {name} " in said for name in console.COMMANDS)


@pytest.mark.parametrize("name", console.COMMANDS)
def test_every_subcommand_has_help(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assert run(monkeypatch, name, "--help") == 0
    assert f"dreamer.{name}" in capsys.readouterr().out


def test_an_unknown_command_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assert run(monkeypatch, "trian") == 2
    said = capsys.readouterr().err
    assert said.startswith("error: trian: no such command; ")
    assert said.endswith("did you mean train?\n")


def test_modules_of_the_working_directory_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "beside.py").write_text(
        "import gymnasium\n\ndef make():\n    return gymnasium.make('CartPole-v1')\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    argv = ("check", "gymnasium", "entry_point=beside:make", "steps=5", "num_envs=1")
    assert run(monkeypatch, "envs", *argv) == 0
    assert capsys.readouterr().out.endswith("passed\n")
    monkeypatch.delitem(sys.modules, "beside")
