"""Plots of an evaluation: SVG that takes the page's text colour, so that light and dark pages both work."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from q2d2cli.evaluation.metrics import METRICS
from q2d2cli.evaluation.scoring import ScoreRow

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#d55e00", "#0f82c4", "#009e73", "#c466a0", "#b8860b", "#5a6fd0", "#8a8a8a")
"""Told apart with any kind of colour vision, on white and on black (after Okabe and Ito)."""
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")
"""One more than colours, so that colour and marker together take long to come again."""
INK = "#010203"
"""Stands for the page's text colour."""
MOST_COLUMNS = 4
"""Panels side by side."""
SPECTROGRAM_DB = 80.0
FLOOR = -100.0
"""Level at which spectrograms are black, dB."""
SPECTROGRAM_TOP = 12_000.0
"""Highest frequency that spectrograms show, Hz: half the models' rate."""


def new_figure(width: float, height: float, panels: int) -> tuple[Figure, list[Any]]:
    """A figure with panels of this size in inches, at most `MOST_COLUMNS` side by side, in ink on nothing."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    style: Any = {
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "font.size": 10,
    }
    columns = min(MOST_COLUMNS, panels)
    lines = -(-panels // columns)
    with rc_context(style):
        figure = Figure(figsize=(max(4.6, width * columns), height * lines), layout="constrained")
        axes = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axis in axes[panels:]:
        axis.remove()
    for axis in axes[:panels]:
        axis.grid(alpha=0.25, linewidth=0.6, color=INK)
        axis.set_axisbelow(True)
    return figure, axes[:panels]


def to_svg(figure: Figure, standalone: bool = False) -> str:
    """The figure as SVG, text kept as text; standalone, as a file of its own that follows the reader's theme."""
    from matplotlib import rc_context

    out = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "q2d2", "font.family": "sans-serif"}):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    if standalone:
        style = "<style>svg{color:#222}@media(prefers-color-scheme:dark){svg{color:#ddd}}</style>"
        start = svg.index(">") + 1
        svg = svg[:start] + style + svg[start:]
    return svg


def rate_quality(result: dict[str, Any]) -> Figure | None:
    """Mean and 95% interval of each metric against the payload's bit rate; None if no codec has one."""
    codecs = [codec for codec in result["codecs"] if codec["bit_rate"] and "channel" not in codec]
    metrics = [m for m in result["metrics"] if any(c["datasets"]["all"][m]["mean"] is not None for c in codecs)]
    if not codecs or not metrics:
        return None
    figure, axes = new_figure(3.5, 3.4, len(metrics))
    originals = [codec for codec in result["codecs"] if codec["identity"] == "original"]
    for axis, metric in zip(axes, metrics, strict=True):
        for number, codec in enumerate(codecs):
            entry = codec["datasets"]["all"][metric]
            if entry["mean"] is None:
                continue
            axis.errorbar(
                codec["bit_rate"] / 1000,
                entry["mean"],
                yerr=entry["interval95"] or 0.0,
                fmt=MARKERS[number % len(MARKERS)],
                color=COLOURS[number % len(COLOURS)],
                markersize=7,
                capsize=3,
                label=codec["name"],
            )
        for codec in originals:
            if (mean := codec["datasets"]["all"][metric]["mean"]) is not None:
                axis.axhline(mean, linestyle="--", linewidth=1, color=INK, alpha=0.6)
                axis.annotate(
                    "recordings", (1, mean), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8
                )
        axis.set_xlabel("kbit/s")
        axis.set_ylabel(METRICS[metric].title + ("" if METRICS[metric].higher_is_better else " (lower is better)"))
        # Room for whole markers on all sides, and from 0 on.
        axis.set_xlim(0, 1.1 * max(codec["bit_rate"] for codec in codecs) / 1000)
        axis.margins(y=0.15)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), frameon=False, labelcolor=INK)
    return figure


def channel_quality(result: dict[str, Any]) -> Figure | None:
    """Mean of each metric against what the channel does, a line per model and payload; None without a channel."""
    codecs = [codec for codec in result["codecs"] if "channel" in codec]
    metrics = [m for m in result["metrics"] if any(c["datasets"]["all"][m]["mean"] is not None for c in codecs)]
    if not metrics:
        return None
    clean = {c["name"]: c["datasets"]["all"] for c in result["codecs"] if "channel" not in c}
    models = list(dict.fromkeys(codec["channel"]["model"] for codec in codecs))
    figure, axes = new_figure(3.5, 3.4, len(metrics))
    for axis, metric in zip(axes, metrics, strict=True):
        for number, model in enumerate(models):
            colour = COLOURS[number % len(COLOURS)]
            for payload, line, marker in (("packed", ":", "s"), ("robust", "-", "o")):
                points = [
                    (c["channel"]["value"], c["datasets"]["all"][metric]["mean"])
                    for c in codecs
                    if c["channel"]["model"] == model and c["channel"]["payload"] == payload
                ]
                if not points:
                    continue
                label = f"{model}, {payload}"
                axis.plot(*zip(*points, strict=True), line, marker=marker, color=colour, markersize=5, label=label)
            if model in clean and (mean := clean[model][metric]["mean"]) is not None:
                axis.axhline(mean, linestyle="--", linewidth=1, color=colour, alpha=0.6)
        axis.set_xscale("log")
        axis.set_xlabel("bit error rate" if codecs[0]["channel"]["kind"] == "ber" else "share of lost blocks")
        axis.set_ylabel(METRICS[metric].title)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, labelcolor=INK)
    return figure


def validation_curve(log: Sequence[dict[str, Any]]) -> Figure | None:
    """Loss and metrics of a run's validations against its steps; None if it was never validated."""
    entries = [entry for entry in log if "valid_mel" in entry]
    titles = {"valid_mel": "log-mel L1", **{name: metric.title for name, metric in METRICS.items()}}
    names = [name for name in titles if any(entry.get(name) is not None for entry in entries)]
    if not names:
        return None
    figure, axes = new_figure(3.5, 2.8, len(names))
    for axis, name in zip(axes, names, strict=True):
        points = [(entry["step"], entry[name]) for entry in entries if entry.get(name) is not None]
        axis.plot(*zip(*points, strict=True), marker="o", markersize=4, color=COLOURS[1])
        axis.set_xlabel("step")
        axis.set_ylabel(titles[name])
        axis.set_xlim(left=0)
    return figure


def distributions(result: dict[str, Any], rows: Sequence[ScoreRow]) -> Figure | None:
    """Distribution of each metric over clips, a box per codec; None if nothing was scored."""
    metrics = [m for m in result["metrics"] if any(row["scores"].get(m) is not None for row in rows)]
    if not metrics:
        return None
    scored = {row["codec"] for row in rows if any(row["scores"].get(m) is not None for m in metrics)}
    codecs = [codec for codec in result["codecs"] if codec["identity"] in scored and "channel" not in codec]
    figure, axes = new_figure(3.5, 1.2 + 0.42 * len(codecs), len(metrics))
    for number, (axis, metric) in enumerate(zip(axes, metrics, strict=True)):
        values = [
            [v for row in rows if row["codec"] == c["identity"] and (v := row["scores"].get(metric)) is not None]
            for c in codecs
        ]
        boxes = axis.boxplot(
            values,
            orientation="horizontal",
            widths=0.6,
            patch_artist=True,
            flierprops={"marker": ".", "markersize": 3, "markeredgecolor": INK, "alpha": 0.5},
            medianprops={"color": INK},
            whiskerprops={"color": INK},
            capprops={"color": INK},
        )
        for place, box in enumerate(boxes["boxes"]):
            box.set(facecolor=COLOURS[place % len(COLOURS)], alpha=0.75, edgecolor=INK)
        axis.set_yticks(
            range(1, len(codecs) + 1), [c["name"] for c in codecs] if number % MOST_COLUMNS == 0 else [""] * len(codecs)
        )
        axis.invert_yaxis()
        axis.set_xlabel(METRICS[metric].title)
    return figure


def used_band(audio: np.ndarray, rate: int) -> float:
    """Highest frequency at which a spectrogram of `(samples,)` shows anything, up in whole kHz; at least 1000 Hz.

    What lies above is empty: the signal was once at a lower rate.
    """
    level, top = levels(audio, rate)
    inside = level[:, 2:-2] if level.shape[1] > 4 else level  # a signal cut at its ends clicks there
    shown = np.flatnonzero(inside.max(axis=1) > FLOOR)
    highest = (shown.max() + 1) / len(level) * top if len(shown) else 0.0
    return min(max(1000.0, math.ceil(highest / 1000) * 1000), top)


def levels(audio: np.ndarray, rate: int) -> tuple[np.ndarray, float]:
    """`(bins, frames)` levels of `(samples,)` in dB, and the frequency at which the bins end, Hz."""
    from scipy.signal import stft

    _, _, spectrum = stft(audio, rate, nperseg=512 * rate // 16_000 or 1, noverlap=None, padded=True)
    top = min(SPECTROGRAM_TOP, rate / 2)
    return (20 * np.log10(np.abs(spectrum) + 1e-7))[: max(1, round(len(spectrum) * top / (rate / 2)))], top


def spectrogram(audio: np.ndarray, rate: int, highest: float) -> str:
    """Spectrogram of `(samples,)` up to `highest` Hz as SVG with axes in s and kHz, 80 dB deep."""
    level, top = levels(audio, rate)
    figure, (axis,) = new_figure(4.6, 1.9, 1)
    axis.grid(False)
    axis.imshow(
        level,
        origin="lower",
        aspect="auto",
        extent=(0, len(audio) / rate, 0, top / 1000),
        vmin=FLOOR,
        vmax=FLOOR + SPECTROGRAM_DB,
        cmap="magma",
    )
    axis.set_ylim(0, highest / 1000)
    axis.set_xlabel("s", labelpad=0)
    axis.set_ylabel("kHz")
    return to_svg(figure)
