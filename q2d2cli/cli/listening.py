"""Results of listening tests as tables."""

from __future__ import annotations

from typing import Any


def show(results: dict[str, Any]) -> None:
    """Print what `listening_results` found: a table for each kind of test, and who was left out and why."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    for kind, result in results.items():
        mushra = kind == "mushra"
        against = "" if mushra else f" against {result['baseline']}"
        size = f"{result['listeners']} listeners, {result['trials']} trials"
        table = Table(title=escape(f"{result['title']}, {kind.upper()}{against}: {size}"), box=None)
        table.add_column("system")
        columns = ("median", "quartiles") if mushra else ("better", "same", "worse")
        for column in ("n", "mean", *columns):
            table.add_column(column, justify="right")
        for system, entry in result["systems"].items():
            cells = mushra_cells(entry) if mushra else cmos_cells(entry)
            table.add_row(escape(system), str(entry["n"]), *cells)
        console.print(table)
        for left_out in result.get("excluded", []):
            line = f"left out: {left_out['listener']} ({left_out['file']}) {left_out['reason']}"
            console.print(line, markup=False, highlight=False, soft_wrap=True)


def mushra_cells(entry: dict[str, Any]) -> list[str]:
    """Mean with interval, median and quartiles."""
    low, high = entry["quartiles"]
    return [with_interval(entry, ".1f"), f"{entry['median']:.1f}", f"{low:.1f} to {high:.1f}"]


def cmos_cells(entry: dict[str, Any]) -> list[str]:
    """Mean with interval and the shares of preference."""
    return [
        with_interval(entry, "+.2f"),
        *(f"{100 * entry[share]:.0f}%" for share in ("preferred", "same", "baseline_preferred")),
    ]


def with_interval(entry: dict[str, Any], form: str) -> str:
    """Mean and 95% interval."""
    half = entry["interval95"]
    return f"{entry['mean']:{form}}" + ("" if half is None else f" ±{half:{form.lstrip('+')}}")
