"""Agents are trained for a moment: their programs are compiled quickly."""

from tests.run.conftest import quickly_compiled

__all__ = ["quickly_compiled"]
