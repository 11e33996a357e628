"""Scores of codecs over files: in parallel, resumable, and summed up."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import multiprocessing
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from q2d2cli.audio import audio_files, read_list, read_original
from q2d2cli.container.packing import pack, unpack
from q2d2cli.errors import Q2D2Error, UsageError
from q2d2cli.evaluation.codebook import pair_entropies, pair_utilization
from q2d2cli.evaluation.codecs import ChannelSubject, FolderSubject, Original, Subject, open_subject
from q2d2cli.evaluation.metrics import METRICS, score

Scores = dict[str, float | None]


@dataclass(frozen=True)
class Clip:
    """A file to score.

    Attributes:
        path: where it is.
        name: its path relative to the folder or list it came from.
        text: what is said in it; None if not known.
    """

    path: Path
    name: str
    text: str | None = None

    @property
    def dataset(self) -> str:
        """The folder it lies in, first level; `.` if in none."""
        parts = Path(self.name).parts
        return parts[0] if len(parts) > 1 else "."

    def stamp(self) -> str:
        """Changes when the file does."""
        status = self.path.stat()
        return f"{status.st_size}-{status.st_mtime_ns}"


class Row(TypedDict):
    """One codec on one clip, as it stands in `scores.jsonl`."""

    codec: str
    clip: str
    stamp: str
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


def find_clips(source: Path) -> list[Clip]:
    """The clips of a folder (recursive), a list (`read_list`; .txt, .lst, .list or .scp) or a single file.

    Raises:
        UsageError: if there is no audio.
    """
    if source.is_dir():
        return [Clip(path, str(path.relative_to(source))) for path in audio_files(source)]
    if source.suffix.lower() not in {".txt", ".lst", ".scp", ".list"}:
        if not source.is_file():
            raise UsageError(f"{source} is not there: give a folder of audio, a list (.txt) or a file")
        return [Clip(source, source.name)]
    return [Clip(path, list_name(source, path)) for path in read_list(source)]


def list_name(source: Path, path: Path) -> str:
    """What a clip of a list is called: its path, from the list's folder if it is in there."""
    return str(path.relative_to(source.parent) if path.is_relative_to(source.parent) else path).lstrip("/")


def spread(files: Sequence[Path], limit: int | None) -> list[Path]:
    """At most `limit` of the files of each folder, evenly spaced in sorted order: the same ones every time."""
    if limit is None:
        return list(files)
    chosen: list[Path] = []
    for folder in sorted({path.parent for path in files}):
        here = sorted(path for path in files if path.parent == folder)
        count = min(limit, len(here))
        chosen += [here[i * len(here) // count] for i in range(count)]
    return chosen


def choose_clips(source: Path, limit: int | None, texts: Path | None = None) -> list[Clip]:
    """The clips of `find_clips`, at most `limit` of each folder (`spread`), with what is said in them (`read_texts`).

    Raises:
        UsageError: if there is no audio, or a clip has no text.
    """
    clips = find_clips(source)
    chosen = set(spread([clip.path for clip in clips], limit))
    clips = [clip for clip in clips if clip.path in chosen]
    if texts is None:
        return clips
    known = read_texts(texts)
    found = [replace(clip, text=text_of(clip, known)) for clip in clips]
    without = [clip.name for clip in found if clip.text is None]
    if without:
        raise UsageError(f"{texts} has no text for {len(without)} of {len(clips)} clips: {without[0]}, for one")
    return found


def read_texts(path: Path) -> dict[str, str]:
    """Texts by name, from lines `NAME TEXT` as of Kaldi and LibriSpeech; a name without blanks, or a tab after it.

    Raises:
        UsageError: if it cannot be read, or a line has no text.
    """
    texts: dict[str, str] = {}
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the texts {path}: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        parts = line.split("\t" if "\t" in line else None, 1)
        if len(parts) < 2:
            raise UsageError(f"{path}, line {number}: write the name of a clip, a blank or a tab, and what is said")
        texts[parts[0].strip()] = parts[1].strip()
    return texts


def text_of(clip: Clip, texts: dict[str, str]) -> str | None:
    """The text under a clip's name, with or without its suffix and its folders; None if there is none."""
    name = Path(clip.name)
    names = (clip.name, str(name.with_suffix("")), name.name, name.stem)
    return next((texts[key] for key in names if key in texts), None)


def score_clip(clip: Clip, subjects: Sequence[Subject], metrics: Sequence[str]) -> list[Row]:
    """Every codec on one clip; failures stand in the rows.

    Raises:
        Q2D2Error: if the clip itself cannot be read.
    """
    audio, rate = read_original(clip.path)
    rows: list[Row] = []
    for subject in subjects:
        row = Row(
            codec=subject.identity,
            clip=clip.name,
            stamp=clip.stamp(),
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
        except Q2D2Error as error:
            row["error"] = f"{subject.name}: {error}"
        else:
            row["payload_bits"], row["file_bytes"] = result.payload_bits, result.file_bytes
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
class Plan:
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


_worker: tuple[list[Subject], Plan]


def start_worker(plan: Plan) -> None:
    """Make a process ready: one thread, since there is one process per core."""
    import torch

    global _worker
    torch.set_num_threads(1)
    _worker = plan.open(), plan


def work(clip: Clip, wanted: Sequence[str]) -> list[Row] | str:
    """Rows of one clip and these codecs (identities) in a ready process, or why it could not be read."""
    subjects, plan = _worker
    try:
        return score_clip(clip, [subject for subject in subjects if subject.identity in wanted], plan.metrics)
    except (Q2D2Error, OSError) as error:
        return str(error)


def evaluate(
    plan: Plan,
    subjects: Sequence[Subject],
    clips: Sequence[Clip],
    jobs: int = 1,
    state: Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> tuple[list[Row], list[str]]:
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
    kept = read_state(state, plan.metrics) if state else {}
    results: dict[tuple[str, str], Row] = {}
    skipped: list[str] = []
    todo: list[tuple[Clip, list[str]]] = []
    for clip in clips:
        missing = []
        for subject in subjects:
            key = subject.identity, clip.name
            row = kept.get(key)
            if row is not None and clip.path.is_file() and row["stamp"] == clip.stamp():
                results[key] = row
            else:
                missing.append(subject.identity)
        if missing:
            todo.append((clip, missing))
    count = len(clips) - len(todo)

    def take(outcome: list[Row] | str) -> None:
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
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    if not results:
        raise Q2D2Error(f"none of the {len(clips)} files could be read: {skipped[0]}")
    keys = [(subject.identity, clip.name) for clip in clips for subject in subjects]
    return [results[key] for key in keys if key in results], sorted(skipped)


def read_state(state: Path, metrics: Sequence[str]) -> dict[tuple[str, str], Row]:
    """Finished rows of an earlier run that hold all of these metrics, by codec and clip."""
    kept: dict[tuple[str, str], Row] = {}
    if state.exists():
        for line in state.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
                if not row["error"] and not row["problems"] and set(metrics) <= set(row["scores"]):
                    kept[row["codec"], row["clip"]] = row
            except (ValueError, KeyError, TypeError):
                continue  # the line at which the earlier run was killed
    return kept


def default_jobs(device: str) -> int:
    """Processes to use: one per core on a CPU, one on a GPU."""
    from q2d2cli.codec import pick_device

    return (os.cpu_count() or 1) if pick_device(device).type == "cpu" else 1


def summarize(values: Iterable[float | None], weights: Iterable[float] | None = None) -> dict[str, float | int | None]:
    """Mean, half width of its 95% interval (Student's t) and count of the defined values.

    With weights (a clip's words, say) the mean is that of all they count, the ratio of two sums; the interval is that
    of a ratio estimator (Cochran, 1977), which with equal weights is the usual one.
    """
    every = list(values)
    pairs = zip(every, [1.0] * len(every) if weights is None else weights, strict=True)
    defined = [(value, weight) for value, weight in pairs if value is not None]
    if not defined:
        return {"mean": None, "interval95": None, "n": 0}
    scores, shares = np.array(defined, np.float64).T
    shares /= shares.mean()
    count, mean = len(scores), float(np.mean(shares * scores))
    half = None
    if count > 1:
        from scipy.stats import t

        half = float(t.ppf(0.975, count - 1) * np.std(shares * (scores - mean), ddof=1) / math.sqrt(count))
    return {"mean": round(mean, 4), "interval95": None if half is None else round(half, 4), "n": count}


def sum_up(plan: Plan, subjects: Sequence[Subject], rows: Sequence[Row], skipped: Sequence[str]) -> dict[str, Any]:
    """The result of a run.

    Returns:
        `codecs`: for each codec its name, tokens per frame and second, bit rates (payload and whole file,
        bit/s), files, failures, use of the codebook, and `datasets`: for each dataset and for `all` the files
        and for each metric mean, 95% interval and number of files where it is defined.
    """
    clips = {row["clip"]: row["seconds"] for row in rows}
    return {
        "metrics": list(plan.metrics),
        "files": len(clips),
        "minutes": round(sum(clips.values()) / 60, 2),
        "skipped": list(skipped),
        "codecs": [sum_up_codec(s, [r for r in rows if r["codec"] == s.identity], plan.metrics) for s in subjects],
    }


def sum_up_codec(subject: Subject, rows: Sequence[Row], metrics: Sequence[str]) -> dict[str, Any]:
    """The part of the result that belongs to one codec."""
    channel = {}
    if isinstance(subject, ChannelSubject):
        channel = {"channel": {"model": subject.inner.name, **asdict(subject.damage)}}
    good = [row for row in rows if not row["error"]]
    seconds = sum(row["seconds"] for row in good)
    datasets = sorted({row["dataset"] for row in rows})  # those of failures, too: the same for every codec
    groups = {name: [row for row in good if row["dataset"] == name] for name in datasets} if len(datasets) > 1 else {}

    def bits_per_second(bits: Sequence[float | None]) -> float | None:
        known = [value for value in bits if value is not None]
        return round(sum(known) / seconds, 1) if known and len(known) == len(bits) else None

    return {
        "name": subject.name,
        "identity": subject.identity,
        "num_quantizers": subject.num_quantizers,
        "tokens_per_second": subject.token_rate,
        "bit_rate": bits_per_second([row["payload_bits"] for row in good]),
        "file_bit_rate": bits_per_second([None if (b := row["file_bytes"]) is None else 8 * b for row in good]),
        "files": len(good),
        "failed": sorted({reason for row in rows for reason in failures(subject, row)}),
        "datasets": {
            name: {
                "files": len(part),
                **{
                    metric: summarize(
                        [row["scores"].get(metric) for row in part], [row["weights"].get(metric, 1.0) for row in part]
                    )
                    for metric in metrics
                },
            }
            for name, part in {**groups, "all": good}.items()
        },
        **codebook_use(subject, good),
        **channel,
    }


def failures(subject: Subject, row: Row) -> list[str]:
    """What failed in a row, in words."""
    problems = [f"{subject.name}: {metric} of {row['clip']}: {why}" for metric, why in row["problems"].items()]
    return [row["error"], *problems] if row["error"] else problems


def codes_of(row: Row, sizes: tuple[int, ...]) -> np.ndarray | None:
    """`(frames, pairs)` int64 indices that a row keeps; None if it keeps none."""
    return unpack(base64.b64decode(row["codes"]), row["frames"], sizes) if row["codes"] else None


def codebook_use(subject: Subject, rows: Sequence[Row]) -> dict[str, Any]:
    """Entropy (bits) and utilization (share of points that occur) of the pairs and the codebook (Table 10)."""
    if subject.sizes is None or not rows:
        return {}
    indices = np.concatenate([codes for row in rows if (codes := codes_of(row, subject.sizes)) is not None])
    strides = np.cumprod([1, *subject.sizes[:-1]])
    distinct = len(np.unique(indices @ strides))
    codebook = math.prod(subject.sizes)
    return {
        "frames": len(indices),
        "pair_entropy": [round(entropy, 3) for entropy in pair_entropies(indices, subject.sizes)],
        "pair_entropy_max": [round(math.log2(size), 3) for size in subject.sizes],
        "pair_utilization": [round(share, 4) for share in pair_utilization(indices, subject.sizes)],
        "codebook_size": codebook,
        "codebook_seen": distinct,
        "codebook_utilization": round(distinct / codebook, 4),
    }


def to_csv(result: dict[str, Any], rows: Sequence[Row]) -> str:
    """One line per codec and clip."""
    names = {codec["identity"]: codec["name"] for codec in result["codecs"]}
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(["dataset", "file", "codec", "seconds", "bit_rate", *result["metrics"], "error"])
    for row in rows:
        bits = row["payload_bits"]
        rate = "" if bits is None else round(bits / row["seconds"], 1)
        values = ["" if (v := row["scores"].get(m)) is None else round(v, 4) for m in result["metrics"]]
        name = names[row["codec"]]
        writer.writerow(
            [row["dataset"], row["clip"], name, round(row["seconds"], 3), rate, *values, row["error"] or ""]
        )
    return out.getvalue()
