"""`python -m dreamer.eval run=PATH [KEY=VALUE ...]`: plays episodes with a trained agent."""

import sys

from dreamer import command


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status; UserError is for the caller."""
    # Slow to import.
    from dreamer import usage
    from dreamer.config import EvalOptions

    found = usage.of_run(sys.argv[1:] if argv is None else argv, EvalOptions, "eval")
    if found is None:
        return 0
    options, env = found
    from dreamer import start

    start.runtime(options.platform)
    from dreamer.run.playback import play

    play(options, env)
    return 0


if __name__ == "__main__":
    command.run(main)
