"""`python -m dreamer.train [GROUP=CHOICE ...] [KEY=VALUE ...]`: trains; again, it resumes.

In a program, `dreamer.train(...)`: command and function share their name, so the module itself can
be called, see `dreamer.api.training.train`.
"""

import sys
from contextlib import nullcontext
from functools import partial
from types import ModuleType
from typing import Any

from dreamer import command
from dreamer.run.signals import StopRequest


def main(argv: list[str] | None = None, entered: StopRequest | None = None) -> int:
    """Trains by arguments; UserError is for the caller.

    Args:
      argv: arguments; those of the process if None.
      entered: hears signals already.

    Returns:
      The exit status: 0 when done or stopped by a signal.
    """
    argv = sys.argv[1:] if argv is None else argv
    # Before the slow imports: a signal never meets a half-made run.
    with nullcontext(entered) if entered else StopRequest() as stop:
        from dreamer import compose, sweep, usage

        if usage.answered(argv, usage.help_text) or usage.answered_config(argv):
            return 0
        if sweep.wanted(argv):
            return sweep.sweep(argv, stop)
        config = compose.compose(argv)
        # jax is the slowest: only once the configuration is known to be right.
        from dreamer import start

        start.runtime(config.platform, config.xla_flags)
        from dreamer import hosts

        with hosts.bond(config.run, stop):  # before jax is used
            from dreamer.run import seeds

            seeds.train(config, stop)
    return 0


class _Callable(ModuleType):
    def __call__(self, *args: Any, **options: Any) -> Any:
        from dreamer.api.training import train

        return train(*args, **options)


if __name__ == "__main__":
    signals = StopRequest(ends_process=True)
    command.run(partial(main, entered=signals), signals)
else:
    sys.modules[__name__].__class__ = _Callable
