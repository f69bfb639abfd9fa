"""`python -m dreamer.bench [--what ...] [--sizes ...] [KEY=VALUE ...]`: measures speed."""

import argparse
import itertools
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from dreamer.cli import command
from dreamer.errors import UserError, nearest

WHAT = ("limits", "update", "parts", "act", "replay", "device_replay", "env", "loop")
OBSERVATIONS = ("vector", "image")


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line."""

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
        "--cold", action="store_true", help="compile anew, so that compile times are whole"
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
    """Returns the exit status; UserError is for the caller."""
    # Slow to import: from here on Ctrl-C ends the command without a traceback.
    from dreamer.cli import compose, usage

    argv = sys.argv[1:] if argv is None else argv
    if usage.answered(argv, parser().format_help):
        return 0
    given = parser().parse_intermixed_args(argv)
    what = chosen("--what", WHAT if given.what == "all" else given.what.split(","), WHAT)
    observations = chosen("--observations", given.observations.split(","), OBSERVATIONS)
    if given.repeats < 1 or not given.seconds > 0:
        raise UserError("--repeats must be at least 1 and --seconds more than 0")
    sizes = [f"size={size}" for size in given.sizes.split(",") if size]
    configs = [compose.compose([*given.options, size]) for size in sizes] or [
        compose.compose(given.options)
    ]
    from dreamer.bench import report
    from dreamer.checkpoint import paths
    from dreamer.logs import summary
    from dreamer.system import runtime

    earlier = report.load(given.against, given.options) if given.against else {}
    if given.out:
        summary.check(paths.expand(str(given.out), "--out"))
    if given.trace:
        summary.check_folder(paths.expand(str(given.trace), "--trace"))
    runtime.runtime(configs[0].platform, configs[0].xla_flags)
    content = machine(configs[0], given.options)
    import jax

    from dreamer.bench import cases
    from dreamer.bench.timing import Budget

    if given.cold:
        jax.config.update("jax_enable_compilation_cache", False)
    budget = Budget(given.repeats, given.seconds, given.trace)
    limits = cases.limits(configs[0], budget)
    peak, bandwidth = report.speeds(*limits)
    print(
        f"{content['device']}: {peak / 1e9:,.0f} GFLOP/s in a large matrix product, "
        f"{bandwidth / 1e9:,.0f} GB/s in a copy",
        flush=True,
    )
    content |= {"peak_flops": peak, "bandwidth": bandwidth, "results": []}
    results = content["results"]
    wanted = limits if "limits" in what else ()
    for result in itertools.chain(wanted, measured(what, configs, observations, budget)):
        results.append(report.row(result, peak, bandwidth))
        print(f"  {result.what} {result.size} {result.observation}", file=sys.stderr, flush=True)
        if given.out:  # at once: what is measured later may not fit, or take too long
            summary.write_json(given.out, content | memory(configs[0]))
    print(report.table(report.COLUMNS, [report.cells(entry) for entry in results]))
    for device, rows in earlier.items():
        print(f"beside {given.against}, {device}:")
        print(report.comparison(results, rows))
    return 0


def chosen(option: str, names: Sequence[str], allowed: Sequence[str]) -> list[str]:
    """The names, if all of them are allowed."""
    for name in names:
        if name not in allowed:
            close = nearest(name, allowed)
            raise UserError(f"{option} {name}: expected some of {','.join(allowed)}{close}")
    return list(names)


def measured(
    what: Sequence[str], configs: Sequence[Any], observations: Sequence[str], budget: Any
) -> Iterator[Any]:
    """Everything asked for, one result at a time."""
    from dreamer.bench import cases, subject

    for config in configs:
        for observation in observations:
            for name in what:
                if name in cases.PER_SUBJECT:
                    yield from cases.PER_SUBJECT[name](subject.make(config, observation), budget)
    if "env" in what:
        yield from cases.env(configs[0], budget)
    if "loop" in what:
        for config in configs:
            yield from cases.loop(config, budget)


def machine(config: Any, options: list[str]) -> dict[str, Any]:
    """Where and of what code the numbers are."""
    from dreamer.checkpoint import folder
    from dreamer.distributed import mesh

    devices = mesh.devices_of(config)
    return {
        "device": f"{len(devices)} {devices[0].device_kind}, {os.cpu_count()} CPU cores",
        "system": platform.platform(),
        "options": options,
        "git": folder.git_state(),
        "versions": folder.versions(),
    }


def memory(config: Any) -> dict[str, Any]:
    """The most memory this process has used, on the host and on its first device."""
    import resource

    from dreamer.distributed import mesh

    devices = mesh.devices_of(config)
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "peak_host_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
        "peak_device_bytes": mesh.peak_memory(devices[0]),
    }


if __name__ == "__main__":
    command.run(main, announced=False)
