"""Statistics of evaluation episodes: computed, rendered as a table, written as JSON."""

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic_core import to_json
from rich import box
from rich.console import Console
from rich.table import Table

from dreamer.errors import UserError
from dreamer.system import files

LABELS = {
    "episodes": "episodes",
    "mean": "mean return",
    "std": "standard deviation",
    "median": "median return",
    "iqm": "interquartile mean",
    "min": "lowest return",
    "max": "highest return",
    "length": "mean length",
}


def interquartile_mean(values: Sequence[float] | np.ndarray) -> float:
    """Mean of the middle half: the lowest and the highest floor(n / 4) of n values are left out.

    Source: Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical
    Precipice"; the same number as `scipy.stats.trim_mean(values, 0.25)`, which rliable uses, for
    every n. Fewer than four values: the plain mean.
    """
    ordered = np.sort(np.asarray(values, np.float64))
    cut = len(ordered) // 4
    return float(ordered[cut : len(ordered) - cut].mean())


def summarize(
    returns: Sequence[float] | np.ndarray, lengths: Sequence[int] | np.ndarray
) -> dict[str, float]:
    """Statistics over episodes.

    Args:
        returns: undiscounted sum of rewards of every episode [episodes].
        lengths: environment steps of every episode [episodes].

    Returns:
        episodes (int), mean, std (of these episodes: ddof=0), median, iqm, min, max, and length,
        the mean length.

    Raises:
        ValueError: no episodes, or not one length per return.
    """
    returns, lengths = np.asarray(returns, np.float64), np.asarray(lengths, np.float64)
    if returns.ndim != 1 or returns.shape != lengths.shape or not len(returns):
        raise ValueError(
            f"expected one return and length per episode, got {returns.shape} and {lengths.shape}"
        )
    return {
        "episodes": len(returns),
        "mean": float(returns.mean()),
        "std": float(returns.std()),
        "median": float(np.median(returns)),
        "iqm": interquartile_mean(returns),
        "min": float(returns.min()),
        "max": float(returns.max()),
        "length": float(lengths.mean()),
    }


def render(summary: Mapping[str, float], title: str = "") -> str:
    """The summary as a table of plain characters, valid as Markdown; no line break at the end."""
    table = Table(box=box.MARKDOWN, header_style="")
    table.add_column("evaluation")
    table.add_column("value", justify="right")
    for key, label in LABELS.items():
        value = summary[key]
        table.add_row(label, f"{value:,}" if isinstance(value, int) else f"{value:,.2f}")
    console = Console(
        file=io.StringIO(), width=80, color_system=None, force_terminal=False, legacy_windows=False
    )
    with console.capture() as capture:
        console.print(table)
    lines = (line.rstrip() for line in capture.get().splitlines())
    return "\n".join(line for line in [title, *lines] if line)


def write_json(path: str | Path, data: Mapping[str, Any]) -> None:
    """Writes `data`, numpy values included, as indented JSON: whole or not at all. NaN and infinite
    values become null.

    Raises:
        UserError: the file cannot be written.
    """
    text = to_json(data, indent=2, inf_nan_mode="null", fallback=lambda array: array.tolist())
    with explaining_refusal(path):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        files.write_atomic(path, text.decode() + "\n")


def check(path: str | Path) -> None:
    """Checks that a file can be written; leaves no trace.

    Raises:
        UserError: it is a folder or a device; or its folder, or the nearest parent that exists,
            cannot be written.
    """
    with explaining_refusal(path):
        files.refuse_special(path)
        files.probe(files.nearest(Path(path).parent))


def check_folder(path: str | Path) -> None:
    """Checks that a folder can be created or written to; leaves no trace.

    Raises:
        UserError: it, or the nearest parent that exists, is no folder or cannot be written.
    """
    with explaining_refusal(path):
        files.probe(files.nearest(Path(path)))


@contextlib.contextmanager
def explaining_refusal(path: str | Path) -> Iterator[None]:
    """Turns errors of the file system into a UserError that names the file."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; make it writable or choose another"
        ) from error
