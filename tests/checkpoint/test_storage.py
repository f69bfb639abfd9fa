"""One checkpoint: it is read as it was written, or an error names the file."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer.checkpoint import integrity, storage
from dreamer.checkpoint.integrity import Damaged
from dreamer.checkpoint.schema import FORMAT
from dreamer.checkpoint.storage import DOCUMENT
from dreamer.errors import UserError
from tests.checkpoint.test_manager import META, REPLAY, assert_same, train_state


def write(path: Path, score: float | None = None) -> Path:
    state = train_state(1)
    path.mkdir()
    about = storage.document(state, META, score)
    storage.write(path, jax.tree.map(np.asarray, state), REPLAY, about)
    return path


@pytest.fixture(scope="module")
def written(tmp_path_factory: Any) -> Path:
    return write(tmp_path_factory.mktemp("written") / "7")


@pytest.fixture
def copy(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "copied"))


def largest(path: Path, part: str) -> Path:
    return max((f for f in (path / part).rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)


def flip(path: Path, part: str) -> str:
    file = largest(path, part)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    return f"{file.relative_to(path)} has changed"


def cut(path: Path, part: str) -> str:
    file = largest(path, part)
    size = file.stat().st_size
    with open(file, "r+b") as opened:
        opened.truncate(size - 1)
    return f"{file.relative_to(path)} has {size - 1:,} bytes of {size:,}"


def lose(path: Path, part: str) -> str:
    file = largest(path, part)
    file.unlink()
    return f"{file.relative_to(path)} is missing"


def lose_document(path: Path, _: str) -> str:
    (path / DOCUMENT).unlink()
    return f"{DOCUMENT} is missing"


def flip_document(path: Path, _: str) -> str:
    text = (path / DOCUMENT).read_text()
    (path / DOCUMENT).write_text(text.replace('"step": 9', '"step": 8'))
    return f"{DOCUMENT} has changed"


DAMAGES = (flip, cut, lose, lose_document, flip_document)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("part", ["state", "replay"])
def test_damage_is_named(damage: Callable[[Path, str], str], part: str, copy: Path) -> None:
    found = damage(copy, part)
    with pytest.raises(Damaged) as caught:
        storage.restore(copy, train_state())
    assert caught.value.what == f"the checkpoint {copy} is damaged: {found}"
    assert str(caught.value).startswith(f"{caught.value.what}; name another one, or resume")


def test_parameters_are_read_and_checked_alone(copy: Path) -> None:
    """Without a replay and with another optimizer."""
    shutil.rmtree(copy / "replay")
    params = train_state(1).params
    assert storage.read(copy).meta == META
    assert_same(storage.read_params(copy, params), params)
    with pytest.raises(UserError, match=r"^the checkpoint \S+/copied does not fit the config"):
        storage.read_params(copy, {"more": params})
    found = flip(copy, "state")
    with pytest.raises(Damaged, match=f"/copied is damaged: {found};"):
        storage.read_params(copy, params)


@pytest.mark.parametrize("prepare", ["missing", "empty", "foreign"])
def test_a_folder_without_a_checkpoint_is_one_line(prepare: str, tmp_path: Path) -> None:
    path = tmp_path / "12"
    if prepare != "missing":
        path.mkdir()
    if prepare == "foreign":
        (path / "notes.txt").write_text("7")
    with pytest.raises(Damaged, match=f"^{path} is not a checkpoint of a dreamer run: {DOCUMENT}"):
        storage.restore(path, {})


def test_an_unreadable_file_is_not_damaged(copy: Path) -> None:
    (copy / DOCUMENT).unlink()
    (copy / DOCUMENT).mkdir()
    with pytest.raises(
        UserError, match=r"^the checkpoint .* cannot be read: .*: Is a directory$"
    ) as error:
        storage.restore(copy, train_state())
    assert not isinstance(error.value, Damaged)


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (
            FORMAT + 1,
            f"has format {FORMAT + 1}; this .* reads format {FORMAT}; install .* or a newer one",
        ),
        (
            FORMAT - 1,
            f"has format {FORMAT - 1}; this .* reads format {FORMAT}; .* saved it$",
        ),
    ],
)
def test_another_format_is_refused_and_not_damaged(form: int, message: str, copy: Path) -> None:
    content = integrity.read_document(copy / DOCUMENT)
    assert content is not None
    integrity.write_document(copy / DOCUMENT, content | {"format": form, "more": 1})
    with pytest.raises(UserError, match=message) as error:
        storage.restore(copy, train_state())
    assert not isinstance(error.value, Damaged)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s.replace(updates=np.array([1], np.int32)),
            r"\.updates is int64\[1\] in the checkpoint and int32\[1\] in this run",
        ),
        (
            lambda s: s.replace(params={**s.params, "new": jnp.ones(1)}),
            r"\['new'\] is missing in the checkpoint and float32\[1\]",
        ),
        (
            lambda _: train_state(width=4),
            r"kernel'\] is float32\[3, 2\] in the checkpoint and float32\[4, 2\] in",
        ),
        (
            lambda s: s.replace(params={"half": s.params["half"]}),
            r"\['bias'\] is float32\[2\] in the checkpoint and missing in this run",
        ),
    ],
)
def test_a_checkpoint_of_another_structure_is_refused(
    change: Callable[[Any], Any], message: str, written: Path
) -> None:
    with pytest.raises(UserError, match=message) as raised:
        storage.restore(written, change(train_state()))
    assert "\n" not in str(raised.value)
    assert not isinstance(raised.value, Damaged)
