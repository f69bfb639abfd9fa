"""A checkpoint with changed bytes or values is restored as it was written, or refused."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreamer.agents import agent_spaces
from dreamer.agents.registry import make_agent
from dreamer.checkpoint import integrity, storage
from dreamer.checkpoint.storage import DOCUMENT
from dreamer.config import Config
from tests.checkpoint.test_manager import META, REPLAY, assert_same, train_state
from tests.checkpoint.test_storage import write
from tests.fuzz.one_line import one_line
from tests.fuzz.profiles import examples


@pytest.fixture(scope="module")
def written() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield write(Path(folder) / "7")


DIGITS = [str(digit).encode() for digit in range(10)]  # what JSON stays readable with


@st.composite
def changes(draw: Any) -> tuple[str, float, bytes, int]:
    """How one file is changed: the kind, the place, the new bytes, and how many are lost."""
    what = draw(st.sampled_from(["replace", "insert", "cut", "empty", "remove"]))
    return (
        what,
        draw(st.floats(0, 1)),
        draw(st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from(DIGITS))),
        draw(st.integers(1, 64)),
    )


def change(path: Path, what: str, where: float, content: bytes, count: int) -> None:
    data = path.read_bytes()
    at = int(where * len(data))
    if what == "replace":
        data = data[:at] + content + data[at + len(content) :]
    elif what == "insert":
        data = data[:at] + content + data[at:]
    elif what == "cut":
        data = data[:at] + data[at + count :]
    elif what == "empty":
        data = b""
    path.unlink()
    if what != "remove":
        path.write_bytes(data)


@examples(60)
@given(in_document=st.booleans(), number=st.integers(0, 10**6), how=changes())
def test_changed_bytes_are_found(written: Path, in_document: bool, number: int, how: tuple) -> None:
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copytree(written, Path(folder) / "8"))
        files = sorted(path for path in copy.rglob("*") if path.is_file())
        change(copy / DOCUMENT if in_document else files[number % len(files)], *how)
        with one_line():
            state, replay, meta = storage.restore(copy, train_state())
            assert_same(state, train_state(1))
            assert_same(replay, REPLAY)
            assert meta == META


ODD = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=3),
        st.sampled_from([-1, 2**31, 2**63, 10**400, "", "x", "../x", "\0", [], {}]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=4,
)


@st.composite
def forgeries(draw: Any) -> tuple[str, int, Any, str]:
    """How one value of a document is changed: the kind, the place, and the new value."""
    what = draw(st.sampled_from(["replace", "remove", "add"]))
    return what, draw(st.integers(0, 10**6)), draw(ODD), draw(st.text(max_size=3))


def forge(content: Any, what: str, where: int, value: Any, key: str) -> None:
    """Changes something at any depth, in place."""
    places: list[tuple[Any, Any]] = []

    def look(part: Any) -> None:
        for name in list(part) if isinstance(part, dict) else range(len(part)):
            places.append((part, name))
            if isinstance(part[name], dict | list):
                look(part[name])

    look(content)
    part, name = places[where % len(places)]
    if what == "replace":
        part[name] = value
    elif what == "remove":
        del part[name]
    elif isinstance(part, dict):
        part[key] = value
    else:
        part.append(value)


@examples(40)
@given(st.lists(forgeries(), min_size=1, max_size=2))
def test_a_document_with_a_valid_checksum_is_used_or_refused_in_one_line(
    written: Path, how: list[tuple]
) -> None:
    """If it is used, its values are."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copytree(written, Path(folder) / "8"))
        content = integrity.read_document(copy / DOCUMENT)
        assert content is not None
        for one in how:
            forge(content, *one)
        integrity.write_document(copy / DOCUMENT, content)
        with one_line():
            meta = storage.restore(copy, train_state())[2]
            assert meta["step"] >= 0
            if spaces := meta.get("spaces"):
                make_agent(Config().agent, *agent_spaces.load(spaces))
