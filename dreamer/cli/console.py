"""`dreamer COMMAND ...`: the commands as subcommands of one script."""

import os
import runpy
import sys

from dreamer.errors import emit, nearest
from dreamer.system import importing

COMMANDS = {
    "train": "trains an agent, or resumes a run",
    "eval": "plays episodes with a trained agent",
    "export": "exports the policy as StableHLO or ONNX",
    "data": "records, converts and describes episodes",
    "envs": "lists, checks and times environments",
    "bench": "benchmarks this machine",
}


def main() -> None:
    """Runs `python -m dreamer.COMMAND` with the remaining arguments, in this process."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help", "help"):
        print("usage: dreamer COMMAND [ARGUMENT ...]\n")
        print(*(f"  {key:8} {text}" for key, text in COMMANDS.items()), sep="\n")
        print("\ndreamer COMMAND --help lists its arguments.")
        return
    if name == "--version":
        name, sys.argv[1:] = "train", ["train", "--version"]
    if name not in COMMANDS:
        allowed = ", ".join(COMMANDS)
        close = nearest(name, COMMANDS)
        emit(f"error: {name}: no such command; allowed are {allowed}{close}", sys.stderr)
        sys.exit(2)
    if not sys.flags.safe_path:
        importing.add(os.getcwd())  # as `python -m` does, for environments beside the user
    sys.argv[:2] = [f"dreamer {name}"]
    runpy.run_module(f"dreamer.{name}", run_name="__main__", alter_sys=True)
