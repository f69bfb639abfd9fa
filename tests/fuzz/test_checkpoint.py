"""A checkpoint of which any bytes were changed is restored as it was written, or refused."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreamer.run import checkpoint
from dreamer.run.checkpoint import DOCUMENT
from tests.fuzz.one_line import one_line
from tests.fuzz.profiles import examples
from tests.run.test_checkpoint import write
from tests.run.test_checkpointer import META, REPLAY, assert_same, train_state


@pytest.fixture(scope="module")
def written() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield write(Path(folder) / "7")


DIGITS = [str(digit).encode() for digit in range(10)]  # what JSON stays readable with


@st.composite
def changes(draw: Any) -> tuple[str, float, bytes, int]:
    """How one file is changed: what is done, where, by which bytes, and how many are lost."""
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
def test_changed_bytes_are_noticed(
    written: Path, in_document: bool, number: int, how: tuple
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copytree(written, Path(folder) / "8"))
        files = sorted(path for path in copy.rglob("*") if path.is_file())
        change(copy / DOCUMENT if in_document else files[number % len(files)], *how)
        with one_line():
            state, replay, meta = checkpoint.restore(copy, train_state())
            assert_same(state, train_state(1))
            assert_same(replay, REPLAY)
            assert meta == META
