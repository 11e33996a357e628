"""Scores of codecs on clips, one by one: in parallel, and resumable."""

from __future__ import annotations

import base64
import json
import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np

from q2d2cli import __version__
from q2d2cli.audio import read_original
from q2d2cli.container.packing import pack, unpack
from q2d2cli.errors import Q2D2Error
from q2d2cli.evaluation.clips import Clip
from q2d2cli.evaluation.codecs import open_subject
from q2d2cli.evaluation.metrics import METRICS, basis, score
from q2d2cli.evaluation.subjects import FolderSubject, Original, Subject

Scores = dict[str, float | None]


class ScoreRow(TypedDict):
    """One codec on one clip, as it stands in `scores.jsonl`."""

    codec: str
    clip: str
    stamp: str
    """Changes when the clip, or what a codec's result depends on beside it, does."""
    bases: dict[str, str]
    """Of each metric, what its value depends on beside the signals (`metrics.basis`)."""
    dataset: str
    seconds: float
    frames: int
    payload_bits: float | None
    file_bytes: int | None
    codes: str | None
    scores: Scores
    weights: dict[str, float]
    problems: dict[str, str]
    error: str | None


def codes_of(row: ScoreRow, sizes: tuple[int, ...]) -> np.ndarray | None:
    """`(frames, pairs)` int64 indices that a row keeps; None if it keeps none."""
    return unpack(base64.b64decode(row["codes"]), row["frames"], sizes) if row["codes"] else None


def score_clip(clip: Clip, subjects: Sequence[Subject], metrics: Sequence[str]) -> list[ScoreRow]:
    """Every codec on one clip; failures stand in the rows.

    Raises:
        Q2D2Error: if the clip itself cannot be read.
    """
    audio, rate = read_original(clip.path)
    rows: list[ScoreRow] = []
    for subject in subjects:
        row = ScoreRow(
            codec=subject.identity,
            clip=clip.name,
            stamp=stamp(clip, subject),
            bases={name: basis(name, clip.text) for name in metrics},
            dataset=clip.dataset,
            seconds=len(audio) / rate,
            frames=0,
            payload_bits=None,
            file_bytes=None,
            codes=None,
            scores=dict.fromkeys(metrics),
            weights={},
            problems={},
            error=None,
        )
        try:
            result = subject.reconstruct(audio, rate, Path(clip.name))
        except Exception as error:  # of any library, for one clip: not worth the others
            row["error"] = f"{subject.name}: {reason(error, clip)}"
        else:
            row["payload_bits"], row["file_bytes"] = result.size
            if result.indices is not None and subject.sizes is not None:
                row["frames"] = len(result.indices)
                row["codes"] = base64.b64encode(pack(result.indices, subject.sizes)).decode()
            original = isinstance(subject, Original)
            names = [n for n in metrics if not original or METRICS[n].scores_recordings(clip.text)]
            scored = score(names, audio, result.audio, rate, clip.text)
            row["scores"] |= scored.values
            row["weights"], row["problems"] = scored.weights, scored.problems
        rows.append(row)
    return rows


@dataclass(frozen=True)
class ScoringPlan:
    """What to score: enough for another process to do it.

    Attributes:
        specs: codecs, as `open_subject` takes them.
        degraded: folder of files decoded elsewhere, or None.
        metrics: names.
        device: for neural codecs.
    """

    specs: tuple[str, ...]
    degraded: Path | None
    metrics: tuple[str, ...]
    device: str

    def open(self) -> list[Subject]:
        """The codecs, loaded.

        Raises:
            Q2D2Error: if one cannot run here.
        """
        subjects = [open_subject(spec, self.device) for spec in self.specs]
        return [*subjects, FolderSubject(self.degraded)] if self.degraded else subjects


_worker: tuple[list[Subject], ScoringPlan]


def start_worker(plan: ScoringPlan) -> None:
    """Make a process ready: one thread, since there is one process per core."""
    import torch

    global _worker
    torch.set_num_threads(1)
    _worker = plan.open(), plan


def work(clip: Clip, wanted: Sequence[str]) -> list[ScoreRow] | str:
    """Rows of one clip and these codecs (identities) in a ready process, or why it could not be read."""
    subjects, plan = _worker
    try:
        return score_clip(clip, [subject for subject in subjects if subject.identity in wanted], plan.metrics)
    except Exception as error:  # of any library, for one clip: not worth the others
        return reason(error, clip)


def reason(error: Exception, clip: Clip) -> str:
    """An error in words; one that is not ours with its kind and the clip it came with."""
    return str(error) if isinstance(error, Q2D2Error) else f"{clip.name}: {type(error).__name__}: {error}"


def stamp(clip: Clip, subject: Subject) -> str:
    """Changes when a clip, or what a codec's result for it depends on, does."""
    return f"{clip.stamp()} {subject.stamp(Path(clip.name))} q2d2 {__version__}"


def score_all(
    plan: ScoringPlan,
    subjects: Sequence[Subject],
    clips: Sequence[Clip],
    jobs: int = 1,
    state: Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> tuple[list[ScoreRow], list[str]]:
    """Score every codec on every clip.

    Args:
        plan: codecs and metrics.
        subjects: the same codecs, loaded (`plan.open()`).
        clips: files.
        jobs: processes.
        state: JSON-lines file that gets each row as it is done, and whose rows are not done again.
        progress: called with the number of clips done.

    Returns:
        The rows in the order of `clips` and `subjects`, and a reason for each clip that could not be read.

    Raises:
        Q2D2Error: if no clip could be read.
    """
    kept = read_state(state) if state else {}
    results: dict[tuple[str, str], ScoreRow] = {}
    skipped: list[str] = []
    todo: list[tuple[Clip, list[str]]] = []
    for clip in clips:
        missing = []
        for subject in subjects:
            key = subject.identity, clip.name
            row = kept.get(key)
            if row is not None and is_current(row, clip, subject, plan.metrics):
                results[key] = row
            else:
                missing.append(subject.identity)
        if missing:
            todo.append((clip, missing))
    count = len(clips) - len(todo)

    def take(outcome: list[ScoreRow] | str) -> None:
        nonlocal count
        count += 1
        if isinstance(outcome, str):
            skipped.append(outcome)
        else:
            results.update({(row["codec"], row["clip"]): row for row in outcome})
            if state:
                with state.open("a", encoding="utf-8") as file:
                    file.writelines(json.dumps(row) + "\n" for row in outcome)
        if progress:
            progress(count)

    if progress:
        progress(count)
    if jobs == 1 or len(todo) < 2:
        global _worker
        _worker = list(subjects), plan
        for job in todo:
            take(work(*job))
    else:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(jobs, len(todo)), context, start_worker, (plan,)) as pool:
            try:
                for future in as_completed([pool.submit(work, *job) for job in todo]):
                    take(future.result())
            except BrokenProcessPool as error:
                raise Q2D2Error("a process that scored clips was killed: is there enough memory for --jobs?") from error
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    if not results:
        raise Q2D2Error(f"none of the {len(clips)} files could be read: {skipped[0]}")
    keys = [(subject.identity, clip.name) for clip in clips for subject in subjects]
    return [results[key] for key in keys if key in results], sorted(skipped)


def is_current(row: ScoreRow, clip: Clip, subject: Subject, metrics: Sequence[str]) -> bool:
    """Whether a row of an earlier run is what scoring again would give."""
    return (
        clip.path.is_file()
        and row["stamp"] == stamp(clip, subject)
        and all(row["bases"].get(name) == basis(name, clip.text) for name in metrics)
    )


def read_state(state: Path) -> dict[tuple[str, str], ScoreRow]:
    """Rows of an earlier run in which nothing failed, by codec and clip; the latest of each."""
    kept: dict[tuple[str, str], ScoreRow] = {}
    if state.exists():
        for line in state.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
                if not row["error"] and not row["problems"] and row["bases"].keys() <= row["scores"].keys():
                    kept[row["codec"], row["clip"]] = row
            except (ValueError, KeyError, TypeError, AttributeError):
                continue  # the line at which the earlier run was killed, or one of an earlier version
    return kept


def default_jobs(device: str) -> int:
    """Processes to use: one per core on a CPU, one on a GPU."""
    from q2d2cli.runtimes.pytorch import pick_device

    return (os.cpu_count() or 1) if pick_device(device).type == "cpu" else 1
