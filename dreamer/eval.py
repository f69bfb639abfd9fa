"""`python -m dreamer.eval run=PATH [KEY=VALUE ...]`: evaluates a trained agent."""

from dreamer.cli import command, eval

if __name__ == "__main__":
    command.run(eval.main)
