"""`python -m dreamer.eval run=PATH [KEY=VALUE ...]`: plays episodes with a trained agent."""

import sys


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status; raises UserError."""
    # Slow to import.
    from dreamer.cli import usage
    from dreamer.config import EvalOptions

    found = usage.of_run(sys.argv[1:] if argv is None else argv, EvalOptions, "eval")
    if found is None:
        return 0
    options, env = found
    from dreamer.system import runtime

    runtime.runtime(options.platform)
    from dreamer.cli.evaluate_run import evaluate_run

    evaluate_run(options, env)
    return 0
