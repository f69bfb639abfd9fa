"""What a saved file may run: what its user has named, and nothing else."""

import json
import os
import shlex
import shutil
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import yaml

import dreamer
from dreamer.checkpoint import storage
from dreamer.checkpoint.folder import HEADER
from dreamer.cli import compose, data, export, train
from dreamer.cli import eval as evaluation
from dreamer.config import serialization, trust
from dreamer.envs import registry
from dreamer.errors import UserError, exit_on_user_error
from dreamer.system import files, importing
from dreamer.training import train as training
from dreamer.training.trainer import Trainer
from tests import probe_envs, tiny_run

ENTRY = "tests.config.test_trust:touching"


def touching(mark: str) -> gymnasium.Env:
    """An environment like that of the finished run, whose making leaves a mark."""
    Path(mark).touch()
    return probe_envs.Drawn()


@pytest.fixture(autouse=True)
def new_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A state folder of its own, and a process in which nothing was named; calls start others."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))

    def forget() -> None:
        monkeypatch.setattr(trust, "_allowed", set())

    forget()
    return forget


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """What foreign code would make."""
    return tmp_path / "mark"


def foreign(run: Path, target: Path, **env: Any) -> Path:
    """A copy of a run with another environment in its configuration."""
    shutil.copytree(run, target)
    edit(target / "config.yaml", lambda tree: tree["env"].update(env))
    return target


def edit(file: Path, change: Callable[[dict], None]) -> None:
    header = file.read_text().partition("\n")[0]
    tree = yaml.safe_load(file.read_text())
    change(tree)
    keeps = header + "\n" if header.startswith("#") else ""
    file.write_text(keeps + yaml.safe_dump(tree))


@pytest.fixture(scope="module")
def run(tmp_path_factory: Any) -> Path:
    return tiny_run.finished(tmp_path_factory)[0]


@pytest.fixture(scope="module")
def episodes(run: Path, tmp_path_factory: Any) -> Path:
    """Recorded from the run."""
    folder = tmp_path_factory.mktemp("recorded") / "episodes"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(folder.parent / "state"))
        named = f"{probe_envs.task('Drawn')}"
        data.main(["collect", f"out={folder}", f"run={run}", named, "episodes=2", "platform=cpu"])
    return folder


def refused(main: Callable[[list[str]], int], *argv: str) -> str:
    with pytest.raises(UserError) as caught:
        main([*argv])
    return str(caught.value)


def foreign_environments(tmp_path: Path, mark: Path) -> Iterator[dict[str, Any]]:
    yield {"entry_point": "os:system", "kwargs": {"command": f"touch {mark}"}}
    package = tmp_path / "evil_package.py"
    package.write_text(f"open({str(mark)!r}, 'w')\n")
    yield {"task": "evil_package:Evil-v0"}


@pytest.mark.parametrize("number", [0, 1], ids=["entry_point", "package"])
def test_nothing_of_a_foreign_run_is_run(
    number: int, run: Path, tmp_path: Path, mark: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By none of the commands that need its environment, and not by its library."""
    monkeypatch.syspath_prepend(tmp_path)
    env = list(foreign_environments(tmp_path, mark))[number]
    copy = foreign(run, tmp_path / "run", **env)
    out = f"out={tmp_path / 'new'}"
    lines = [
        refused(evaluation.main, f"run={copy}", "episodes=1", "platform=cpu"),
        refused(data.main, "collect", f"run={copy}", out, "platform=cpu"),
        refused(lambda _: dreamer.load(copy).make_env()),
        refused(lambda _: dreamer.train(dreamer.load(copy).config)),
        refused(lambda _: registry.make(dreamer.load(copy).config.env, 1, 0)),
    ]
    shown = f"env.entry_point=os:system 'env.kwargs={{command: \"touch {mark}\"}}': "
    for line in lines:
        assert line.startswith([shown, "env.task=evil_package:Evil-v0: "][number])
        assert "trust=true" in line.lower()
    assert "repeat it on the command line" in lines[0]
    assert lines[3].endswith("; if you trust it, add trust=True, as in "
                             "dreamer.train(config, trust=True)")  # fmt: skip
    assert not mark.exists()
    assert "evil_package" not in sys.modules
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / "state").exists()


def test_what_can_be_read_makes_no_environment(
    run: Path, episodes: Path, tmp_path: Path, mark: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    env = {"entry_point": "os:system", "kwargs": {"command": f"touch {mark}"}}
    copy = foreign(run, tmp_path / "run", **env)
    recorded = shutil.copytree(episodes, tmp_path / "episodes")
    edit(recorded / "env.yaml", lambda tree: tree.update(env))
    for source in (copy, recorded):
        assert data.main(["info", f"source={source}"]) == 0
        shown = capsys.readouterr().out
        assert "os:system" in shown
        assert "action.action: int32 [] of 3 classes" in shown
    if _has_minari():
        monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
        for number, source in enumerate((copy, recorded)):
            assert data.main(["to_minari", f"source={source}", f"dataset=foreign-v{number}"]) == 0
    (recorded / "spaces.json").unlink()  # as it was before they were saved
    for command in (["info"], ["to_minari", "dataset=foreign-v2"]):
        line = refused(data.main, *command, f"source={recorded}")
        assert line.startswith(f"{recorded / 'spaces.json'} cannot be read as the spaces")
    assert not mark.exists()


def _has_minari() -> bool:
    try:
        import minari
    except ImportError:
        return False
    return minari is not None


@pytest.mark.parametrize(
    "content",
    ["", "[1]", "{}", '{"observations": {}, "actions": {}, "native": null}', "[" * 100_000],
)
def test_spaces_that_cannot_be_are_refused(content: str, episodes: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(episodes, tmp_path / "episodes")
    (copy / "spaces.json").write_text(content)
    line = refused(data.main, "info", f"source={copy}")
    assert line.startswith(f"{copy}/spaces.json cannot be read as the spaces of an environment: ")


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("native", {"kind": "discrete", "shape": [], "count": [7], "start": [0], "dtype": "int64"}),
        ("native", {"kind": "box", "shape": [2], "dtype": "float32", "low": 0, "high": 1}),
        ("native", {"kind": "box", "shape": [2**20] * 2, "dtype": "int8", "low": 0, "high": 1}),
        ("actions", {"action": {"shape": [], "dtype": "int32", "low": -1, "high": 3}}),
        ("observations", {"observation": {"shape": [3], "dtype": "object"}}),
    ],
)
def test_spaces_that_do_not_go_together_are_refused(
    key: str, change: Any, episodes: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(episodes, tmp_path / "episodes")
    saved = json.loads((copy / "spaces.json").read_text())
    (copy / "spaces.json").write_text(json.dumps(saved | {key: change}))
    assert "cannot be read as the spaces" in refused(data.main, "info", f"source={copy}")


@pytest.mark.slow
def test_a_foreign_agent_is_exported_without_its_environment(
    run: Path, tmp_path: Path, mark: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On what its replay holds, or on random observations where that is left out."""
    env = {"entry_point": "os:system", "kwargs": {"command": f"touch {mark}"}}
    copy = foreign(run, tmp_path / "run", **env)
    options = ("steps=10", "num_envs=2", "platform=cpu", "platforms=cpu")
    for name, kind in (("one", "recorded"), ("two", "random")):
        assert export.main([f"run={copy}", f"out={tmp_path / name}", *options]) == 0
        assert f"does on 20 {kind} observations" in capsys.readouterr().out
        form = json.loads((tmp_path / name / "policy.json").read_text())
        assert form["action"]["action"] == {
            **{"shape": [], "dtype": "int32", "classes": 3, "start": 0}
        }
        shutil.rmtree(copy / "checkpoints" / "100" / "replay", ignore_errors=True)
    saved = copy / "checkpoints" / "100"
    meta = storage.read(saved).meta
    del meta["spaces"]["native"]
    storage.amend(saved, meta, None)
    assert export.main([f"run={copy}", f"out={tmp_path / 'three'}", *options]) == 0
    assert not mark.exists()


def test_what_was_named_is_remembered_by_later_processes(
    run: Path, tmp_path: Path, mark: Path, new_process: Callable[[], None]
) -> None:
    copy = foreign(run, tmp_path / "run", entry_point=ENTRY, kwargs={"mark": str(mark)})
    named = [f"env.entry_point={ENTRY}", f"env.kwargs={{mark: {mark}}}"]
    assert dreamer.load(copy).config.env.name == ENTRY
    compose.compose(named)
    assert not mark.exists()
    new_process()
    agent = dreamer.load(shutil.move(copy, tmp_path / "moved"))
    agent.make_env().close()
    assert mark.exists()
    other = foreign(run, tmp_path / "other", entry_point=ENTRY, kwargs={"mark": f"{mark}2"})
    assert f"{mark}2" in refused(lambda _: dreamer.load(other).make_env())
    bare = foreign(run, tmp_path / "bare", entry_point=ENTRY)
    assert "has never named" not in refused(lambda _: dreamer.load(bare).make_env())
    file = tmp_path / "state" / "dreamer" / "trusted"
    lines = file.read_text().splitlines()
    assert lines[-1].endswith(f" env.entry_point={ENTRY} 'env.kwargs={{mark: \"{mark}\"}}'")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    compose.compose(named)
    assert file.read_text().splitlines() == lines
    file.write_text("\n".join(lines[:-1]))  # forgotten
    new_process()
    assert "never named" in refused(lambda _: agent.make_env())


@pytest.mark.slow
def test_each_way_to_trust_a_run(
    run: Path,
    tmp_path: Path,
    mark: Path,
    new_process: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By an option, by repeating it beside the run, by a program; each is remembered."""

    def stop(*_: Any, **__: Any) -> None:
        raise UserError("would play")

    monkeypatch.setattr("dreamer.cli.evaluate_run.evaluate", stop)
    copy = foreign(run, tmp_path / "run", entry_point=ENTRY, kwargs={"mark": str(mark)})
    play = [f"run={copy}", "episodes=1", "num_envs=1", "platform=cpu", f"out={tmp_path / 'a'}"]
    named = [f"env.entry_point={ENTRY}", f"env.kwargs={{mark: {mark}}}"]
    ways: list[Callable[[], Any]] = [
        lambda: refused(evaluation.main, *play, "trust=true"),
        lambda: refused(evaluation.main, *play, *named),
        lambda: dreamer.load(copy, trust=True).make_env(),
        lambda: dreamer.make_env("gymnasium", entry_point=ENTRY, kwargs={"mark": str(mark)}),
    ]
    for way in ways:
        shutil.rmtree(tmp_path / "state", ignore_errors=True)
        new_process()
        assert "never named" in refused(lambda _: dreamer.load(copy).make_env())
        way()
        assert mark.exists()
        mark.unlink()
        new_process()
        dreamer.load(copy).make_env().close()
        mark.unlink()
    wrong = refused(evaluation.main, *play, f"env.entry_point={ENTRY}")
    assert wrong.startswith(f"env={ENTRY}: the run in {copy} has {ENTRY} with other env.kwargs")
    assert not mark.exists()


def test_a_recipe_and_a_plain_id_need_no_trust(run: Path, tmp_path: Path) -> None:
    """Numbers among their arguments neither; text might name a file or code."""
    for env in ({"task": "Pendulum-v1"}, {"task": "Pendulum-v1", "kwargs": {"g": 9.5}}):
        copy = foreign(run, tmp_path / str(len(env)), **env)
        registry.make(dreamer.load(copy).config.env, 1, 0).close()
    old = {"task": "GymV26Environment-v0", "kwargs": {"env_id": "evil:Evil-v0"}}
    line = refused(lambda _: dreamer.load(foreign(run, tmp_path / "old", **old)).make_env())
    assert line.startswith(
        "env.task=GymV26Environment-v0 'env.kwargs={env_id: \"evil:Evil-v0\"}': "
    )
    assert not (tmp_path / "state").exists()


def test_what_a_configuration_reaches_outside(run: Path, tmp_path: Path) -> None:
    """By settings of a saved one; folders inside of the run are its own."""
    config = dreamer.load(run).config

    def settle(*given: str, **changes: Any) -> None:
        tree = config.model_dump()
        for key, value in changes.items():
            section, _, name = key.partition("__")
            if name:
                tree[section][name] = value
            else:
                tree[key] = value
        trust.settle(type(config).model_validate(tree), {"run.dir", "env.task", *given}, str(run))

    outside = {
        "xla_flags": "--xla_dump_to=/home/me",
        "run__ray_address": "10.0.0.9:6379",
        "run__coordinator": "10.0.0.9:6379",
        "checkpoint__dir": "/home/me/checkpoints",
        "replay__folder": "/home/me",
    }
    for key, value in outside.items():
        option = key.replace("__", ".")
        assert refused(lambda _, k=key, v=value: settle(**{k: v})).startswith(f"{option}={value}: ")
    for key, value in outside.items():
        settle(key.replace("__", "."), **{key: value})  # named by the user
        settle(**{key: value})
    settle(checkpoint__dir=str(run / "saves"), run__coordinator="none")
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "checkpoints").symlink_to(tmp_path)
    assert refused(lambda _: settle(run__dir=str(linked))).startswith(
        f"checkpoint.dir={tmp_path}: "
    )
    assert refused(lambda _: trust.settle(config, {"env.task"}, str(tmp_path))).startswith(
        "run.dir="
    )


@pytest.mark.parametrize("home", ["none", "missing", "read-only", "file"])
def test_without_a_home_it_works(
    home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "home"
    if home == "none":
        monkeypatch.setenv("XDG_STATE_HOME", "")
        monkeypatch.setattr(os.path, "expanduser", str)  # as where there is no home folder
    elif home == "missing":
        monkeypatch.setenv("XDG_STATE_HOME", "relative")
        monkeypatch.setenv("HOME", str(place))
    elif home == "read-only":
        monkeypatch.setenv("XDG_STATE_HOME", "/proc/1/none")
    else:
        place.touch()
        monkeypatch.setenv("XDG_STATE_HOME", str(place))
    env = compose.compose(["env.entry_point=tests.probe_envs:Drawn"]).env
    registry.make(env, 1, 0).close()
    assert home == "file" or not place.exists()


@pytest.mark.parametrize("planted", ["link", "fifo", "folder", "writable", "folder of others"])
def test_a_file_that_others_may_have_made_is_not_believed(
    planted: str, run: Path, tmp_path: Path, new_process: Callable[[], None],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    named = ["env.entry_point=tests.probe_envs:Drawn"]
    env = compose.compose(named).env
    file = tmp_path / "state" / "dreamer" / "trusted"
    text = file.read_text()
    victim = tmp_path / "victim"
    victim.write_text(text)
    if planted == "writable":
        file.chmod(0o666)
    elif planted == "folder of others":
        file.parent.chmod(0o777)
    else:
        file.unlink()
        {"link": lambda: file.symlink_to(victim), "fifo": lambda: os.mkfifo(file)}.get(
            planted, file.mkdir
        )()
    new_process()
    assert "never named" in refused(lambda _: registry.make(env, 1, 0))
    compose.compose([*named, "env.kwargs={render_mode: none}"])
    assert victim.read_text() == text
    if planted in ("link", "writable"):  # replaced by one of the user's own
        assert stat.S_ISREG(file.lstat().st_mode)
        assert stat.S_IMODE(file.lstat().st_mode) == 0o600
    if planted == "folder of others":
        assert "nothing is remembered" in capsys.readouterr().err
        assert file.read_text() == text


def test_what_is_shown_acts_on_no_terminal(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kwargs = {"a": "\x1b[2Jgone\u202e", "b": "two\nlines", "n": {"c": [1, True, None, 0.5]}}
    copy = foreign(run, tmp_path / "run", entry_point="os:system", kwargs=kwargs)
    line = refused(lambda _: dreamer.load(copy).make_env())
    assert line.isprintable()
    assert "{c: [1, true, null, 0.5]}" in line
    other = foreign(run, tmp_path / "other", entry_point="a:\x1b[2J")
    assert data.main(["info", f"source={other}"]) == 0
    assert "\x1b" not in capsys.readouterr().out
    named = ["env.entry_point=os:system", "env.kwargs={a: 'x y', b: 1.5, c: [p/q.txt, true]}"]
    (claim,) = trust.code(compose.compose(named).env)
    again = [
        "env.entry_point=os:system",
        f"env.kwargs={str(claim).partition('env.kwargs=')[2][:-1]}",
    ]
    assert compose.compose(again).env == compose.compose(named).env  # can be typed as it is shown


def test_a_run_folder_is_never_imported_from(run: Path, tmp_path: Path) -> None:
    """Where a command is started inside of it, files there hide no package, in no process."""
    copy, mark = tiny_run.copy(run, tmp_path / "run"), tmp_path / "mark"
    inside = copy / "checkpoints" / "100"
    for name in ("jax", "yaml", "hydra", "typing", "own_module"):
        (inside / f"{name}.py").write_text(f"open({str(mark)!r}, 'w')\n")
    root = str(Path(__file__).resolve().parents[2])
    command = ["-m", "dreamer.envs", "check", "gymnasium", "entry_point=own_module:make"]
    done = subprocess.run(
        [sys.executable, *command],
        cwd=inside,
        env=os.environ | {"PYTHONPATH": root},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "there is no module own_module among installed packages, and modules of" in done.stderr
    assert not mark.exists()


def test_a_folder_of_saved_files_is_not_added_to_the_path(
    run: Path, episodes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path), str(run)])
    for folder in (run, run / "checkpoints", run / "checkpoints" / "100", episodes):
        importing.add(str(folder))
    assert sys.path == [str(tmp_path)]
    importing.add("/somewhere")
    assert sys.path == ["/somewhere", str(tmp_path)]
    assert HEADER.startswith(importing.MARK)


@pytest.mark.parametrize(
    ("names", "saved"),
    [
        (["000001.npz"], True),
        (["first.npz", "env.yaml"], True),
        (["first.npz", "spaces.json"], True),
        (["state/array", "meta/metadata"], True),
        (["state/array", "checkpoint.json"], True),
        (["data.npz"], False),
        (["env.yaml", "spaces.json"], False),
        (["state/array"], False),
        (["checkpoint.json", "config.yaml"], False),  # of others
    ],
)
def test_folders_of_saved_files_are_recognised(
    names: list[str], saved: bool, tmp_path: Path
) -> None:
    (tmp_path / "inside").mkdir()
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"epoch": 1}')
    assert importing.is_saved(str(tmp_path)) is saved
    assert importing.is_saved(str(tmp_path / "inside")) is saved


def test_the_path_is_left_as_it_is_beside_pipes_and_is_mentioned_where_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in importing.STARTS:
        os.mkfifo(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    importing.leave_out_saved()
    assert sys.path[0] == ""
    make = ["env.entry_point=not_there:make"]
    line = refused(lambda _: registry.make(compose.compose(make).env, 1, 0))
    assert f"there is no module not_there in {tmp_path} or among" in line
    (tmp_path / "checkpoint.json").unlink()
    (tmp_path / "checkpoint.json").write_text('{"checksum": 1, "content": {}}')
    monkeypatch.setenv("PYTHONSAFEPATH", "")
    importing.leave_out_saved()
    assert sys.path[0] != ""
    line = refused(lambda _: registry.make(compose.compose(make).env, 1, 0))
    assert f"and modules of {tmp_path} are not imported, for it holds saved files" in line


def test_the_status_and_the_one_line(
    run: Path, tmp_path: Path, mark: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    env = {"entry_point": "os:system", "kwargs": {"command": f"touch {mark}"}}
    copy = foreign(run, tmp_path / "run", **env)
    argv = [f"run={copy}", "episodes=1", "platform=cpu"]
    assert exit_on_user_error(lambda: evaluation.main(argv)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    shown = f"env.entry_point=os:system 'env.kwargs={{command: \"touch {mark}\"}}'"
    assert line == (
        f"error: {shown}: a saved file names code that you have never named; if you trust it, "
        "repeat it on the command line as it is written here, or add trust=true (in Python "
        "trust=True)"
    )
    assert not mark.exists()


@pytest.mark.slow
def test_what_another_run_holds_is_read_without_its_environment(
    run: Path, tmp_path: Path, mark: Path
) -> None:
    """Its replay and its weights, into a new run in an environment that the user named."""
    env = {"entry_point": "os:system", "kwargs": {"command": f"touch {mark}"}}
    copy = foreign(run, tmp_path / "run", **env)
    changes = (f"replay.load={copy}", f"run.init_from={copy}")
    with Trainer(tiny_run.config(tmp_path / "new", *changes)) as trainer:
        assert trainer.loop.loaded
    assert not mark.exists()


@pytest.mark.parametrize(
    ("name", "dotted"),
    [("a\0b", "run.dir"), ("a\ud800", "checkpoint.dir"), ("a\ud800", "replay.folder")],
)
def test_names_that_no_folder_can_have_are_refused(name: str, dotted: str, tmp_path: Path) -> None:
    section, _, key = dotted.partition(".")
    config = compose.compose([f"run.dir={tmp_path}"])
    tree = config.model_dump()
    tree[section][key] = name
    line = refused(lambda _: dreamer.train(type(config).model_validate(tree)))
    assert line == (
        f"{trust.Claim({dotted: name})}: no folder can have that name; choose another one"
    )


def claim_of(**kwargs: Any) -> trust.Claim:
    (claim,) = trust.code(compose.compose({"env.entry_point": "a:b", "env.kwargs": kwargs}).env)
    return claim


def test_values_of_other_types_are_others(tmp_path: Path) -> None:
    values = [
        {"x": 1}, [["x", 1]], {1: "v"}, {"1": "v"}, {1: 2, "1": "x"}, {True: "v"},
        1, 1.0, True, "1", "true", None, "null", 2**60, -1, "0x1",
    ]  # fmt: skip
    assert len({claim_of(a=value, text="").digest for value in values}) == len(values)
    assert claim_of(a={"x": 1, "y": 2}).digest == claim_of(a={"y": 2, "x": 1}).digest
    sets = [trust.Claim({"env.kwargs": {"a": set(names)}}) for names in ("abcdef", "fedcba")]
    assert sets[0].digest == sets[1].digest != claim_of(a=list("abcdef")).digest


def test_a_saved_configuration_is_known_by_its_keys_of_any_type() -> None:
    kwargs = {"a": {1: "v", "1": "w", "x": [1.5, None, True]}}
    config = compose.compose({"env.entry_point": "a:b", "env.kwargs": kwargs})
    read = serialization.from_yaml(serialization.to_yaml(config))
    assert read.env.kwargs == kwargs
    assert trust.known(read.env)


@pytest.mark.parametrize(
    ("value", "repeats"),
    [
        ("x y", True), ("curl a | sh", True), ([1, -2.5, None, True, "p/q.txt"], True),
        ({"b_c": "a \"b\""}, True), ("'", True), ("a'b", True), ("true", True), ("", True),
        ("a\\b", False), ("a\tb", False), ("two  spaces", False), ("two\nlines", False),
        ("\x1b", False), ("${seed}", False), ({"a b": 1}, False), ({1: 2}, False),
        ({"true": 1}, False), ("x" * 2000, False), ("a\u2028", False),
    ],
)  # fmt: skip
def test_only_what_can_be_repeated_is_to_be_repeated(
    value: Any, repeats: bool, new_process: Callable[[], None], tmp_path: Path
) -> None:
    claim = claim_of(a=value, text="")
    shutil.rmtree(tmp_path / "state")
    new_process()
    env = compose.preview([]).env.model_copy(
        update={"entry_point": "a:b", "kwargs": {"a": value, "text": ""}}
    )
    line = refused(lambda _: trust.require(env))
    assert ("repeat it on the command line" in line) is repeats
    assert "trust=true" in line
    if repeats:
        compose.compose(shlex.split(line.partition(": a saved file")[0]))
        assert trust.known(env)
        assert claim.digest in (tmp_path / "state" / "dreamer" / "trusted").read_text()


def test_starts_at_once_all_remember(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others that decide between what one reads and what it writes lose nothing."""
    write, waiting = files.write_atomic, threading.Barrier(4)

    def slow(*arguments: Any) -> None:
        time.sleep(0.02)
        write(*arguments)

    def decide(number: int) -> None:
        waiting.wait()
        trust.settle(config.model_copy(update={"xla_flags": f"--number={number}"}), ["xla_flags"])

    config = compose.preview([])
    monkeypatch.setattr(files, "write_atomic", slow)
    threads = [threading.Thread(target=decide, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = (tmp_path / "state" / "dreamer" / "trusted").read_text().splitlines()
    assert sum("xla_flags=--number=" in line for line in lines) == 4


def test_a_file_chooses_no_folder_but_where_runs_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "foreign.yaml"
    file.write_text("run: {dir: .config/new}\n")
    line = refused(lambda _: compose.compose([f"config={file}"]))
    assert line.startswith(f"run.dir=.config/new: {file} names ")
    assert compose.compose([f"config={file}", "run.dir=mine"]).run.dir == "mine"
    file.write_text("run: {dir: runs/new}\n")
    assert compose.compose([f"config={file}"]).run.dir == "runs/new"
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "new").symlink_to(tmp_path.parent)
    assert refused(lambda _: compose.compose([f"config={file}"])).startswith("run.dir=runs/new: ")
    file.write_text("env: {entry_point: 'os:system'}\nrun: {dir: /elsewhere}\n")
    assert train.main([f"config={file}", "--cfg", "job"]) == 0
    assert "  entry_point: os:system" in capsys.readouterr().out
    assert not (tmp_path / "state").exists()


def test_no_run_of_several_seeds_follows_a_link(tmp_path: Path) -> None:
    (tmp_path / "run-seed1").symlink_to(tmp_path / "victim")
    with pytest.raises(UserError, match="run-seed1 is a link"):
        training.train(compose.compose([f"run.dir={tmp_path / 'run'}", "run.seeds=2"]))
    assert not (tmp_path / "run-seed0").exists()
