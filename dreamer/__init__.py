"""DreamerV3 in JAX.

`train` trains an agent, `load` loads it, `make_env` makes environments for it; `make_agent` makes
an untrained one. Examples are in docs/library.md. Submodules are imported on first use, so that
`import dreamer` is quick.
"""

from dreamer.system import importing

importing.leave_out_saved()  # before other imports: saved files must not shadow a module

import importlib  # noqa: E402
from typing import TYPE_CHECKING, Any  # noqa: E402

if TYPE_CHECKING:
    from dreamer.api.agent import TrainedAgent, load
    from dreamer.api.environment import make_env
    from dreamer.api.training import make_agent, train
    from dreamer.errors import UserError
    from dreamer.training.callbacks import Callback
    from dreamer.training.trainer import Trainer

__all__ = [
    "Callback",
    "TrainedAgent",
    "Trainer",
    "UserError",
    "load",
    "make_agent",
    "make_env",
    "train",
]

_HOMES = {
    "Callback": "dreamer.training.callbacks",
    "TrainedAgent": "dreamer.api.agent",
    "Trainer": "dreamer.training.trainer",
    "UserError": "dreamer.errors",
    "load": "dreamer.api.agent",
    "make_agent": "dreamer.api.training",
    "make_env": "dreamer.api.environment",
    "train": "dreamer.api.training",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dreamer' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
