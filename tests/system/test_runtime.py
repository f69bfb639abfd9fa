"""Compiler flags: those of the environment come last, and unknown ones are refused."""

import os
from pathlib import Path

import jax
import pytest

from dreamer.errors import UserError
from dreamer.system import runtime


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "kept")
    monkeypatch.setattr("dreamer.system.allocator.keep_freed", lambda: None)
    monkeypatch.setattr(jax.config, "update", lambda *_: pytest.fail("overrides the environment"))


@pytest.mark.parametrize(
    ("theirs", "expected"),
    [
        ("", "--xla_gpu_graph_min_graph_size=9"),
        (
            "--xla_gpu_graph_min_graph_size=7",
            "--xla_gpu_graph_min_graph_size=9 --xla_gpu_graph_min_graph_size=7",
        ),
    ],
)
def test_the_flags_of_the_environment_come_last(
    theirs: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XLA_FLAGS", theirs)
    runtime.runtime("auto", "--xla_gpu_graph_min_graph_size=9")
    assert os.environ["XLA_FLAGS"] == expected


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--xla_made_up=1", f"jax {jax.__version__} does not know --xla_made_up=1; correct it"),
        ("--xla_gpu_graph_min_graph_size=x", "size=x: invalid value; correct it, or leave out"),
    ],
)
def test_unknown_flags_are_refused(
    flags: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XLA_FLAGS", "")
    with pytest.raises(UserError, match=message):
        runtime.runtime("auto", flags)
    assert os.environ["XLA_FLAGS"] == ""


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str | None]:
    """Settings of jax, in a process that has a home folder and chooses no cache."""
    found: dict[str, str | None] = {}
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(jax.config, "update", found.__setitem__)
    return found


@pytest.mark.parametrize(
    ("given", "expected"),
    [(None, "{home}/.cache"), ("", "{home}/.cache"), ("a/b", "{home}/.cache"), ("/a/b", "/a/b")],
)
def test_the_folder_of_compiled_programs_is_by_the_specification(
    given: str | None,
    expected: str,
    chosen: dict[str, str | None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    if given is not None:
        monkeypatch.setenv("XDG_CACHE_HOME", given)
    runtime.runtime("auto")
    folder = expected.format(home=tmp_path)
    assert chosen == {"jax_compilation_cache_dir": f"{folder}/dreamer/jax"}


@pytest.mark.parametrize("kind", ["none", "missing"])
def test_without_a_home_folder_nothing_is_cached_and_a_line_warns(
    kind: str,
    chosen: dict[str, str | None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "none"))
    if kind == "none":

        def unknown() -> Path:
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.setattr(Path, "home", unknown)
    runtime.runtime("auto")
    assert chosen == {"jax_compilation_cache_dir": None}
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: compiled programs are not cached: no home folder")
    assert list(tmp_path.iterdir()) == []
