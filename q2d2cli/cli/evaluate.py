"""`q2d2 eval`: measure and compare codecs on audio."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from q2d2cli.checkpoints import DEFAULT_MODEL
from q2d2cli.cli.common import Device, Json, Limit, Quiet, check_packages, count_bar
from q2d2cli.errors import Q2D2Error, UsageError, report
from q2d2cli.files import atomic_output, make_folder

if TYPE_CHECKING:
    from q2d2cli.evaluation.codecs import Subject
    from q2d2cli.evaluation.evaluate import Clip, Plan, Row
    from q2d2cli.evaluation.listening import Kind

SPEED = ("rtf", "memory")
"""Names that `--metrics` takes beside those of `evaluation.metrics.METRICS`: of the codec, not of its audio."""
LISTENING_CLIPS = 30
"""More take a listener longer than anybody can judge: BS.1534 asks for sessions below half an hour."""
LISTENING_SECONDS = 12.0
"""Longest excerpt; BS.1534 recommends about 10 s."""


class ListeningKind(StrEnum):
    """What listeners are asked."""

    MUSHRA = "mushra"
    CMOS_Q = "cmos-q"
    CMOS_P = "cmos-p"


SPEED_COLUMNS = (("rtf_encode", "encode RTF", 4), ("rtf_decode", "decode RTF", 4), ("memory_mb", "memory, MB", 0))
"""Key in the result, title and decimals."""
STATE_NAME, CSV_NAME, JSON_NAME = "scores.jsonl", "scores.csv", "results.json"
REPORT_NAME, PLOT_NAME = "report.html", "rate-quality.svg"
CHANNEL_NAME, TABLE_NAME = "channel.svg", "table.md"


def evaluate(
    paths: Annotated[
        list[Path],
        typer.Argument(
            help="Folder (searched recursively), list of paths (.txt) or file; and perhaps a folder of the same clips "
            "decoded elsewhere, to score these.",
            show_default=False,
        ),
    ],
    metrics: Annotated[
        str,
        typer.Option(
            "--metrics",
            help="Comma-separated: utmos, dnsmos, distillmos, wer, speaker, visqol, pesq, stoi, vuv_f1, si_sdr, level, "
            "lines, mel, rtf, memory.",
        ),
    ] = "pesq,stoi",
    codec: Annotated[
        list[str] | None,
        typer.Option(
            "--codec",
            "-c",
            help="q2d2:NAME[:EFFORT], opus:6, codec2:3200, speex:8, encodec:6, dac, mimi:8, snac, original; repeat to "
            "compare.",
            show_default=f"q2d2:{DEFAULT_MODEL}",
        ),
    ] = None,
    limit: Limit = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Folder for report.html, scores.csv, results.json and a plot; run again to go on.",
            show_default=False,
        ),
    ] = None,
    channel: Annotated[
        str | None,
        typer.Option(
            "--channel", help="ber=1e-4,1e-3 or loss=0.05,0.1: also score the models over it.", show_default=False
        ),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", "-j", min=1, help="Processes.", show_default="one per core, one on a GPU")
    ] = None,
    utmos_weights: Annotated[
        Path | None,
        typer.Option("--utmos-weights", help="utmos_state_dict.pt, if not from the Hub.", show_default=False),
    ] = None,
    recognizer: Annotated[
        str | None,
        typer.Option(
            "--recognizer", help="What hears for wer: tiny.en, base, small ... or a folder.", show_default="base"
        ),
    ] = None,
    texts: Annotated[
        Path | None,
        typer.Option("--texts", help="What is said, for wer: a file of lines NAME TEXT.", show_default=False),
    ] = None,
    listening_test: Annotated[
        Path | None,
        typer.Option("--listening-test", help="Instead, build a listening test in this folder.", show_default=False),
    ] = None,
    listening_kind: Annotated[
        ListeningKind, typer.Option("--listening-kind", help="What listeners are asked.")
    ] = ListeningKind.MUSHRA,
    listening_results: Annotated[
        bool, typer.Option("--listening-results", help="Instead, sum up the result files of listeners.")
    ] = False,
    device: Device = "auto",
    quiet: Quiet = False,
    as_json: Json = False,
) -> int:
    """Encode and decode audio with one codec or several, and measure what came back.

    q2d2 eval --metrics pesq,stoi FOLDER

    q2d2 eval --codec q2d2:speech-3k --codec opus:6 --codec codec2:3200 --out comparison FOLDER

    q2d2 eval ORIGINALS DECODED

    q2d2 eval --codec q2d2:speech-3k --codec opus:6 --limit 2 --listening-test page FOLDER

    q2d2 eval --listening-results listener-*.json
    """
    if listening_results:
        return sum_up_listeners(paths, as_json)
    from q2d2cli.evaluation.metrics import UTMOS_VARIABLE
    from q2d2cli.evaluation.recognizer import RECOGNIZER_VARIABLE

    source, degraded = split(paths)
    names = [name.strip() for name in metrics.split(",") if name.strip()]
    specs = list(dict.fromkeys(codec or []))
    if not specs and degraded is None:
        specs = [f"q2d2:{DEFAULT_MODEL}"]
    if channel is not None:
        from q2d2cli.evaluation.codecs import damaged

        specs += damaged(specs, channel)
    if listening_test is not None:
        return build_test(source, specs, degraded, limit, listening_test, listening_kind.value, device, quiet)
    for variable, value in ((UTMOS_VARIABLE, utmos_weights), (RECOGNIZER_VARIABLE, recognizer)):
        if value is not None:
            os.environ[variable] = str(value)  # for the other processes, too
    result = measure(source, names, specs, degraded, limit, out, jobs, texts, device, quiet)
    if as_json:
        print(json.dumps(result))
    else:
        show(result)
    return 1 if result["problems"] else 0


def split(paths: Sequence[Path]) -> tuple[Path, Path | None]:
    """Audio, and perhaps its decoded counterpart.

    Raises:
        UsageError: if there is more, or the second is no folder.
    """
    if len(paths) > 2:
        raise UsageError("too many paths: give a folder, list or file, and perhaps a folder of decoded files")
    degraded = paths[1] if len(paths) == 2 else None
    if degraded is not None and not degraded.is_dir():
        raise UsageError(f"{degraded} is not a folder: give the one with the decoded files")
    return paths[0], degraded


def build_test(
    source: Path,
    specs: Sequence[str],
    degraded: Path | None,
    limit: int | None,
    out: Path,
    kind: Kind,
    device: str,
    quiet: bool,
) -> int:
    """Build a listening test of these codecs from the clips; returns the exit code.

    Raises:
        UsageError: if it would take too long, or cannot be built.
    """
    check_packages("--listening-test", "scipy")
    from q2d2cli.audio import read_original
    from q2d2cli.evaluation.evaluate import Plan, choose_clips
    from q2d2cli.evaluation.listening import Trial, build_listening_test

    clips = choose_clips(source, limit)
    if len(clips) > LISTENING_CLIPS:
        raise UsageError(f"{len(clips)} clips are too many for listeners: take at most {LISTENING_CLIPS} with --limit")
    usable, subjects = open_all(Plan(tuple(specs), degraded, (), device))
    trials = []
    with count_bar("decoding", len(clips), quiet) as progress:
        for done, clip in enumerate(clips, 1):
            audio, rate = read_original(clip.path)
            audio = audio[: int(LISTENING_SECONDS * rate)]
            systems = {s.name: s.reconstruct(audio, rate, Path(clip.name)).audio for s in subjects}
            trials.append(Trial(clip.name, rate, audio, systems))
            progress(done)
    page = build_listening_test(out, kind, "Listening test", trials)
    if not quiet:
        print(f"{page}: open it in a browser, or put the folder on a web server", file=sys.stderr)
    return 0 if len(usable.specs) == len(specs) else 1


def sum_up_listeners(paths: Sequence[Path], as_json: bool) -> int:
    """Print what listeners said; returns the exit code."""
    check_packages("--listening-results", "scipy")
    from q2d2cli.cli.listening import show as show_listeners
    from q2d2cli.evaluation.listening_results import listening_results

    results = listening_results(paths)
    if as_json:
        print(json.dumps(results))
    else:
        show_listeners(results)
    return 0


def measure(
    source: Path,
    names: Sequence[str],
    specs: Sequence[str],
    degraded: Path | None = None,
    limit: int | None = None,
    out: Path | None = None,
    jobs: int | None = None,
    texts: Path | None = None,
    device: str = "auto",
    quiet: bool = False,
) -> dict[str, Any]:
    """Run an evaluation with a progress bar, and name what went wrong.

    Returns:
        As `evaluate.sum_up`, and `problems`: how many files, codecs or metrics failed.

    Raises:
        UsageError: on an unknown metric or codec, a missing package, no audio.
    """
    from q2d2cli.evaluation.metrics import METRICS, check_names

    check_names(names, SPEED)
    from q2d2cli.evaluation.evaluate import Plan, choose_clips, default_jobs, sum_up
    from q2d2cli.evaluation.evaluate import evaluate as run

    clips = choose_clips(source, limit, texts)
    if out is not None:
        make_folder(out)
    scored = possible([name for name in names if name in METRICS], quiet)
    problems = len([name for name in names if name in METRICS]) - len(scored)
    if not scored and problems and not any(name in SPEED for name in names):
        raise UsageError(f"nothing left to measure: name another metric beside {', '.join(names)}")
    usable, subjects = open_all(Plan(tuple(specs), degraded, tuple(scored), device))
    problems += len(specs) - len(usable.specs)
    with count_bar("measuring", len(clips), quiet) as progress:
        state = out / STATE_NAME if out else None
        rows, skipped = run(usable, subjects, clips, jobs or default_jobs(device), state, progress)
    result = sum_up(usable, subjects, rows, skipped)
    for reason in skipped:
        report(f"skipped: {reason}")
    for entry in result["codecs"]:
        for reason in entry["failed"][:5]:
            report(reason)
        if len(entry["failed"]) > 5:
            report(f"{entry['name']}: {len(entry['failed']) - 5} more")
    problems += len(skipped) + sum(len(entry["failed"]) for entry in result["codecs"])
    if any(name in SPEED for name in names):
        problems += add_speed(result, usable, clips, [name for name in names if name in SPEED], quiet)
    result["problems"] = problems
    if out is not None:
        write_all(out, result, rows, subjects, clips)
    return result


def possible(names: Sequence[str], quiet: bool) -> list[str]:
    """Those of the metrics that can be computed here; the others are named, one line each."""
    from rich.console import Console

    from q2d2cli.evaluation.metrics import why_not

    good = []
    for name in names:
        with Console(stderr=True, quiet=quiet).status(f"looking for what {name} needs"):
            reason = why_not(name)
        if reason is None:
            good.append(name)
        else:
            report(f"{name} left out: {reason}")
    return good


def open_all(plan: Plan) -> tuple[Plan, list[Subject]]:
    """The codecs that can run here, and a plan with only these; the others are named, one line each.

    Raises:
        UsageError: if one is unknown.
        Q2D2Error: if none can run.
    """
    from dataclasses import replace

    from q2d2cli.evaluation.codecs import FolderSubject, open_subject

    subjects: dict[str, Subject] = {}
    failure: Q2D2Error | None = None
    for spec in plan.specs:
        try:
            subjects[spec] = open_subject(spec, plan.device)
        except UsageError:
            raise
        except Q2D2Error as error:
            if failure is not None:
                report(str(failure))
            failure = error
    if failure is not None and not subjects and plan.degraded is None:
        raise failure
    if failure is not None:
        report(str(failure))
    others = [FolderSubject(plan.degraded)] if plan.degraded else []
    return replace(plan, specs=tuple(subjects)), [*subjects.values(), *others]


def add_speed(result: dict[str, Any], plan: Plan, clips: Sequence[Clip], wanted: Sequence[str], quiet: bool) -> int:
    """Time the codecs one after another and put the numbers into the result; returns how many failed."""
    import numpy as np
    from rich.console import Console

    from q2d2cli.audio import read_mono
    from q2d2cli.evaluation.speed import SECONDS, measure_speed

    rate, parts, total = 24_000, [], 0
    for clip in clips:
        try:
            parts.append(read_mono(clip.path, rate))
        except Q2D2Error:
            continue
        total += len(parts[-1])
        if total >= SECONDS * rate:
            break
    audio = np.concatenate(parts)[: int(SECONDS * rate)]
    keys = {"rtf": ("rtf_encode", "rtf_decode"), "memory": ("memory_mb",)}
    failed = 0
    with Console(stderr=True, quiet=quiet).status("timing"):
        for spec, entry in zip(plan.specs, result["codecs"], strict=False):
            if entry["identity"] == "original" or "channel" in entry:
                continue
            try:
                measured = measure_speed(spec, plan.device, audio, rate)
            except Q2D2Error as error:
                report(f"{entry['name']} could not be timed: {error}")
                failed += 1
                continue
            entry.update({key: measured[key] for name in wanted for key in keys[name]})
    return failed


def write_all(
    out: Path, result: dict[str, Any], rows: Sequence[Row], subjects: Sequence[Subject], clips: Sequence[Clip]
) -> None:
    """Write everything that `--out` gets, each file whole or not at all."""
    from q2d2cli.evaluation.evaluate import to_csv
    from q2d2cli.evaluation.tables import by_codec

    texts = {
        CSV_NAME: to_csv(result, rows),
        JSON_NAME: json.dumps(result, indent=1) + "\n",
        TABLE_NAME: by_codec(result) + "\n",
    }
    try:
        from q2d2cli.evaluation.plots import channel_quality, rate_quality, to_svg
        from q2d2cli.evaluation.report import write_report

        texts[REPORT_NAME] = write_report(result, rows, subjects, clips)
        if (figure := rate_quality(result)) is not None:
            texts[PLOT_NAME] = to_svg(figure, standalone=True)
        if (figure := channel_quality(result)) is not None:
            texts[CHANNEL_NAME] = to_svg(figure, standalone=True)
    except ModuleNotFoundError as error:
        report(f'no report and plot, {error.name} is not here: pip install "q2d2[eval]"')
    for name, text in texts.items():
        with atomic_output(out / name) as file:
            file.write(text.encode())


def show(result: dict[str, Any]) -> None:
    """The result as tables."""
    from rich.console import Console

    console = Console()
    datasets = [name for name in result["codecs"][0]["datasets"] if name != "all"]
    tables = [(f"{result['files']} files, {result['minutes']} minutes", ["all"])]
    if datasets:
        tables.append(("by dataset", datasets))
    for title, names in tables:
        table = score_table(result, title, names, intervals=True)
        needed = Console(width=1000).measure(table).maximum
        if not console.is_terminal:
            console = Console(width=max(console.width, needed))  # a file or a pipe has no width
        elif needed > console.width:
            table = score_table(result, title, names, intervals=False)
        console.print(table)
    for codec in result["codecs"]:
        if "pair_entropy" in codec:
            console.print(pair_table(codec))


def score_table(result: dict[str, Any], title: str, datasets: Sequence[str], intervals: bool) -> Any:
    """Codecs under each other, metrics beside each other, like the paper's Table 2."""
    from rich.table import Table

    from q2d2cli.evaluation.metrics import METRICS
    from q2d2cli.evaluation.tables import mean_cell

    metrics, overall = result["metrics"], list(datasets) == ["all"]
    extra = [column for column in SPEED_COLUMNS if overall and any(column[0] in codec for codec in result["codecs"])]
    table = Table(title=title, box=None)
    for column in ["codec"] if overall else ["dataset", "codec"]:
        table.add_column(column, no_wrap=True)
    heads = ["kbit/s", "Nq", "tokens/s"] if overall else []
    for column in [*heads, *(METRICS[m].title for m in metrics), "n", *(head for _, head, _ in extra)]:
        table.add_column(column, justify="right", no_wrap=True)
    for dataset in datasets:
        for position, codec in enumerate(result["codecs"]):
            entry, rate = codec["datasets"][dataset], codec["bit_rate"]
            cells = [codec["name"]] if overall else ["" if position else dataset, codec["name"]]
            if overall:
                cells += [number(rate and rate / 1000, 2), number(codec["num_quantizers"], 0)]
                cells.append(number(codec["tokens_per_second"], 1))
            cells += [mean_cell(entry[m], METRICS[m].decimals, entry["files"], intervals) for m in metrics]
            table.add_row(*cells, str(entry["files"]), *(number(codec.get(key), digits) for key, _, digits in extra))
    return table


def pair_table(codec: dict[str, Any]) -> Any:
    """How a model uses its codebook."""
    from rich.table import Table

    title = f"{codec['name']}: {codec['codebook_seen']} of {codec['codebook_size']} codes in {codec['frames']} frames"
    pairs = Table(title=title, box=None)
    for column in ("pair", "entropy, bits", "of", "points used"):
        pairs.add_column(column, justify="right")
    columns = (codec["pair_entropy"], codec["pair_entropy_max"], codec["pair_utilization"])
    for index, (entropy, most, used) in enumerate(zip(*columns, strict=True)):
        pairs.add_row(str(index), f"{entropy:.2f}", f"{most:.2f}", f"{100 * used:.1f}%")
    return pairs


def number(value: float | None, decimals: int) -> str:
    """A number, or a dash."""
    return "-" if value is None else f"{value:.{decimals}f}"
