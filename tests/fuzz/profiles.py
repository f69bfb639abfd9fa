"""How long the fuzz tests look: a few fixed examples, or by FUZZ=N so many new ones."""

import os

from hypothesis import HealthCheck, settings

MORE = int(os.environ.get("FUZZ", "0"))


def examples(count: int) -> settings:
    """Settings for a test that tries `count` examples, always the same, unless FUZZ requests
    more."""
    return settings(
        max_examples=MORE or count,
        derandomize=not MORE,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
