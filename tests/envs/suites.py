"""Skips the tests of a suite whose package is not installed."""

import importlib
from typing import Any

import pytest

from dreamer.cli import compose
from dreamer.config.env import Env
from dreamer.envs import headless
from dreamer.envs.registry import SUITES


def module(name: str) -> Any:
    """The module of a suite; skips the test if its package is missing."""
    try:
        return importlib.import_module(SUITES[name].module)
    except ImportError as error:
        missing = str(error.name)
        if missing.split(".")[0] == "dreamer":
            raise
        reason = f"suite {name} needs the package {missing}: {SUITES[name].install}"
        pytest.skip(reason, allow_module_level=True)


def group(name: str, *changes: str) -> Env:
    """The section env of a group; a test is skipped where it cannot be made on this machine."""
    config = compose.compose([f"env={name}", "size=nano", *changes]).env
    module(config.suite)
    if name == "car_racing":
        pytest.importorskip("Box2D")
    if name in ("dmc_vision", "memory_maze"):
        drawn()
    return config


def drawn() -> None:
    """Skips a test where MuJoCo cannot draw."""
    headless.choose()
    if not headless.can_draw():
        pytest.skip("neither EGL nor OSMesa can draw on this machine")
