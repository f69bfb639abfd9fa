"""Results as JSON and as a table, alone or beside those of another run."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dreamer.bench.cases import Result
from dreamer.errors import UserError

COLUMNS = (
    *("what", "size", "observation", "time", "spread", "rate"),
    *("GFLOP", "of peak", "memory", "up", "down", "compile"),
)
LABELS = ("what", "size", "observation")


def row(result: Result, peak: float) -> dict[str, Any]:
    """One result as a flat dict: seconds, bytes, operations, and what follows from them."""
    timing = dataclasses.asdict(result.timing)
    rest = {name: value for name, value in vars(result).items() if name != "timing"}
    share = result.flops / result.timing.median / peak if result.flops else None
    return {
        **rest,
        **timing,
        "per_second": result.per_call / result.timing.median,
        "share_of_peak": share,
    }


def cells(entry: dict[str, Any]) -> list[str]:
    """The texts of one line of the table."""
    spread = (entry["high"] - entry["low"]) / entry["median"]
    return [
        *(entry[name] for name in LABELS),
        duration(entry["median"]),
        f"{spread:.0%}",
        f"{entry['per_second']:,.4g} {entry['unit']}/s",
        f"{entry['flops'] / 1e9:,.3g}" if entry["flops"] else "",
        f"{entry['share_of_peak']:.0%}" if entry["share_of_peak"] else "",
        amount(entry["memory"]),
        amount(entry["to_device"]),
        amount(entry["to_host"]),
        duration(entry["compile_seconds"]) if entry["compile_seconds"] else "",
    ]


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns are aligned."""
    widths = [max(map(len, column)) for column in zip(header, *lines, strict=True)]
    rule = ["-" * width for width in widths]
    texts = [
        "| "
        + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        + " |"
        for line in (header, rule, *lines)
    ]
    return "\n".join(texts)


def comparison(entries: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]]) -> str:
    """A table of the rows that both have: how many times faster these are than the others."""
    before = {tuple(other[name] for name in LABELS): other for other in others}
    lines = []
    for entry in entries:
        other = before.get(tuple(entry[name] for name in LABELS))
        if other is not None:
            ratio = entry["per_second"] / other["per_second"]
            times = duration(other["median"]), duration(entry["median"])
            lines.append([*(entry[name] for name in LABELS), *times, f"{ratio:.2f} x"])
    return table((*LABELS, "then", "now", "faster"), lines) if lines else "nothing in common"


def load(path: Path) -> dict[str, Any]:
    """What an earlier run has written.

    Raises:
      UserError: there is no such file, or something else is in it.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        for entry in content["results"]:
            entry["per_second"], entry["median"], *(entry[name] for name in LABELS)
    except OSError as error:
        raise UserError(f"--against {path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(
            f"--against {path} holds no benchmark; name a file that --out has written"
        ) from None
    return content


def duration(seconds: float) -> str:
    """Seconds in a unit that people read."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"


def amount(size: int | None) -> str:
    """Bytes in a unit that people read; nothing for none."""
    if not size:
        return ""
    return f"{size / 2**20:,.3g} MiB" if size >= 2**20 else f"{size / 2**10:,.3g} KiB"
