"""`python -m dreamer.eval run=PATH [KEY=VALUE ...]`: plays episodes with a trained agent."""

import sys

from dreamer import command
from dreamer.errors import UserError

HELP = "Usage: python -m dreamer.eval run=PATH [KEY=VALUE ...]\n"


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status; UserError is for the caller."""
    # Slow to import.
    from dreamer import compose, usage
    from dreamer.config import EvalOptions
    from dreamer.run import paths

    argv = sys.argv[1:] if argv is None else argv
    if usage.wants_help(argv):
        print(HELP + usage.options_text(EvalOptions))
        return 0
    options = compose.options(argv, EvalOptions)
    if not paths.expand(options.run, "run").is_dir():
        raise UserError(f"run={options.run} is not a folder; name the folder of a training run")
    from dreamer import start

    start.runtime(options.platform)
    from dreamer.run.playback import play

    play(options)
    return 0


if __name__ == "__main__":
    command.run(main)
