"""Statistics of evaluation episodes, tables in Markdown, and JSON files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic_core import to_json

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


def render(numbers: Mapping[str, float], title: str = "") -> str:
    """A summary as a table of plain characters; no line break at the end."""
    rows = [
        (label, f"{numbers[key]:,}" if key == "episodes" else f"{numbers[key]:,.2f}")
        for key, label in LABELS.items()
    ]
    return f"{title}\n{table(('evaluation', 'value'), rows, '<>')}".lstrip("\n")


def table(header: Sequence[str], rows: Sequence[Sequence[str]], align: str = "") -> str:
    """A Markdown table whose columns are aligned.

    Args:
      header: names of the columns.
      rows: texts of every row.
      align: `<` or `>` of every column; all are `<` by default.
    """
    align = align or "<" * len(header)
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    rule = ["-" * width for width in widths]
    lines = []
    for row in (header, rule, *rows):
        cells = [f"{x:{a}{width}}" for x, a, width in zip(row, align, widths, strict=True)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def write_json(path: str | Path, data: Mapping[str, Any]) -> None:
    """Writes `data`, numpy values included, as indented JSON: whole or not at all. NaN and infinite
    values become null.

    Raises:
        UserError: the file cannot be written.
    """
    text = to_json(data, indent=2, inf_nan_mode="null", fallback=lambda array: array.tolist())
    with files.explaining_refusal(path):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        files.write_atomic(path, text.decode() + "\n")
