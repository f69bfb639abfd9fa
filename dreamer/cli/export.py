"""`python -m dreamer.export run=PATH [KEY=VALUE ...]`: a policy that runs without this package."""


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status; raises UserError."""
    # Slow to import.
    from dreamer.cli import usage
    from dreamer.config.options import ExportOptions

    found = usage.agent_options(argv, ExportOptions, "export")
    if found:
        from dreamer.exporting.folder import export_run

        export_run(*found)
    return 0
