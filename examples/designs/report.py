"""Tables and pictures of docs/designs.md, from the record that `compare.py` keeps.

python examples/designs/report.py
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from q2d2cli.evaluation.plots import COLOURS, INK, MARKERS, channel_quality, new_figure, to_svg
from q2d2cli.evaluation.statistics import summarize
from q2d2cli.files import atomic_output

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HERE = Path(__file__).resolve().parent
DOCS = HERE.parent.parent / "docs"
PAGE = DOCS / "designs.md"
MARKED = re.compile(r"(<!-- made by examples/designs/report.py -->\n).*?(<!-- end -->)", re.DOTALL)
"""The part of the page that is written anew."""
KINDS = ("rhombic", "rectangular", "hexagonal", "fsq", "vq", "rvq")
TITLES = {3: "3 kbit/s", 1: "1 kbit/s"}


def value(score: dict[str, Any] | None, digits: int, sign: str = "") -> str:
    """A mean and its 95% interval."""
    if score is None or score["mean"] is None:
        return ""
    return f"{score['mean']:{sign}.{digits}f} ± {score['interval95'] or 0:.{digits}f}"


def beside(entry: dict[str, Any], first: dict[str, Any], metric: str) -> dict[str, Any]:
    """Mean difference to the first design on the same clips, and its interval."""
    pairs = zip(entry["each"][metric], first["each"][metric], strict=True)
    return summarize(None if a is None or b is None else a - b for a, b in pairs)


def group(done: dict[str, Any], rate: int) -> dict[str, Any]:
    """The designs of a bit rate."""
    return {name: entry for name, entry in done["designs"].items() if entry["rate"] == rate}


def tables(done: dict[str, Any]) -> list[str]:
    """Lines of Markdown: the designs at each bit rate, then the channel."""
    lines: list[str] = []
    for rate, title in TITLES.items():
        if entries := group(done, rate):
            lines += [f"### {title}", "", *table(entries), ""]
            lines += [f"![PESQ, STOI and coded bits of the designs at {title}](designs-{rate}k.svg)", ""]
    if done["channel"]:
        lines += ["### Bit errors", "", *channel_table(done["channel"]), ""]
        lines += ["![PESQ and STOI against the bit error rate](designs-channel.svg)", ""]
    return lines or ["Nothing is measured yet: the record is empty.", ""]


def table(entries: dict[str, Any]) -> list[str]:
    """The designs of one bit rate."""
    words = any("wer" in entry["scores"] for entry in entries.values())
    heads = ["design", "levels", "bits a frame", "kbit/s", "entropies", "tables", "recurrent", "used", "mel"]
    heads += ["PESQ", "beside the first", "STOI", "beside the first", *["WER, %"] * words]
    first = next(iter(entries.values()))
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name, entry in entries.items():
        scores, coded = entry["scores"], entry["coded"]
        cells = [name, runs(entry["levels"]), f"{entry['bits']:.2f}"]
        spent = (entry["bits"], sum(entry["pair_entropy"]), coded["static"], coded["recurrent"])
        cells += [f"{bits * entry['frames_per_second'] / 1000:.2f}" for bits in spent]
        cells += [f"{100 * sum(entry['pair_utilization']) / len(entry['pair_utilization']):.0f}%"]
        cells.append(f"{scores['mel']['mean']:.3f}")
        for metric in ("pesq", "stoi"):
            difference = "" if entry is first else value(beside(entry, first, metric), 3, "+")
            cells += [f"{scores[metric]['mean']:.3f}", difference]
        cells += [value(scores.get("wer"), 0)] * words
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def runs(levels: list[int]) -> str:
    """Levels, equal ones in a row counted: `5 x 6, 3 x 2`."""
    parts: list[list[int]] = []
    for level in levels:
        if parts and parts[-1][0] == level:
            parts[-1][1] += 1
        else:
            parts.append([level, 1])
    return ", ".join(f"{level}" if count == 1 else f"{level} x {count}" for level, count in parts)


def channel_table(channel: dict[str, Any]) -> list[str]:
    """PESQ / STOI of each model at each bit error rate."""
    names = [codec["name"] for codec in channel["codecs"] if "channel" not in codec]
    rates: dict[float, dict[str, str]] = {}
    for codec in channel["codecs"]:
        scores = codec["datasets"]["all"]
        noise = codec.get("channel", {"value": 0.0, "model": codec["name"]})
        text = f"{scores['pesq']['mean']:.2f} / {scores['stoi']['mean']:.3f}"
        rates.setdefault(noise["value"], {})[noise["model"]] = text
    lines = ["| bit errors | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for rate, cells in sorted(rates.items()):
        lines.append(f"| {rate:g} | " + " | ".join(cells.get(name, "") for name in names) + " |")
    return lines


def picture(entries: dict[str, Any]) -> Figure:
    """PESQ and STOI, with intervals of the difference to the first design, and coded bits beside those of the grid."""
    figure, axes = new_figure(3.4, 1.0 + 0.3 * len(entries), 3)
    names, first = list(entries), next(iter(entries.values()))
    for place, entry in enumerate(entries.values()):
        kind = KINDS.index(entry["kind"])
        for axis, metric in zip(axes, ("pesq", "stoi"), strict=False):
            axis.errorbar(
                entry["scores"][metric]["mean"],
                place,
                xerr=beside(entry, first, metric)["interval95"] or 0.0,
                fmt=MARKERS[kind],
                color=COLOURS[kind],
                markersize=6,
                capsize=3 if place else 0,
            )
        share = entry["frames_per_second"] / 1000
        coded, full = share * min(entry["coded"].values()), share * entry["bits"]
        axes[2].plot([coded, full], [place] * 2, color=COLOURS[kind], alpha=0.4)
        axes[2].plot(coded, place, MARKERS[kind], color=COLOURS[kind], markersize=6)
        axes[2].plot(full, place, "|", color=INK, markersize=9)
    for axis, metric in zip(axes, ("pesq", "stoi"), strict=False):
        axis.axvline(first["scores"][metric]["mean"], color=INK, alpha=0.25, linewidth=1)
    for number, (axis, label) in enumerate(zip(axes, ("PESQ", "STOI", "kbit/s, coded and not (bar)"), strict=True)):
        axis.set_yticks(range(len(names)), names if number == 0 else [""] * len(names))
        axis.set_ylim(len(names) - 0.5, -0.5)
        axis.set_xlabel(label)
    return figure


def write(done: dict[str, Any]) -> None:
    """Pictures into docs/, and the tables into the page."""
    figures = {f"designs-{rate}k.svg": picture(entries) for rate in TITLES if (entries := group(done, rate))}
    if done["channel"] and (figure := channel_quality(done["channel"])) is not None:
        figures["designs-channel.svg"] = figure
    for name, figure in figures.items():
        with atomic_output(DOCS / name) as file:
            file.write(to_svg(figure, standalone=True).encode())
    page = PAGE.read_text("utf-8")
    text = "\n".join(tables(done))
    with atomic_output(PAGE) as file:
        file.write(MARKED.sub(lambda match: f"{match[1]}{text}\n{match[2]}", page).encode())


if __name__ == "__main__":
    write(json.loads((HERE / "results.json").read_text("utf-8")))
