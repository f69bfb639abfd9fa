"""A run of the benchmark: measures, prints a table and comparisons, writes JSON."""

import itertools
import os
import platform
import resource
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from dreamer.bench import cases, report, subject
from dreamer.bench.cases import Result
from dreamer.bench.timing import Budget
from dreamer.checkpoint import folder, paths
from dreamer.config import Config
from dreamer.distributed import mesh
from dreamer.logs import summary
from dreamer.system import files, runtime


def run(
    given: Namespace, what: Sequence[str], observations: Sequence[str], configs: Sequence[Config]
) -> None:
    """Measures everything that was requested.

    Args:
      given: the parsed options of the command line.
      what: names of `__main__.WHAT`.
      observations: names of `__main__.OBSERVATIONS`.
      configs: one for each size.

    Raises:
      UserError: a file cannot be read or written, or a configuration cannot be measured.
    """
    config = configs[0]
    earlier = report.load(given.against, given.options) if given.against else {}
    if given.out:
        files.check_writable(paths.expand(str(given.out), "--out"))
    if given.trace:
        files.check_writable(paths.expand(str(given.trace), "--trace"), folder=True)
    runtime.runtime(config.platform, config.xla_flags)
    if given.cold:
        jax.config.update("jax_enable_compilation_cache", False)
    budget = Budget(given.repeats, given.seconds, given.trace)
    content = machine(config, given.options)
    limits = cases.limits(config, budget)
    peak, bandwidth = report.speeds(*limits)
    print(
        f"{content['device']}: {peak / 1e9:,.0f} GFLOP/s in a large matrix product, "
        f"{bandwidth / 1e9:,.0f} GB/s in a copy",
        flush=True,
    )
    rows: list[dict[str, Any]] = []
    content |= {"peak_flops": peak, "bandwidth": bandwidth, "results": rows}
    results = measured(what, configs, observations, budget)
    for result in itertools.chain(limits if "limits" in what else (), results):
        rows.append(report.row(result, peak, bandwidth))
        print(f"  {result.what} {result.size} {result.observation}", file=sys.stderr, flush=True)
        if given.out:  # after each: a later measurement may run out of memory or time
            summary.write_json(given.out, content | memory(config))
    print(summary.table(report.COLUMNS, [report.cells(row) for row in rows]))
    for device, others in earlier.items():
        print(f"beside {given.against}, {device}:")
        print(report.comparison(rows, others))


def measured(
    what: Sequence[str], configs: Sequence[Config], observations: Sequence[str], budget: Budget
) -> Iterator[Result]:
    """Yields all results but the limits, one at a time."""
    for config, observation in itertools.product(configs, observations):
        for name in what:
            if name in cases.PER_SUBJECT:
                yield from cases.PER_SUBJECT[name](subject.make(config, observation), budget)
    if "env" in what:
        yield cases.env(configs[0], budget)
    if "loop" in what:
        yield from (cases.loop(config, budget) for config in configs)


def machine(config: Config, options: list[str]) -> dict[str, Any]:
    """The machine and the version of the code that the numbers belong to."""
    devices = mesh.devices_of(config)
    return {
        "device": f"{len(devices)} {devices[0].device_kind}, {os.cpu_count()} CPU cores",
        "system": platform.platform(),
        "options": options,
        "git": folder.git_state(),
        "versions": folder.versions(),
    }


def memory(config: Config) -> dict[str, Any]:
    """The peak memory of this process, on the host and on its first device."""
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "peak_host_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
        "peak_device_bytes": mesh.peak_memory(mesh.devices_of(config)[0]),
    }
