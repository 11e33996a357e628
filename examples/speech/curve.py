"""What more training has brought: the models' quality against the hours of crops they have heard.

    python examples/speech/curve.py
    python examples/speech/curve.py --add speech-1k-v8 --round 19 --run runs/speech-1k --results comparison/results.json

Draws docs/curve.svg and prints a table from the record beside this file, curve.json: for each model the training runs
that made it, one after the other, each with what `q2d2 eval` measured at its end. Hours are steps times the batch times
the crop; they count from where the losses that hear words began (docs/training-notes.md, eleventh round).

With `--add` first puts a model into the record: what its run heard is in the run's folder (several runs that went on
from each other: `--run` several times; where an earlier model is a cool-down of the same run, `--counted` says how
many steps that one has in the record already), its scores are in the results of `q2d2 eval --out`, measured with
`--metrics distillmos,wer,stoi,pesq` and, for word errors against what is said, `--texts`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from q2d2cli.checkpoints import version
from q2d2cli.errors import Q2D2Error, UsageError
from q2d2cli.evaluation.metrics import METRICS
from q2d2cli.evaluation.plots import COLOURS, INK, MARKERS, new_figure, to_svg
from q2d2cli.files import atomic_output
from q2d2cli.training.config import RUN_CONFIG_NAME, read_config
from q2d2cli.training.export import read_cost

HERE = Path(__file__).parent
RECORD = HERE / "curve.json"
PICTURE = HERE.parent.parent / "docs" / "curve.svg"
METRIC_NAMES = ("distillmos", "wer", "stoi", "pesq")
HEARD = "wer_heard"
"""Word errors against what the recognizer hears in the recording, where no texts were given."""
PER_HOURS = 10
"""Slopes are per so many hours."""

Point = dict[str, Any]
Record = dict[str, list[Point]]


def heard(points: list[Point]) -> list[float]:
    """Hours of crops that a model had heard at each of its points."""
    hours, total = [], 0.0
    for point in points:
        total += point["steps"] * point["batch"] * point["crop_seconds"] / 3600
        hours.append(total)
    return hours


def values(points: list[Point], key: str) -> list[tuple[float, float]]:
    """Hours and value wherever a metric was measured."""
    return [(hours, point[key]) for hours, point in zip(heard(points), points, strict=True) if key in point]


def slope(points: list[Point], key: str) -> float | None:
    """What the last run brought in a metric, per `PER_HOURS`; None where it was not measured before and after."""
    found = values(points, key)[-2:]
    if len(found) < 2 or key not in points[-1] or found[0][0] == found[1][0]:
        return None
    (begin, before), (end, after) = found
    return PER_HOURS * (after - before) / (end - begin)


def add(record: Record, name: str, number: int, runs: list[Path], results: Path, counted: int = 0) -> None:
    """Put a model into the record.

    Args:
        record: what is known so far.
        name: of the model, as in the results.
        number: of the round in the notes.
        runs: what trained it since the last point, in order.
        results: of `q2d2 eval --out`.
        counted: steps of the first run that are in the record already.

    Raises:
        UsageError: if a run or the results cannot be read, runs have other batches or crops, or fewer steps than are
            counted, or the model is not in the results.
    """
    try:
        measured = json.loads(results.read_text(encoding="utf-8"))
        scores = next(codec for codec in measured["codecs"] if codec["name"] == name)["datasets"]["all"]
    except (OSError, ValueError, KeyError, StopIteration) as error:
        raise UsageError(f"{results} does not have scores of {name}: name results.json of q2d2 eval --out") from error
    configs = [read_config(run / RUN_CONFIG_NAME) for run in runs]
    crops = {(config.optim.batch_size, config.data.crop_seconds) for config in configs}
    if len(crops) != 1:
        raise UsageError("the runs have different batches or crops: add a point for each")
    ((batch, seconds),) = crops
    steps = sum(read_cost(run).steps for run in runs) - counted
    if steps <= 0:
        raise UsageError(f"the run has {steps + counted} steps, of which {counted} are counted: nothing is left to add")
    point: Point = {"name": name, "round": number, "steps": steps, "batch": batch, "crop_seconds": seconds}
    for metric in METRIC_NAMES:
        if (mean := scores.get(metric, {}).get("mean")) is not None:
            key = HEARD if metric == "wer" and not measured.get("texts") else metric
            point[key] = round(mean, METRICS[metric].decimals)
    points = record.setdefault(version(name)[0], [])
    points[:] = [*(other for other in points if other["name"] != name), point]


def to_json(record: Record) -> str:
    """The record, a line for each point."""
    models = []
    for model, points in record.items():
        lines = ",\n".join(f"  {json.dumps(point)}" for point in points)
        models.append(f" {json.dumps(model)}: [\n{lines}\n ]")
    return "{\n" + ",\n".join(models) + "\n}\n"


def table(record: Record) -> str:
    """Every point as Markdown, and what the last run brought per `PER_HOURS`."""
    titles = {key: METRICS[key].title for key in METRIC_NAMES} | {HEARD: "WER against what is heard, %"}
    lines = [f"| model | round | hours heard | {' | '.join(titles.values())} |", "|---|---|---|" + "---|" * len(titles)]

    def cell(value: float | None, key: str, sign: str = "") -> str:
        return "–" if value is None else f"{value:{sign}.{METRICS[key.removesuffix('_heard')].decimals}f}"

    for model, points in record.items():
        for hours, point in zip(heard(points), points, strict=True):
            name = point["name"] if point["name"].startswith(model) else f"{model}, {point['name']}"
            row = " | ".join(cell(point.get(key), key) for key in titles)
            lines.append(f"| {name} | {point['round']} | {hours:.1f} | {row} |")
        slopes = " | ".join(cell(slope(points, key), key, "+") for key in titles)
        lines.append(f"| the last run, per {PER_HOURS} hours | | | {slopes} |")
    return "\n".join(lines)


def draw(record: Record) -> str:
    """The picture as SVG: a panel for each metric."""
    figure, axes = new_figure(3.5, 3.2, len(METRIC_NAMES))
    for axis, metric in zip(axes, METRIC_NAMES, strict=True):
        for number, (model, points) in enumerate(record.items()):
            style = {"color": COLOURS[number], "marker": MARKERS[number], "markersize": 6, "linewidth": 1.5}
            if found := values(points, metric):
                axis.plot(*zip(*found, strict=True), label=model, **style)
            if metric == "wer" and (found := values(points, HEARD)):
                axis.plot(*zip(*found, strict=True), markerfacecolor="none", linestyle="--", **style)
        axis.set_xlabel("hours of crops heard")
        axis.set_ylabel(METRICS[metric].title + ("" if METRICS[metric].higher_is_better else " (lower is better)"))
        axis.set_xlim(left=-0.5)
        axis.margins(y=0.15)
        if metric == "wer":
            axis.set_title("dashed: against what is heard in the recording", fontsize=8)
    labels = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(labels.values(), labels.keys(), loc="outside lower center", ncols=4, frameon=False, labelcolor=INK)
    return to_svg(figure, standalone=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--add", metavar="MODEL", help="put this model into the record first")
    parser.add_argument("--round", type=int, help="its round in docs/training-notes.md")
    parser.add_argument("--run", type=Path, action="append", default=[], help="the run that made it, repeatable")
    parser.add_argument("--counted", metavar="STEPS", type=int, default=0, help="of the run, by an earlier model")
    parser.add_argument("--results", type=Path, help="results.json of q2d2 eval --out")
    parser.add_argument("--record", type=Path, default=RECORD, help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=PICTURE, help="default: %(default)s")
    arguments = parser.parse_args()
    try:
        record: Record = json.loads(arguments.record.read_text(encoding="utf-8"))
        if arguments.add:
            if arguments.round is None or not arguments.run or arguments.results is None:
                parser.error("--add needs --round, --run and --results")
            add(record, arguments.add, arguments.round, arguments.run, arguments.results, arguments.counted)
            with atomic_output(arguments.record) as file:
                file.write(to_json(record).encode())
        with atomic_output(arguments.out) as file:
            file.write(draw(record).encode())
    except Q2D2Error as error:
        parser.error(str(error))
    print(table(record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
