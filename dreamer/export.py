"""`python -m dreamer.export run=PATH [KEY=VALUE ...]`: a policy that runs without this package."""

from dreamer.cli import command, export

if __name__ == "__main__":
    command.run(export.main)
