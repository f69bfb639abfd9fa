"""Foreign, damaged and impossible files: one line, before the work starts, and nothing touched."""

import errno
import fcntl
import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dreamer
from dreamer.bench.__main__ import main as bench
from dreamer.cli import data, export, train
from dreamer.cli import eval as evaluation
from dreamer.cli.compose import compose
from dreamer.datasets import recorded
from dreamer.envs.__main__ import main as envs
from dreamer.errors import UserError, exit_on_user_error
from dreamer.system import importing
from tests import probe_envs, recordings, tiny_run

WALK = probe_envs.task("Walk")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: Any) -> Path:
    return tiny_run.finished(tmp_path_factory)[0]


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return tiny_run.copy(finished, tmp_path / "run")


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A folder with a file, outside of any run."""
    path = tmp_path / "victim"
    path.mkdir()
    (path / "file").write_text("mine")
    return path


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The one line that a command ends with."""

    def line(main: Callable[[list[str]], int], *argv: str) -> str:
        capsys.readouterr()
        assert exit_on_user_error(lambda: main(list(argv))) == 2
        (error,) = capsys.readouterr().err.splitlines()
        assert error.startswith("error: ")
        assert "Error(" not in error
        return error

    return line


def plant(path: Path, target: Path) -> Path:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.symlink_to(target)
    return path


def unharmed(victim: Path) -> bool:
    return {path.name: path.read_text() for path in victim.iterdir()} == {"file": "mine"}


# -------------------------------------------------------------------------------------------- links


def test_evaluation_writes_through_no_link(run: Path, victim: Path) -> None:
    out = plant(run / "evaluation-100-seed1.json", victim / "file")
    for name in (out.name, out.with_suffix(".mp4").name):
        plant(run / f".{name}.{os.getpid()}.tmp", victim / "file")
    argv = [f"run={run}", "episodes=1", "video=true", "platform=cpu"]
    assert evaluation.main(argv) == 0
    assert unharmed(victim)
    assert not out.is_symlink()
    assert json.loads(out.read_text())["step"] == 100


@pytest.mark.parametrize("name", ["metrics.jsonl", ".lock"])
def test_a_run_appends_to_no_link(
    name: str, run: Path, victim: Path, refused: Callable[..., str]
) -> None:
    plant(run / name, victim / "file")
    line = refused(train.main, *tiny_run.argv(run))
    assert str(run) in line
    assert "is a link, and nothing inside a folder is written through links" in line
    assert unharmed(victim)


@pytest.mark.parametrize("name", ["checkpoints", "videos", "checkpoints/100"])
def test_no_folder_inside_of_a_run_is_a_link(
    name: str, run: Path, victim: Path, refused: Callable[..., str]
) -> None:
    plant(run / name, victim)
    line = refused(train.main, *tiny_run.argv(run, "run.steps=110"))
    assert f"{run / name} is a link, and nothing inside a folder is written" in line
    assert unharmed(victim)


def test_what_is_written_whole_takes_the_place_of_links(run: Path, victim: Path) -> None:
    """Stale temporary folders among it, and those files that killed processes left."""
    for name in ("config.yaml", "version.json"):
        content = (run / name).read_text()
        (victim / name).write_text(content)
        plant(run / name, victim / name)
    (run / "checkpoints" / "110.tmp").symlink_to(victim)
    (run / "checkpoints" / "100.damaged").symlink_to(victim)
    (run / ".0123456789abcdef.tmp").write_text("half")
    before = {path.name: path.read_text() for path in victim.iterdir()}
    assert train.main(tiny_run.argv(run, "run.steps=102")) == 0
    assert {path.name: path.read_text() for path in victim.iterdir()} == before
    assert not any((run / name).is_symlink() for name in ("config.yaml", "version.json"))
    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert names == ["100", "100.damaged", "102"]
    assert not (run / ".0123456789abcdef.tmp").exists()


def test_an_export_replaces_no_link(run: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    plant(run / "policy-100", tmp_path / "elsewhere")
    assert "already exists" in refused(export.main, f"run={run}", "platform=cpu")
    assert not (tmp_path / "elsewhere").exists()


# -------------------------------------------------------------------------------------------- names

LATIN = os.fsdecode(b"lat\xfcn")
NAMES = {
    "latin 1": (LATIN, "is not UTF-8"),
    "an address": ("gs://bucket/run", "cannot write names"),
    "a backslash": ("a\\b", "cannot write names"),
    "a line break": ("a\nb", "has a control character"),
    "a long name": ("x" * 256, "is too long; each part may have 255 bytes"),
    "a long path": ("/".join(["x" * 200] * 20), "is too long"),
}


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("key", ["run.dir", "checkpoint.dir", "replay.folder", "out", "--trace"])
def test_names_that_cannot_be_written_are_refused_first(
    key: str, kind: str, tmp_path: Path, refused: Callable[..., str], finished: Path
) -> None:
    name, message = NAMES[kind]
    path = f"{tmp_path}/{name}"
    if key == "out":
        line = refused(data.main, "collect", f"out={path}", WALK)
        assert message in refused(evaluation.main, f"run={finished}", f"out={path}", "platform=cpu")
    elif key == "--trace":
        line = refused(bench, "--trace", path)
    else:
        where = f"{tmp_path}/run"
        argv = tiny_run.argv(Path(where), *([] if key == "run.dir" else [f"{key}={path}"]))
        line = refused(train.main, *(argv[:-1] + [f"{key}={path}"] if key == "run.dir" else argv))
    assert message in line
    assert line.startswith(f"error: {key}=")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["file", "pipe", "device", "nowhere"])
@pytest.mark.parametrize("key", ["run.dir", "checkpoint.dir", "replay.folder", "out", "--trace"])
def test_what_is_no_folder_is_refused_first(
    key: str, kind: str, tmp_path: Path, refused: Callable[..., str]
) -> None:
    path = tmp_path / "place"
    if kind == "file":
        path.write_text("mine")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "nowhere":
        path.symlink_to(tmp_path / "missing")
    else:
        path = Path("/dev/null")
    if key == "out":
        line = refused(data.main, "collect", f"out={path}", WALK)
    elif key == "--trace":
        line = refused(bench, "--trace", str(path))
    elif key == "run.dir":
        line = refused(train.main, *tiny_run.argv(path))
    else:
        line = refused(train.main, *tiny_run.argv(tmp_path / "run", f"{key}={path}"))
    assert str(path) in line
    assert not (tmp_path / "run").exists()
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize("place", ["/dev/null", "pipe"])
def test_a_device_is_not_replaced_by_a_file(
    place: str, finished: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    os.mkfifo(tmp_path / "pipe")
    out = Path(tmp_path, place)
    line = refused(evaluation.main, f"run={finished}", f"out={out}", "platform=cpu")
    assert f"cannot write {out}: it is a pipe, a socket or a device" in line
    assert not out.is_file()


# -------------------------------------------------------------------------------------------- locks


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_refused_and_nothing_is_left(
    number: int, tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    line = refused(train.main, *tiny_run.argv(tmp_path / "a" / "b"))
    assert "its file system has no locks" in line
    assert "run.dir=PATH" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_a_lock_that_is_no_file_is_refused(
    kind: str, tmp_path: Path, refused: Callable[..., str]
) -> None:
    """Of the folder of checkpoints, and nothing is left of the run folder."""
    saved = tmp_path / "saved"
    saved.mkdir()
    (os.mkfifo if kind == "pipe" else os.mkdir)(saved / ".lock")
    argv = tiny_run.argv(tmp_path / "a" / "b", f"checkpoint.dir={saved}")
    assert f"cannot be locked by {saved}/.lock: " in refused(train.main, *argv)
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_a_start_that_fails_leaves_nothing(
    tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However far it had come."""

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "there").mkdir()
    monkeypatch.setattr("dreamer.logs.writers.AppendedFile.open", full)
    for place in ("a/b", "there"):
        assert "No space left" in refused(train.main, *tiny_run.argv(tmp_path / place))
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]


# ------------------------------------------------------------------------------------------- digits


def test_only_plain_numbers_are_checkpoints(run: Path, refused: Callable[..., str]) -> None:
    """`²` is a digit of Python, and `١` a number."""
    for name in ("²", "١", "0100", "1_000", "+7", "9" * 200):
        (run / "checkpoints" / name).mkdir()
    assert dreamer.load(run).step == 100
    assert train.main(tiny_run.argv(run)) == 0
    for text in ("²", "١", "-1", "1.5", ""):
        line = refused(envs, "check", "gymnasium", "CartPole-v1", f"steps={text}")
        assert line == f"error: steps={text}: must be a whole number of at least 1"


# ------------------------------------------------------------------------------------ configuration

BOMB = "a0: &a0 [1, 1]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30)
)
TEXTS: dict[str, bytes] = {
    "aliases": BOMB.encode(),
    "merged": b"seed: &a {b: 1}\nreplay: {<<: *a}\n",
    "nested": b"seed: " + b"[" * 5000 + b"]" * 5000,
    "nested mappings": b"".join(b" " * n + b"a:\n" for n in range(300)),
    "huge": b"seed: 1\n" + b"# x\n" * 2**19,
    "cut": b"seed: [1, ",
    "not UTF-8": b"seed: \xff\xfe",
    "a list": b"- 1\n- 2\n",
    "a date": b"seed: 2024-13-45\n",
    "a long number": b"seed: " + b"9" * 5000 + b"\n",
    "tags": b"seed: !!timestamp x\n",
    "no keys": b"? [a]\n: b\n",
    "numbers for keys": b"1: 2\nnull: 3\n",
    "wrong": b"seed: x\n",
}


def config(run: Path, kind: str) -> Path:
    file = run / "config.yaml"
    header = file.read_bytes().partition(b"\n")[0] + b"\n"
    file.unlink()
    if kind == "folder":
        file.mkdir()
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind == "device":
        file.symlink_to("/dev/zero")
    else:
        file.write_bytes(header + TEXTS[kind])
    return file


@pytest.mark.parametrize("kind", [*TEXTS, "folder", "pipe", "device"])
def test_a_configuration_that_cannot_be_read_is_named(
    kind: str, run: Path, refused: Callable[..., str]
) -> None:
    file = config(run, kind)
    for main, *argv in (
        (evaluation.main, f"run={run}"),
        (data.main, "info", f"source={run}"),
        (train.main, *tiny_run.argv(run)),
    ):
        assert str(file) in refused(main, *argv)
    with pytest.raises(dreamer.errors.UserError, match=str(file)):
        dreamer.load(run)


@pytest.mark.parametrize("kind", [*TEXTS, "folder", "pipe"])
def test_so_is_that_of_recorded_episodes(
    kind: str, tmp_path: Path, refused: Callable[..., str]
) -> None:
    file = recordings.folder(tmp_path / "saved", [4]) / "env.yaml"
    file.unlink(missing_ok=True)
    if kind == "folder":
        file.mkdir()
    elif kind == "pipe":
        os.mkfifo(file)
    else:
        file.write_bytes(TEXTS[kind])
    assert str(file.parent) in refused(data.main, "info", f"source={file.parent}")


@pytest.mark.parametrize("text", ["[1]", '{"earlier": 5}', '{"earlier": "abc"}', "[" * 10**5, "\0"])
def test_notes_of_earlier_starts_that_cannot_be_read_are_replaced(
    text: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "version.json").write_text(text)
    capsys.readouterr()
    assert train.main(tiny_run.argv(run)) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {run}/version.json cannot be read and is replaced")
    assert json.loads((run / "version.json").read_text())["earlier"] == []


# ----------------------------------------------------------------------------------------- episodes


def header(shape: str, kind: str = "<f4") -> bytes:
    file = io.BytesIO()
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}"
    text += " " * (63 - (len(text) + 10) % 64) + "\n"
    file.write(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode())
    return file.getvalue()


MEMBERS: dict[str, bytes] = {
    "no array": b"hello",
    "nothing": b"",
    "more than there is": header("(1000000000000,)"),
    "beyond all numbers": header(f"({2**62}, {2**62})"),
    "less than nothing": header("(-4,)") + bytes(16),
    "no rows": header("()") + bytes(4),
    "objects": header("(4,)", "|O") + bytes(32),
    "text for a shape": header("'abc'"),
    "deep": header("(" * 3000 + ")" * 3000),
    "text": header("(4,)", "<U1") + bytes(16),
}


@pytest.mark.parametrize("kind", [*MEMBERS, "a pipe", "a folder", "a password", "a bomb"])
def test_saved_episodes_that_cannot_be_are_named(
    kind: str, tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = recordings.folder(tmp_path / "saved", [4])
    file = folder / "000000.npz"
    episode = dict(np.load(file))
    file.unlink()
    if kind == "a pipe":
        os.mkfifo(file)
    elif kind == "a folder":
        file.mkdir()
    else:
        member = MEMBERS.get(kind, header("(4,)") + bytes(16))
        if kind == "a bomb":
            member = header(f"({2**24},)") + bytes(2**26)
            free = type("Free", (), {"available": 2**20})
            monkeypatch.setattr("psutil.virtual_memory", lambda: free)
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, value in episode.items():
                if name != "reward":
                    packed = io.BytesIO()
                    np.save(packed, value)
                    archive.writestr(f"{name}.npy", packed.getvalue())
            archive.writestr("reward.npy", member)
        if kind == "a password":
            packed = file.read_bytes()
            at = packed.rindex(b"PK\x01\x02") + 8
            file.write_bytes(packed[:at] + b"\x01" + packed[at + 1 :])
    line = refused(data.main, "info", f"source={folder}", WALK)
    assert str(file) in line


@pytest.mark.parametrize(
    "name", ["foo", "foo-v", "../foo-v0", "foo-v²", "/foo-v0", "a//b-v0", "-v"]
)
def test_a_dataset_without_a_version_is_refused_first(
    name: str, tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    folder = recordings.folder(tmp_path / "saved", [4])
    argv = ["to_minari", f"source={folder}", f"dataset={name}", WALK]
    line = refused(data.main, *argv)
    assert f"{name} is not the id of a Minari dataset; it is written NAME-vN" in line
    assert not list(tmp_path.glob("minari/*"))
    assert "is not the id" in refused(data.main, "info", f"source=minari:{name}")


def test_a_dataset_that_fails_in_the_middle_leaves_nothing(
    tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    folder = recordings.folder(tmp_path / "saved", [4, 5, 6])
    (folder / "000002.npz").write_bytes((folder / "000002.npz").read_bytes()[:-400])
    line = refused(data.main, "to_minari", f"source={folder}", "dataset=a/b/c-v0", WALK)
    assert "000002.npz" in line
    assert not list(tmp_path.glob("minari/*"))


@pytest.mark.parametrize("there", [False, True])
def test_collecting_that_fails_in_the_middle_leaves_nothing(
    there: bool, tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dreamer.datasets import recorded

    out, save = tmp_path / "new" / "saved", recorded.save
    if there:
        out.mkdir(parents=True)

    def full(folder: Path, number: int, episode: Any) -> Path:
        if number == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return save(folder, number, episode)

    monkeypatch.setattr(recorded, "save", full)
    argv = ["collect", f"out={out}", WALK, "episodes=4", "num_envs=1"]
    assert "No space left on device" in refused(data.main, *argv)
    assert list(tmp_path.rglob("*")) == ([out.parent, out] if there else [])


# ------------------------------------------------------------------------- cut off, forged, linked


def test_a_configuration_that_lost_its_end_is_refused(run: Path) -> None:
    """At any line, and in the middle of the last one; by every way to it."""
    file = run / "config.yaml"
    whole = file.read_text()
    lines = whole.splitlines(keepends=True)
    cuts = ["".join(lines[:count]) for count in (2, 9, 60, len(lines) - 5, len(lines) - 1)]
    for text in [*cuts, whole[:-4], whole[: whole.index("run:\n")]]:
        file.write_text(text)
        for options in ([f"config={file}"], [f"run.dir={run}"]):
            with pytest.raises(UserError, match=f"^{file} .*(is cut off|not yaml)"):
                compose(options)
        with pytest.raises(UserError, match=f"^{file} "):
            dreamer.load(run)
    older = [line for line in lines if "join_seconds" not in line and "  mask:" not in line]
    file.write_text("".join(line for line in older if "prefetch" not in line))
    assert compose([f"run.dir={run}"]).run.join_seconds == 300
    file.write_text(whole.replace("  suite: gymnasium", "  suite: null"))
    with pytest.raises(UserError, match=f"^{file}: env.suite=null: expected one of"):
        compose([f"config={file}"])


FORGED = (
    *('!!int ""', '!!float ""', "!!bool q", f"0x{'f' * 5000}", "2020-01-01", "!!set {a}", "[1]"),
    *("!!omap [a: 1]", "!!binary aGk=", '"\\ud800"', "{2020-01-01: 2}", str(2**63)),
)


@pytest.mark.parametrize("value", FORGED)
def test_forged_values_are_one_line_with_the_file(value: str, run: Path) -> None:
    file = run / "config.yaml"
    header, _, body = file.read_text().partition("\n")
    kept = [line for line in body.splitlines() if "  suite:" not in line]
    body = "\n".join(kept).replace("env:\n", f"env:\n  suite: {value}\n")
    for text in (f"{header}\n{body}", body):
        file.write_text(text)
        with pytest.raises(UserError, match=f"^{file}[: ]") as caught:
            compose([f"config={file}"])
        assert "\n" not in str(caught.value)
    file.write_text(f"{header}\n{body}")
    with pytest.raises(UserError, match=f"^{file}[: ]"):
        compose([f"run.dir={run}"])
    with pytest.raises(UserError, match=f"^{file}[: ]"):
        dreamer.load(run)


@pytest.mark.parametrize("options", [{"seed": 10**5000}, {"env.kwargs": {"a": [2**63]}}])
def test_numbers_that_no_file_holds_are_refused_first(options: dict[str, Any]) -> None:
    (key,) = options
    with pytest.raises(UserError, match=rf"^{key}.*(an integer of|numbers of 64 bits)"):
        compose(options)


def test_no_pipe_or_device_is_waited_for(
    run: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    spaces = recordings.folder(tmp_path / "saved", [4]) / "spaces.json"
    spaces.unlink(missing_ok=True)
    os.mkfifo(spaces)
    with pytest.raises(UserError, match=f"{spaces} cannot be read as the spaces"):
        recorded.read_spaces(spaces.parent, "saved")
    (run / "config.yaml").unlink()
    os.mkfifo(run / "config.yaml")
    assert f"{run}/config.yaml cannot be read: it is a pipe" in refused(
        train.main, f"run.dir={run}"
    )
    with pytest.raises(UserError, match="config=/dev/zero: cannot be read: it is a pipe"):
        compose(["config=/dev/zero"])
    assert not importing.is_saved(str(run))
    large = tmp_path / "large.yaml"
    with large.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(UserError, match=f"config={large}: cannot be read: it has more than"):
        compose([f"config={large}"])
