"""Results as JSON and as a table, alone or beside those of another run."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dreamer.bench.cases import Result
from dreamer.errors import UserError
from dreamer.logs import summary

COLUMNS = (
    *("what", "size", "observation", "time", "spread", "rate"),
    *("GFLOP", "of limit", "memory", "up", "down", "compile"),
)
LABELS = ("what", "size", "observation")


def speeds(product: Result, copied: Result) -> tuple[float, float]:
    """Operations and bytes per second of the results of `cases.limits`."""
    assert product.flops is not None
    assert copied.moved is not None
    return product.flops / product.timing.low, copied.moved / copied.timing.low


def row(result: Result, peak: float, bandwidth: float) -> dict[str, Any]:
    """One result as a flat dict: seconds, bytes, operations, and derived numbers.

    Args:
      result: the measurement.
      peak: floating-point operations per second of a large matrix product.
      bandwidth: bytes per second of a large copy, read and written.

    Returns:
      The fields of the result, and `share_of_limit`: the time that its arithmetic takes at `peak`,
      or its arguments and results at `bandwidth`, whichever is longer, over the time it took.
    """
    fields = dataclasses.asdict(result)
    floor = max((result.flops or 0) / peak, (result.moved or 0) / bandwidth)
    return {
        **fields,
        **fields.pop("timing"),
        "per_second": result.per_call / result.timing.median,
        "share_of_limit": floor / result.timing.median or None,
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
        f"{entry['share_of_limit']:.0%}" if entry["share_of_limit"] else "",
        amount(entry["memory"]),
        amount(entry["to_device"]),
        amount(entry["to_host"]),
        duration(entry["compile_seconds"]) if entry["compile_seconds"] else "",
    ]


def comparison(entries: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]]) -> str:
    """A table of the rows in both: how many times faster these are than the others."""
    before = {tuple(other[name] for name in LABELS): other for other in others}
    lines = []
    for entry in entries:
        other = before.get(tuple(entry[name] for name in LABELS))
        if other is not None:
            ratio = entry["per_second"] / other["per_second"]
            times = duration(other["median"]), duration(entry["median"])
            lines.append([*(entry[name] for name in LABELS), *times, f"{ratio:.2f} x"])
    header = (*LABELS, "then", "now", "faster")
    return summary.table(header, lines) if lines else "nothing in common"


def load(path: Path, options: Sequence[str] = ()) -> dict[str, list[dict[str, Any]]]:
    """Rows of earlier runs by the machine they were measured on; the last of equal rows is used.

    Args:
      path: a file written by `--out`, or a folder of `experiments/accelerator.py`.
      options: of a folder, rows with these options or with none.

    Raises:
      UserError: the file does not exist, or is no benchmark.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    try:
        if path.is_dir():
            lines = "".join(file.read_text(encoding="utf-8") for file in path.glob("*/rows.jsonl"))
            contents = [json.loads(line) for line in lines.splitlines()]
            contents = [one for one in contents if one["options"] in ([], list(options))]
            contents.sort(key=lambda one: len(one["options"]))  # those with options override
        else:
            contents = [json.loads(path.read_text(encoding="utf-8"))]
        for content in contents:
            for entry in content["results"]:
                entry["per_second"], entry["median"], *(entry[name] for name in LABELS)
                found.setdefault(content["device"], []).append(entry)
    except OSError as error:
        raise UserError(f"--against {path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        found = {}
    if not found:
        raise UserError(
            f"--against {path} holds no benchmark; name a file written by --out, or a folder "
            "of experiments/accelerator.py"
        )
    return found


def duration(seconds: float) -> str:
    """Seconds in a readable unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"


def amount(size: int | None) -> str:
    """Bytes in a readable unit; empty for none."""
    if not size:
        return ""
    return f"{size / 2**20:,.3g} MiB" if size >= 2**20 else f"{size / 2**10:,.3g} KiB"
