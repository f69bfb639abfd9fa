"""Skips the tests of a suite whose package is not installed."""

import importlib
from typing import Any

import pytest

from dreamer.envs.registry import SUITES


def module(name: str) -> Any:
    """The module of a suite; a test is skipped if what is missing is not of this project."""
    try:
        return importlib.import_module(SUITES[name].module)
    except ImportError as error:
        missing = str(error.name)
        if missing.split(".")[0] == "dreamer":
            raise
        reason = f"suite {name} needs the package {missing}: {SUITES[name].install}"
        pytest.skip(reason, allow_module_level=True)
