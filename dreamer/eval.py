"""`python -m dreamer.eval run=PATH [KEY=VALUE ...]`: plays episodes with a trained agent."""

from dreamer.cli import command, eval

if __name__ == "__main__":
    command.run(eval.main)
