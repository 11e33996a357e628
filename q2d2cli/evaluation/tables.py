"""Results of an evaluation as Markdown, for model cards and READMEs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from q2d2cli.evaluation.metrics import METRICS


def by_codec(result: dict[str, Any]) -> str:
    """A line per codec over all files: bit rate, tokens per second, metrics (of `evaluate.sum_up`'s result)."""
    lines = [
        row(
            [codec["name"], number(codec["bit_rate"], 1000, 2), number(codec["tokens_per_second"], 1, 1)],
            codec["datasets"]["all"],
            result["metrics"],
        )
        for codec in result["codecs"]
    ]
    return table(["codec", "kbit/s", "tokens/s"], result["metrics"], lines)


def by_dataset(result: dict[str, Any], codec: dict[str, Any]) -> str:
    """A line per dataset for one of the result's codecs."""
    lines = [
        row([f"**{name}**" if name == "all" else name], entry, result["metrics"])
        for name, entry in codec["datasets"].items()
    ]
    return table(["speaker or source"], result["metrics"], lines)


def table(first: Sequence[str], metrics: Sequence[str], lines: Sequence[str]) -> str:
    """Head and lines."""
    heads = [*first, *(METRICS[name].title for name in metrics), "files"]
    return "\n".join([f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}", *lines])


def row(first: Sequence[str], entry: dict[str, Any], metrics: Sequence[str]) -> str:
    """A line: means and intervals of one dataset."""
    cells = [
        *first,
        *(mean_cell(entry[name], METRICS[name].decimals, entry["files"]) for name in metrics),
        str(entry["files"]),
    ]
    return f"| {' | '.join(cells)} |"


def mean_parts(entry: dict[str, Any], decimals: int, files: int) -> tuple[str, str, str]:
    """Mean or a dash; its interval; the count where it is not that of the files. The last two may be empty."""
    if entry["mean"] is None:
        return "–", "", ""
    half = entry["interval95"]
    return (
        f"{entry['mean']:.{decimals}f}",
        "" if half is None else f"± {half:.{decimals}f}",
        "" if entry["n"] == files else f"n {entry['n']}",
    )


def mean_cell(entry: dict[str, Any], decimals: int, files: int, interval: bool = True) -> str:
    """The parts of a mean as text."""
    mean, half, count = mean_parts(entry, decimals, files)
    return " ".join(filter(None, [mean, half if interval else "", f"({count})" if count else ""]))


def number(value: float | None, divisor: float, decimals: int) -> str:
    """A number, or a dash."""
    return "–" if value is None else f"{value / divisor:.{decimals}f}"
