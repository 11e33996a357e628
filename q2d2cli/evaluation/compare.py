"""A comparison of codecs from beginning to end: metrics, codecs, scores, speed, and everything written."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from q2d2cli.audio import read_mono
from q2d2cli.errors import Q2D2Error, UsageError
from q2d2cli.evaluation.clips import Clip
from q2d2cli.evaluation.codecs import open_subject
from q2d2cli.evaluation.metrics import SPEED, why_not
from q2d2cli.evaluation.scoring import ScoreRow, ScoringPlan, default_jobs, score_all
from q2d2cli.evaluation.speed import SECONDS, measure_speed
from q2d2cli.evaluation.subjects import FolderSubject, Subject
from q2d2cli.evaluation.summary import sum_up, to_csv
from q2d2cli.evaluation.tables import score_table, to_markdown
from q2d2cli.files import atomic_output, make_folder

STATE_NAME, CSV_NAME, JSON_NAME = "scores.jsonl", "scores.csv", "results.json"
REPORT_NAME, PLOT_NAME = "report.html", "rate-quality.svg"
CHANNEL_NAME, TABLE_NAME = "channel.svg", "table.md"
MOST_REASONS = 5
"""Of a codec's failures that are told one by one."""

Bars = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""What shows progress: takes a description and a number of steps, gives what to call with how many are done."""


@dataclass(frozen=True)
class Voice:
    """How a comparison speaks while it runs.

    Attributes:
        tell: called with each thing that went wrong, one line.
        bars: shows progress.
    """

    tell: Callable[[str], None]
    bars: Bars


def compare(
    plan: ScoringPlan,
    clips: Sequence[Clip],
    voice: Voice,
    *,
    speed: Sequence[str] = (),
    jobs: int | None = None,
    out: Path | None = None,
) -> dict[str, Any]:
    """Score codecs on clips, time them, and write what there is to read.

    Args:
        plan: codecs and metrics.
        clips: what they are scored on.
        voice: hears what went wrong, and how far it is.
        speed: of `SPEED`.
        jobs: processes; None for as many as fit.
        out: folder for report, tables and plots; also the state to go on from.

    Returns:
        As `summary.sum_up`; `problems`: how many files, codecs or metrics failed; and with `wer` also `texts`: how many
        files it judged by a given text, not by what is heard in the recording.

    Raises:
        UsageError: if nothing is left to measure, or a codec is unknown.
        Q2D2Error: if no codec can run, or no clip could be read.
    """
    if out is not None:
        make_folder(out)
    metrics = possible(plan.metrics, voice)
    if plan.metrics and not metrics and not speed:
        raise UsageError(f"nothing left to measure: name another metric beside {', '.join(plan.metrics)}")
    problems = len(plan.metrics) - len(metrics)
    usable, subjects = open_all(replace(plan, metrics=tuple(metrics)), voice)
    problems += len(plan.specs) - len(usable.specs)
    with voice.bars("measuring", len(clips)) as progress:
        state = out / STATE_NAME if out else None
        rows, skipped = score_all(usable, subjects, clips, jobs or default_jobs(plan.device), state, progress)
    result = sum_up(usable, subjects, rows, skipped)
    if "wer" in metrics:
        scored = {row["clip"] for row in rows}
        result["texts"] = sum(clip.text is not None for clip in clips if clip.name in scored)
    for reason in skipped:
        voice.tell(f"skipped: {reason}")
    for entry in result["codecs"]:
        for reason in entry["failed"][:MOST_REASONS]:
            voice.tell(reason)
        if (more := len(entry["failed"]) - MOST_REASONS) > 0:
            voice.tell(f"{entry['name']}: {more} more")
    problems += len(skipped) + sum(len(entry["failed"]) for entry in result["codecs"])
    if speed:
        problems += add_speed(result, usable, clips, speed, voice)
    result["problems"] = problems
    if out is not None:
        write_all(out, result, rows, subjects, clips, voice)
    return result


def possible(metrics: Sequence[str], voice: Voice) -> list[str]:
    """Those of the metrics that can be computed here; the others are told."""
    good = []
    with voice.bars("looking for what metrics need", len(metrics)) as progress:
        for done, name in enumerate(metrics, 1):
            reason = why_not(name)
            if reason is None:
                good.append(name)
            else:
                voice.tell(f"{name} left out: {reason}")
            progress(done)
    return good


def open_all(plan: ScoringPlan, voice: Voice) -> tuple[ScoringPlan, list[Subject]]:
    """The codecs that can run here, and a plan with only these; the others are told.

    Raises:
        UsageError: if one is unknown.
        Q2D2Error: if none can run.
    """
    subjects: dict[str, Subject] = {}
    failures: list[Q2D2Error] = []
    for spec in plan.specs:
        try:
            subjects[spec] = open_subject(spec, plan.device)
        except UsageError:
            raise
        except Q2D2Error as error:
            failures.append(error)
    if failures and not subjects and plan.degraded is None:
        for failure in failures[:-1]:
            voice.tell(str(failure))
        raise failures[-1]
    for failure in failures:
        voice.tell(str(failure))
    others = [FolderSubject(plan.degraded)] if plan.degraded else []
    return replace(plan, specs=tuple(subjects)), [*subjects.values(), *others]


def add_speed(
    result: dict[str, Any], plan: ScoringPlan, clips: Sequence[Clip], speed: Sequence[str], voice: Voice
) -> int:
    """Time the codecs one after another and put the numbers into the result; returns how many failed."""
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
    failed = 0
    with voice.bars("timing", len(plan.specs)) as progress:
        for done, (spec, entry) in enumerate(zip(plan.specs, result["codecs"], strict=False), 1):
            if entry["identity"] != "original" and "channel" not in entry:
                try:
                    measured = measure_speed(spec, plan.device, audio, rate)
                    entry.update({key: measured[key] for name in speed for key in SPEED[name]})
                except Q2D2Error as error:
                    voice.tell(f"{entry['name']} could not be timed: {error}")
                    failed += 1
            progress(done)
    return failed


def write_all(
    out: Path,
    result: dict[str, Any],
    rows: Sequence[ScoreRow],
    subjects: Sequence[Subject],
    clips: Sequence[Clip],
    voice: Voice,
) -> None:
    """Write everything that a folder gets, each file whole or not at all."""
    texts = {
        CSV_NAME: to_csv(result, rows),
        JSON_NAME: json.dumps(result, indent=1) + "\n",
        TABLE_NAME: to_markdown(score_table(result, brief=True)) + "\n",
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
        voice.tell(f'no report and plot, {error.name} is not here: pip install "q2d2[eval]"')
    for name, text in texts.items():
        with atomic_output(out / name) as file:
            file.write(text.encode())
