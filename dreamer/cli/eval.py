"""`python -m dreamer.eval run=PATH [KEY=VALUE ...]`: evaluates a trained agent."""


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status; raises UserError."""
    # Slow to import.
    from dreamer.cli import usage
    from dreamer.config.options import EvalOptions

    found = usage.agent_options(argv, EvalOptions, "eval")
    if found:
        from dreamer.cli.evaluate_run import evaluate_run

        evaluate_run(*found)
    return 0
