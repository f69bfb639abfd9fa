"""A program that calls the library keeps its signals, hooks, logging and allocator."""

import logging
import signal
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import dreamer
from dreamer.system import allocator
from tests import tiny_run


def settings() -> dict[str, Any]:
    wakeup = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup)
    return {
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "wakeup": wakeup,
        "hooks": (sys.excepthook, sys.displayhook, threading.excepthook, warnings.showwarning),
        "streams": (sys.stdin, sys.stdout, sys.stderr),
        "logging": (logging.root.level, list(logging.root.handlers), logging.root.manager.disable),
        "allocator": allocator._keeps,
    }


def test_training_leaves_the_process_as_it_was(tmp_path: Path) -> None:
    before = settings()
    dreamer.train(tiny_run.argv(tmp_path / "run", "run.steps=2"))
    assert settings() == before
