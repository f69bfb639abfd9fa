"""Checkpoints that all hosts have: the newest that is undamaged on all is restored."""

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dreamer.checkpoint import manager, shared, storage
from dreamer.checkpoint.manager import Checkpointer, SaveError
from dreamer.distributed import mesh
from dreamer.errors import UserError
from tests.checkpoint.test_manager import META
from tests.several import together

PATTERN = {"weights": np.zeros(3, np.float32)}


def save(folder: Path, *steps: int, hosts: int = 2, keep: int = 9) -> Checkpointer:
    made = Checkpointer(folder, keep)
    for step in steps:
        made.save(step, {"weights": np.full(3, step, np.float32)}, None, META | {"hosts": hosts})
    made.wait()
    return made


def restore(monkeypatch: pytest.MonkeyPatch, folders: list[Path], fresh: str = "") -> list[Any]:
    """The weights that each host restores; `fresh` lists the hosts whose folder is new."""

    def work(number: int) -> Any:
        made = Checkpointer(folders[number])
        found = shared.restore(made, PATTERN, str(number) in fresh)
        return None if found is None else int(found[0]["weights"][0])

    return together(monkeypatch, len(folders), work)


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    return [tmp_path / "0", tmp_path / "1"]


def test_the_newest_that_both_have(folders: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    save(folders[0], 10, 20, 30)
    save(folders[1], 10, 20)
    assert restore(monkeypatch, folders) == [20, 20]
    assert [manager.steps(folder) for folder in folders] == [[10, 20], [10, 20]]


def test_damage_on_one_host_makes_all_use_an_older_one(
    folders: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in folders:
        save(folder, 10, 20)
    (folders[1] / "20/checkpoint.json").write_text("{}")
    assert restore(monkeypatch, folders) == [10, 10]
    assert [manager.steps(folder) for folder in folders] == [[10], [10]]
    assert (folders[1] / "20.damaged").is_dir()
    warnings = capsys.readouterr().err
    assert warnings.count("it is now named 20.damaged, and training rolls back to step 10") == 1


def test_a_run_that_was_saved_once_on_one_host_starts_over(
    folders: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save(folders[0], 10)
    assert restore(monkeypatch, folders) == [None, None]
    assert manager.steps(folders[0]) == []
    assert (folders[0] / "10.aside/checkpoint.json").exists()
    line = f"{folders[0]}/10 is on this host alone; it is now named 10.aside, and the run"
    assert line in capsys.readouterr().err


@pytest.mark.parametrize("fresh", ["", "1"])
def test_a_host_without_checkpoints_is_refused(
    fresh: str, folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    save(folders[0], 10, 20)
    with pytest.raises(UserError, match="the hosts have no checkpoint of the same step, and"):
        restore(monkeypatch, folders, fresh)
    assert manager.steps(folders[0]) == [10, 20]


def test_a_rename_that_fails_is_one_line(
    folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in folders:
        save(folder, 10, 20)
    (folders[1] / "20/checkpoint.json").write_text("{}")

    def refuse(*args: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(SaveError, match="cannot save a checkpoint in .*: Permission denied"):
        restore(monkeypatch, folders)


def test_a_lost_folder_is_refused(folders: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    save(folders[0], 10)
    with pytest.raises(UserError, match="the hosts have no checkpoint of the same step, and"):
        restore(monkeypatch, folders, fresh="1")
    assert manager.steps(folders[0]) == [10]


def test_if_all_are_damaged_none_is_renamed(
    folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in folders:
        save(folder, 10)
        (folder / "10/checkpoint.json").write_text("{}")
    with pytest.raises(UserError, match="is damaged: checkpoint.json has changed; .* is damaged"):
        restore(monkeypatch, folders)
    assert [manager.steps(folder) for folder in folders] == [[10], [10]]


@pytest.mark.parametrize(("saved", "now"), [(2, 3), (1, 2), (2, 1)])
def test_another_number_of_hosts_is_refused(
    saved: int, now: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [tmp_path / str(number) for number in range(now)]
    save(folders[0], 10, hosts=saved)
    line = f"this run was saved by {saved} hosts and cannot resume with {now}"
    with pytest.raises(UserError, match=line):
        restore(monkeypatch, folders)


def test_the_newest_that_all_have_is_kept(
    folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [save(folders[0], 10, 20, keep=1), save(folders[1], 10, keep=1)]
    assert manager.steps(folders[0]) == [20]
    save(folders[0], 10)

    def compare(number: int) -> None:
        shared.compare(made[number], {"weights": np.ones(3)}, 30)

    monkeypatch.setattr(mesh, "fingerprint", lambda tree: 5)
    together(monkeypatch, 2, compare)
    for step in (30, 40):
        made[0].save(step, PATTERN, None, META)
    made[0].wait()
    assert manager.steps(folders[0]) == [10, 40]


def test_a_checkpoint_that_is_being_removed_does_not_count(
    folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [save(folder, 10, 20) for folder in folders]
    for one in made:
        one.shared, one._keep = 10, 1
    started, write = threading.Event(), storage.write

    def slow(*args: Any) -> None:
        started.set()
        time.sleep(0.3)
        write(*args)

    monkeypatch.setattr(storage, "write", slow)
    made[0].save(30, PATTERN, None, META)  # the other host could not save it
    started.wait()
    monkeypatch.setattr(mesh, "fingerprint", lambda tree: 5)
    together(monkeypatch, 2, lambda number: shared.compare(made[number], PATTERN, 40))
    made[0].wait()
    assert manager.steps(folders[0]) == [10, 30]
    assert [one.shared for one in made] == [10, 10]


def test_a_failed_save_is_raised_after_hosts_have_compared(
    folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [save(folder, 10) for folder in folders]
    (folders[1] / "20/in the way").mkdir(parents=True)
    made[1].save(20, PATTERN, None, META)
    monkeypatch.setattr(mesh, "fingerprint", lambda tree: 5)
    together(monkeypatch, 2, lambda number: shared.compare(made[number], PATTERN, 30))
    with pytest.raises(SaveError, match="Directory not empty"):
        made[1].wait()


def test_other_weights_on_another_host_end_the_run(
    folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [save(folder) for folder in folders]
    monkeypatch.setattr(mesh, "fingerprint", lambda tree: tree["number"])
    with pytest.raises(UserError, match="host 1 and host 0 have other parameters at step 50"):
        together(
            monkeypatch, 2, lambda number: shared.compare(made[number], {"number": number}, 50)
        )


def test_every_bit_changes_the_fingerprint() -> None:
    devices = mesh.local_devices("cpu", 1, 4)
    tree = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros(2, np.float32)}

    def of(changed: dict[str, np.ndarray]) -> int:
        return mesh.fingerprint(mesh.replicate(changed, devices))

    same = of(tree)
    assert of({key: value.copy() for key, value in tree.items()}) == same
    for key, value in tree.items():
        for index in np.ndindex(value.shape):
            other = value.copy()
            other[index] = np.nextafter(other[index], np.float32(9))
            assert of(tree | {key: other}) != same
    swapped = tree["a"][::-1].copy()
    assert of(tree | {"a": swapped}) != same
