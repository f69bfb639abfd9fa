"""Flags of the compiler reach it, the user's last, and those it does not know are refused."""

import os

import jax
import pytest

from dreamer import start
from dreamer.errors import UserError


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "kept")
    monkeypatch.setattr(jax.config, "update", lambda *_: pytest.fail("the user's say counts"))


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
    start.runtime("auto", "--xla_gpu_graph_min_graph_size=9")
    assert os.environ["XLA_FLAGS"] == expected


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--xla_made_up=1", f"jax {jax.__version__} does not know --xla_made_up=1; correct it"),
        ("--xla_gpu_graph_min_graph_size=x", "size=x: cannot be read; correct it, or leave out"),
    ],
)
def test_flags_that_jax_does_not_know_are_refused(
    flags: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XLA_FLAGS", "")
    with pytest.raises(UserError, match=message):
        start.runtime("auto", flags)
    assert os.environ["XLA_FLAGS"] == ""
