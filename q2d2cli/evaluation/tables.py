"""Tables of an evaluation: one model of a table, for the terminal, Markdown and HTML."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from q2d2cli.evaluation.metrics import METRICS, Metric

if TYPE_CHECKING:
    from rich.table import Table as RichTable

DASH = "–"
"""In place of a number that there is not."""
SPEED_COLUMNS = (("rtf_encode", "encode RTF", 4), ("rtf_decode", "decode RTF", 4), ("memory_mb", "memory, MB", 0))
"""Key in the result, title and decimals."""


@dataclass(frozen=True)
class Cell:
    """What stands in one place.

    Attributes:
        text: the main thing.
        notes: what goes with it, smaller: an interval, a count.
        best: better than all others of its kind, beyond the intervals.
    """

    text: str
    notes: tuple[str, ...] = ()
    best: bool = False


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        heads: of the columns.
        rows: as many cells each.
        names: how many columns at the left hold names; the others hold numbers.
        title: above it; may be empty.
    """

    heads: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    names: int = 1
    title: str = ""


def score_table(
    result: dict[str, Any], datasets: Sequence[str] = ("all",), title: str = "", brief: bool = False
) -> Table:
    """Codecs under each other, metrics beside each other, like the paper's Table 2.

    Args:
        result: of `summary.sum_up`.
        datasets: whose scores; of several, each has its codecs below each other and bit rates are left out.
        title: of the table.
        brief: without tokens per frame and speed.
    """
    single = len(datasets) == 1
    speed = [
        column for column in SPEED_COLUMNS if single and not brief and any(column[0] in c for c in result["codecs"])
    ]
    first = ["codec", "kbit/s", *([] if brief else ["tokens/frame"]), "tokens/s"] if single else ["dataset", "codec"]
    rows = []
    for dataset in datasets:
        best = {name: best_codec(result, dataset, name) for name in result["metrics"]}
        for position, codec in enumerate(result["codecs"]):
            entry = codec["datasets"][dataset]
            cells = [Cell(codec["name"])] if single else [Cell("" if position else dataset), Cell(codec["name"])]
            if single:
                cells.append(number(codec["bit_rate"] and codec["bit_rate"] / 1000, 2))
                cells += [] if brief else [number(codec["num_quantizers"], 0)]
                cells.append(number(codec["tokens_per_second"], 1))
            cells += [
                mean_cell(entry[name], METRICS[name], entry["files"], best[name] == codec["identity"])
                for name in result["metrics"]
            ]
            rows.append([*cells, Cell(str(entry["files"])), *(number(codec.get(key), n) for key, _, n in speed)])
    heads = [*first, *(METRICS[name].title for name in result["metrics"]), "files", *(head for _, head, _ in speed)]
    return Table(heads, rows, 1 if single else 2, title)


def scope(result: dict[str, Any]) -> str:
    """What was measured, in words: files, minutes, and what their words were compared with."""
    words = ""
    if texts := result.get("texts", 0):
        rest = "" if texts == result["files"] else " (of the others against what is heard in the recording)"
        words = f", words of {texts} against given texts{rest}"
    return f"{result['files']} files, {result['minutes']} minutes{words}"


def dataset_table(result: dict[str, Any], codec: dict[str, Any]) -> Table:
    """A line per dataset for one of the result's codecs."""
    rows = [
        [
            Cell(name, best=name == "all"),
            *(mean_cell(entry[metric], METRICS[metric], entry["files"]) for metric in result["metrics"]),
            Cell(str(entry["files"])),
        ]
        for name, entry in codec["datasets"].items()
    ]
    return Table(["speaker or source", *(METRICS[name].title for name in result["metrics"]), "files"], rows)


def codebook_table(codec: dict[str, Any]) -> Table:
    """How a model uses its codebook."""
    rows = [
        [Cell(str(pair)), number(entropy, 2), number(most, 2), share(entropy / most, 0), share(used, 1)]
        for pair, (entropy, most, used) in enumerate(
            zip(codec["pair_entropy"], codec["pair_entropy_max"], codec["pair_utilization"], strict=True)
        )
    ]
    title = f"{codec['name']}: {codec['codebook_seen']} of {codec['codebook_size']} codes in {codec['frames']} frames"
    return Table(["pair", "entropy, bits", "of", "share", "points used"], rows, title=title)


def best_codec(result: dict[str, Any], dataset: str, metric: str) -> str | None:
    """Identity of the codec whose mean is better than every other's by more than both intervals; None if there is none.

    The recordings do not compete. A mean of a single clip has no interval, and is better than nothing.
    """
    ranges = []
    for codec in result["codecs"]:
        entry = codec["datasets"][dataset][metric]
        if codec["identity"] == "original" or entry["mean"] is None:
            continue
        if entry["interval95"] is None:
            return None
        sign = 1 if METRICS[metric].higher_is_better else -1
        ranges.append((sign * entry["mean"], entry["interval95"], codec["identity"]))
    ranges.sort(reverse=True)
    if len(ranges) < 2:
        return None
    leader, *others = ranges
    beaten = all(leader[0] - leader[1] > mean + half for mean, half, _ in others)
    return leader[2] if beaten else None


def mean_cell(entry: dict[str, Any], metric: Metric, files: int, best: bool = False) -> Cell:
    """A mean; its interval; and the count of values where it is not that of the files."""
    if entry["mean"] is None:
        return Cell(DASH)
    half = entry["interval95"]
    notes = [] if half is None else [f"± {half:.{metric.decimals}f}"]
    if entry["n"] != files:
        notes.append(f"(n {entry['n']})")
    return Cell(f"{entry['mean']:.{metric.decimals}f}", tuple(notes), best)


def number(value: float | None, decimals: int) -> Cell:
    """A number, or a dash."""
    return Cell(DASH if value is None else f"{value:.{decimals}f}")


def share(value: float, decimals: int) -> Cell:
    """A share in percent."""
    return Cell(f"{100 * value:.{decimals}f}%")


def to_markdown(table: Table) -> str:
    """For READMEs and model cards; without the title."""
    lines = [f"| {' | '.join(table.heads)} |", f"|{'---|' * len(table.heads)}"]
    for row in table.rows:
        cells = [" ".join([f"**{cell.text}**" if cell.best else cell.text, *cell.notes]) for cell in row]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def to_html(table: Table) -> str:
    """For the report."""
    rows = "".join(f"<tr>{''.join(map(html_cell, row))}</tr>" for row in table.rows)
    heads = "".join(f"<th>{html.escape(head)}</th>" for head in table.heads)
    title = f"<caption>{html.escape(table.title)}</caption>" if table.title else ""
    return f'<div class="scroll"><table>{title}<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'


def html_cell(cell: Cell) -> str:
    """A cell as HTML."""
    parts = [html.escape(cell.text), *(f"<small>{html.escape(note)}</small>" for note in cell.notes)]
    kind = ' class="best"' if cell.best else ""
    return f"<td{kind}>{' '.join(parts)}</td>"


def to_rich(table: Table, notes: bool = True) -> RichTable:
    """For the terminal; without notes if there is no room for intervals."""
    from rich.table import Table as RichTable
    from rich.text import Text

    rich = RichTable(title=Text(table.title) if table.title else None, box=None)
    for position, head in enumerate(table.heads):
        rich.add_column(Text(head), justify="left" if position < table.names else "right", no_wrap=True)
    for row in table.rows:
        cells = []
        for cell in row:
            text = Text(cell.text, "bold" if cell.best else "")
            kept = cell.notes if notes else [note for note in cell.notes if not note.startswith("±")]
            cells.append(text.append("".join(f" {note}" for note in kept), "not bold"))
        rich.add_row(*cells)
    return rich
