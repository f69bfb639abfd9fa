"""The run folder: what it accepts, what it writes, and that a refusal leaves no trace."""

import json
import resource
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from dreamer.checkpoint.folder import git_state, locked, prepare, saved_config, versions
from dreamer.errors import UserError
from dreamer.system.files import write_atomic

CONFIG = "seed: 3\n"


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file may grow: writing fails as on a full disk, for root too."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def names(folder: Path) -> list[str]:
    return sorted(str(item.relative_to(folder)) for item in folder.rglob("*"))


def test_new_folder_gets_config_and_version(tmp_path: Path) -> None:
    path = prepare(
        tmp_path / "runs" / "a", CONFIG, command=["python", "-m", "dreamer.train", "a=b c"]
    )
    assert names(path) == ["config.yaml", "version.json"]
    text = saved_config(path)
    assert text is not None
    assert [line for line in text.splitlines() if not line.startswith("#")] == ["seed: 3"]
    version = json.loads((path / "version.json").read_text())
    assert set(version) == {"date", "command", "git", "versions", "earlier"}
    assert version["command"] == "python -m dreamer.train 'a=b c'"
    assert version["versions"] == versions()
    assert version["earlier"] == []


def test_resuming_replaces_config_and_keeps_earlier_starts(tmp_path: Path) -> None:
    prepare(tmp_path, CONFIG, command=["one"])
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    first = saved_config(tmp_path)
    assert first is not None
    prepare(tmp_path, first, command=["two"])
    assert saved_config(tmp_path) == first
    prepare(tmp_path, "seed: 4\n", command=["three"])
    assert "seed: 4" in (saved_config(tmp_path) or "")
    version = json.loads((tmp_path / "version.json").read_text())
    assert version["command"] == "three"
    assert [start["command"] for start in version["earlier"]] == ["one", "two"]
    assert names(tmp_path) == ["config.yaml", "metrics.jsonl", "version.json"]


def test_a_folder_with_temporary_files_only_is_accepted(tmp_path: Path) -> None:
    (tmp_path / ".config.yaml.123.tmp").write_text("seed")
    prepare(tmp_path, CONFIG)
    assert saved_config(tmp_path) is not None


@pytest.mark.parametrize("file", ["thesis.txt", "config.yaml"])
def test_foreign_folder_is_refused_untouched(tmp_path: Path, file: str) -> None:
    (tmp_path / file).write_text("mine: true\n")
    with pytest.raises(
        UserError, match=r"holds files but no config\.yaml of a dreamer run"
    ) as error:
        prepare(tmp_path, CONFIG)
    assert "\n" not in str(error.value)
    assert names(tmp_path) == [file]
    assert (tmp_path / file).read_text() == "mine: true\n"


@pytest.mark.parametrize("below", [".", "a", "a/b"])
def test_file_in_place_of_the_folder_is_refused(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file is not a folder"):
        prepare(tmp_path / "file" / below, CONFIG)
    assert names(tmp_path) == ["file"]


@pytest.mark.usefixtures("full_disk")
@pytest.mark.parametrize("below", [".", "a/b"])
def test_full_disk_is_refused_before_anything_is_made(tmp_path: Path, below: str) -> None:
    with pytest.raises(UserError, match="cannot be written") as error:
        prepare(tmp_path / below, CONFIG)
    assert "\n" not in str(error.value)
    assert names(tmp_path) == []


@pytest.mark.parametrize("below", [".", "a/b"])
def test_disk_that_fills_up_meanwhile_leaves_nothing(
    tmp_path: Path, below: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(path: Path, text: str) -> None:
        if path.name == "config.yaml":
            raise OSError(28, "No space left on device")
        write_atomic(path, text)

    monkeypatch.setattr("dreamer.checkpoint.folder.write_atomic", write)
    with pytest.raises(UserError, match="No space left on device"):
        prepare(tmp_path / below, CONFIG)
    assert names(tmp_path) == []


def test_read_only_place_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def probe(folder: Path) -> None:
        raise OSError(30, "Read-only file system", str(folder))

    monkeypatch.setattr("dreamer.system.files.probe", probe)
    with pytest.raises(UserError, match="Read-only file system"):
        prepare(tmp_path / "run", CONFIG)
    assert names(tmp_path) == []


def test_no_run_has_no_saved_config(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert saved_config(tmp_path) is None
    assert saved_config(tmp_path / "nowhere") is None
    assert saved_config(tmp_path / "file") is None


def test_write_atomic_keeps_the_old_file_when_it_fails(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a", "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomic(tmp_path / "a", "new \ud800")
    assert (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_write_atomic_replaces_the_file_and_does_not_write_into_it(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a", "old")
    (tmp_path / "reader").hardlink_to(tmp_path / "a")
    write_atomic(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "new"
    assert (tmp_path / "reader").read_text() == "old"


def test_git_state_has_commit_and_changes(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    assert git_state(tmp_path) is None
    git("init")
    assert git_state(tmp_path) is None  # no commit yet
    (tmp_path / "code.py").write_text("1\n")
    git("add", ".")
    git("commit", "-m", "first")
    assert git_state(tmp_path) == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    (tmp_path / "notes.txt").write_text("untracked")
    assert git_state(tmp_path) == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    (tmp_path / "code.py").write_text("2\n")
    assert git_state(tmp_path) == {"commit": git("rev-parse", "HEAD"), "dirty": True}
    (tmp_path / "package").mkdir()
    assert git_state(tmp_path / "package") is None  # below a repository is not a checkout


def test_versions_are_those_installed() -> None:
    import numpy as np

    assert versions()["numpy"] == np.__version__
    assert {"python", "dreamer", "jax", "flax", "optax", "gymnasium"} <= versions().keys()


def test_a_lock_keeps_others_out_until_it_is_released(tmp_path: Path) -> None:
    refusal = pytest.raises(UserError, match=r"is in use by a run; .* with run\.dir=PATH")
    with locked(tmp_path), refusal, locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


def test_a_dead_process_holds_no_lock(tmp_path: Path) -> None:
    code = """
        import os, sys
        from dreamer.checkpoint.folder import locked
        with locked(sys.argv[1]):
            os.kill(os.getpid(), 9)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)]
    assert subprocess.run(command, check=False).returncode == -9
    with locked(tmp_path):
        pass
