"""The settings under which orbax is called: in force during a call, gone afterwards."""

import contextlib
import logging
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from orbax.checkpoint._src.multihost import multihost

import dreamer
from dreamer.checkpoint import arrays
from dreamer.checkpoint.manager import Checkpointer, SaveError
from dreamer.distributed import hosts
from dreamer.errors import UserError
from tests import tiny_run
from tests.checkpoint.test_manager import META

LOGGERS = ("root", "absl", "asyncio", "orbax", "jax")


def process() -> list[Any]:
    """The settings of the process that a library must not change."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    return [
        *(sys.unraisablehook, sys.excepthook, threading.excepthook),
        *(multihost.process_index, multihost.should_skip_process_sync),
        *((x.level, x.disabled, tuple(x.handlers), tuple(x.filters)) for x in loggers),
    ]


def save(folder: Path) -> None:
    writer = Checkpointer(folder)
    writer.save(1, {"x": np.zeros(1)}, None, META)
    writer.wait()
    writer.restore(1, {"x": np.zeros(1)})


def save_and_fail(folder: Path) -> None:
    writer = Checkpointer(folder)
    (folder / "1" / "in the way").mkdir(parents=True)
    writer.save(1, {"x": np.zeros(1)}, None, META)
    with pytest.raises(SaveError):
        writer.wait()


def read_nothing(folder: Path) -> None:
    with pytest.raises(UserError):
        dreamer.load(folder)
    with pytest.raises(FileNotFoundError):
        arrays.read(folder)


@pytest.mark.parametrize("call", [save, save_and_fail, read_nothing])
@pytest.mark.parametrize("number", [1, 2])
def test_the_process_is_restored(
    call: Callable[[Path], None], number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in LOGGERS:
        monkeypatch.setattr(logging.getLogger(name), "level", logging.DEBUG)
    monkeypatch.setattr(sys, "unraisablehook", lambda found: None)
    monkeypatch.setattr(hosts, "count", lambda: number)
    before = process()
    call(tmp_path)
    assert process() == before


def test_loading_an_agent_changes_nothing(tmp_path_factory: pytest.TempPathFactory) -> None:
    run, _ = tiny_run.finished(tmp_path_factory)
    before = process()
    dreamer.load(run)
    assert process() == before


def test_importing_changes_nothing() -> None:
    """Except for what importing orbax itself changes."""
    code = """
        import logging, sys, threading
        import orbax.checkpoint

        def process():
            loggers = [logging.getLogger(name) for name in ("root", "absl", "asyncio", "jax")]
            hooks = [sys.unraisablehook, sys.excepthook, threading.excepthook]
            return [*hooks, *((x.level, x.disabled, list(x.handlers)) for x in loggers)]

        before = process()
        import dreamer
        from dreamer.checkpoint import manager, shared
        from dreamer.training import trainer
        assert process() == before
    """
    subprocess.run([sys.executable, "-W", "error", "-c", textwrap.dedent(code)], check=True)


def test_the_settings_last_until_the_last_thread_leaves() -> None:
    absl, usual = logging.getLogger("absl"), sys.unraisablehook
    first, second = (contextlib.ExitStack() for _ in range(2))
    first.enter_context(arrays.process_settings())
    second.enter_context(arrays.process_settings())
    assert absl.disabled
    first.close()
    assert absl.disabled
    assert sys.unraisablehook is not usual
    second.close()
    assert not absl.disabled
    assert sys.unraisablehook is usual


def test_only_a_closed_event_loop_is_not_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reported: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", reported.append)
    kind = type("Found", (), {})
    with arrays.process_settings():
        for text in ("Event loop is closed", "something else"):
            found: Any = kind()
            found.exc_value = RuntimeError(text)
            sys.unraisablehook(found)
    assert [str(found.exc_value) for found in reported] == ["something else"]
