"""`python -m dreamer.bench [--what ...] [--sizes ...] [KEY=VALUE ...]`: measures speed."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from dreamer.cli import command
from dreamer.errors import UserError, nearest

WHAT = ("limits", "update", "parts", "act", "replay", "device_replay", "env", "loop")
OBSERVATIONS = ("vector", "image")


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see python -m dreamer.bench --help")


def parser() -> Parser:
    parser = Parser(prog="python -m dreamer.bench", description=__doc__.split(": ")[1])
    parser.add_argument(
        "--what", default="update", help=f"of {','.join(WHAT)}; or all (default: update)"
    )
    parser.add_argument("--sizes", default="", help="such as nano,1m,12m (default: that of size=)")
    parser.add_argument(
        "--observations", default="vector,image", help="made-up data (default: vector,image)"
    )
    parser.add_argument("--repeats", type=int, default=50, help="most calls timed (default: 50)")
    parser.add_argument("--seconds", type=float, default=10.0, help="most time for each (10)")
    parser.add_argument(
        "--cold", action="store_true", help="ignore the compilation cache, to time compilation"
    )
    parser.add_argument("--trace", type=Path, help="folder for a profile of the timed calls")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument(
        "--against",
        type=Path,
        help="JSON file of an earlier run, or folder of experiments/accelerator.py",
    )
    parser.add_argument("options", nargs="*", metavar="KEY=VALUE", help="as for dreamer.train")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status.

    Raises:
      UserError: invalid options.
    """
    # Slow to import: from here on Ctrl-C ends the command without a traceback.
    from dreamer.cli import compose, usage

    argv = sys.argv[1:] if argv is None else argv
    if usage.answered(argv, parser().format_help):
        return 0
    given = parser().parse_intermixed_args(argv)
    what = chosen("--what", given.what, WHAT)
    observations = chosen("--observations", given.observations, OBSERVATIONS)
    if given.repeats < 1 or not given.seconds > 0:
        raise UserError("--repeats must be at least 1 and --seconds more than 0")
    sizes = [[f"size={size}"] for size in given.sizes.split(",") if size] or [[]]
    configs = [compose.compose([*given.options, *size]) for size in sizes]
    from dreamer.bench.run import run  # imports jax: only after the options are checked

    run(given, what, observations, configs)
    return 0


def chosen(option: str, text: str, allowed: Sequence[str]) -> list[str]:
    """The names in a text, separated by commas; all that are allowed for `all`."""
    names = list(allowed) if text == "all" else text.split(",")
    for name in names:
        if name not in allowed:
            close = nearest(name, allowed)
            raise UserError(f"{option} {name}: expected some of {','.join(allowed)}{close}")
    return names


if __name__ == "__main__":
    command.run(main, announced=False)
