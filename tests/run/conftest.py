"""Loops are compiled quickly: their tests compile many programs and run each for a moment."""

import os
from collections.abc import Iterator

import jax
import pytest


@pytest.fixture(autouse=True, scope="package")
def quickly_compiled() -> Iterator[None]:
    """Numbers may differ in their last bits from those of programs that are optimised."""
    jax.config.update("jax_disable_most_optimizations", True)
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # for commands that are run
    yield
    del os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"]
    jax.config.update("jax_disable_most_optimizations", False)
