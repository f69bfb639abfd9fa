"""`python -m dreamer.train [GROUP=CHOICE ...] [KEY=VALUE ...]`: trains, or resumes a run."""

import sys
from contextlib import nullcontext

from dreamer.system.signals import StopRequest


def main(argv: list[str] | None = None, entered: StopRequest | None = None) -> int:
    """Trains by arguments.

    Args:
      argv: arguments; those of the process if None.
      entered: the context that receives signals, if it is entered already.

    Returns:
      The exit status: 0 when done or stopped by a signal.

    Raises:
      UserError: an error that the user can fix.
    """
    argv = sys.argv[1:] if argv is None else argv
    # Before the slow imports, so that a signal finds no incomplete run.
    with nullcontext(entered) if entered else StopRequest() as stop:
        from dreamer.cli import compose, sweep, usage

        if usage.answered(argv, usage.help_text) or usage.answered_config(argv):
            return 0
        if sweep.FLAGS & set(argv):
            return sweep.sweep(argv, stop)
        config = compose.compose(argv)
        # jax is the slowest import, so the configuration is validated first.
        from dreamer.system import runtime

        runtime.runtime(config.platform, config.xla_flags)
        from dreamer.distributed import context

        with context.connect(config.run, stop):  # before jax is used
            from dreamer.training.train import train

            train(config, stop)
    return 0
