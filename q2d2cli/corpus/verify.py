"""Checks of an output: every shard there, whole and as the manifest says; a share of the clips encoded again."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from q2d2cli.codec import Codec
from q2d2cli.corpus.folder import Record, TokenFolder, shard_name
from q2d2cli.corpus.formats import DATA, digest
from q2d2cli.corpus.reading import load
from q2d2cli.corpus.sources import CorpusClip, make_plan
from q2d2cli.corpus.tokenize import encode_long
from q2d2cli.corpus.vocabulary import Vocabulary
from q2d2cli.errors import Q2D2Error, UsageError


@dataclass
class Report:
    """What a check found.

    Attributes:
        shards: that were looked at.
        clips: in them.
        again: that were encoded again.
        problems: a line for each.
    """

    shards: int = 0
    clips: int = 0
    again: int = 0
    problems: list[str] = field(default_factory=list)


def verify(
    path: Path, share: float = 0.0, device: str = "auto", progress: Callable[[int], None] | None = None
) -> Report:
    """Check an output.

    Args:
        path: the folder.
        share: of the clips that is encoded again and compared, 0 to 1; at least one clip if above 0.
        device: for that, as `Codec.from_pretrained` takes it.
        progress: called with the number of shards checked.

    Raises:
        UsageError: if it is no output of `q2d2 tokenize`.
        Q2D2Error: if its manifest is damaged, or the model is not the one that made it.
    """
    folder, report = TokenFolder(path), Report()
    if folder.missing or not folder.finished:
        there = f"{len(folder.records)} of {folder.job.units} shards are there"
        report.problems.append(f"{path} is not finished, {there}: run the same command again")
    ids: dict[str, int] = {}
    for record in sorted(folder.records.values(), key=lambda record: record.unit):
        report.problems += check_files(path, record) or check_rows(folder, record, ids)
        report.shards += 1
        report.clips += record.clips
        if progress:
            progress(report.shards)
    report.problems += [f"{path / name} belongs to no shard: move it away" for name in strays(folder)]
    if share and not report.problems:
        encode_again(folder, share, device, ids, report)
    return report


def check_files(path: Path, record: Record) -> list[str]:
    """Whether the files of a shard are there and whole."""
    problems = []
    for name, expected in record.files.items():
        try:
            found = digest(path / name)
        except Q2D2Error as error:
            problems.append(str(error))
            continue
        for what, word in (("bytes", "bytes"), ("sha256", "the SHA-256")):
            if found[what] != expected[what]:
                problems.append(f"{path / name} has {word} {found[what]}, not {expected[what]}: {again(path)}")
                break
    return problems


def again(path: Path) -> str:
    """What to do about a damaged shard."""
    return f"delete its line in {path / 'manifest.jsonl'} and run q2d2 tokenize again"


def check_rows(folder: TokenFolder, record: Record, ids: dict[str, int]) -> list[str]:
    """Whether what is in a shard adds up; notes the unit of each clip in `ids`."""
    if not record.files:
        return []
    vocabulary, where = folder.job.vocabulary, f"{folder.path / DATA / shard_name(record.unit)}"
    problems, rows, frames = [], 0, 0
    try:
        for row in folder.format.read(shard_name(record.unit)):
            rows, frames = rows + 1, frames + row.n_frames
            if row.id in ids:
                problems.append(f"{where}: clip {row.id} is there twice")
            ids[row.id] = record.unit
            try:
                if len(vocabulary.to_indices(row.codes)) != row.n_frames:
                    problems.append(f"{where}: clip {row.id} has {len(row.codes)} ids for {row.n_frames} frames")
            except ValueError as error:
                problems.append(f"{where}: clip {row.id}: {error}")
    except Q2D2Error as error:
        return [str(error)]
    if (rows, frames) != (record.clips, record.frames):
        problems.append(
            f"{where} has {rows} clips and {frames} frames, not {record.clips} and {record.frames}: "
            f"{again(folder.path)}"
        )
    return problems


def strays(folder: TokenFolder) -> Iterator[str]:
    """Files among the shards that no record has."""
    known = {name for record in folder.records.values() for name in record.files}
    if folder.job.format == "npy":
        for record in folder.records.values():
            if record.files:
                known |= {f"{DATA}/{row.id}.npy" for row in folder.format.read(shard_name(record.unit))}
    for path in sorted((folder.path / DATA).rglob("*")):
        name = path.relative_to(folder.path).as_posix()
        if path.is_file() and name not in known and not (path.name.endswith(".partial") and not folder.finished):
            yield name


def encode_again(folder: TokenFolder, share: float, device: str, ids: dict[str, int], report: Report) -> None:
    """Encode a random share of the clips, each alone, and compare."""
    if not ids:
        return
    codec = Codec.from_pretrained(folder.job.model, device)
    if codec.fingerprint.hex() != folder.job.fingerprint:
        raise UsageError(f"{folder.path} was made with other weights of {folder.job.model} than those here")
    plan = make_plan(folder.job.corpus, folder.path)
    if plan.digest() != folder.job.plan:
        report.problems.append(f"{folder.path}: the corpus has changed since, so clips cannot be encoded again")
        return
    chosen = set(random.Random(0).sample(sorted(ids), math.ceil(share * len(ids))))
    for unit in sorted({ids[clip] for clip in chosen}):
        rows = {row.id: row for row in folder.format.read(shard_name(unit)) if row.id in chosen}
        for clip in plan.units[unit].clips():
            if clip.problem is None and clip.id in rows:
                report.again += 1
                codes = encode_alone(codec, folder.job.vocabulary, clip)
                if isinstance(codes, str):
                    report.problems.append(codes)
                elif not np.array_equal(codes, rows[clip.id].codes):
                    report.problems.append(
                        f"{clip.source} gives other ids now than clip {clip.id} has: {again(folder.path)}"
                    )


def encode_alone(codec: Codec, vocabulary: Vocabulary, clip: CorpusClip) -> np.ndarray | str:
    """Ids of one clip, or why it cannot be read."""
    loaded = load(clip)
    if loaded.reason is not None:
        return loaded.reason
    if loaded.samples is None:
        return vocabulary.to_ids(encode_long(codec, clip)[0])
    return vocabulary.to_ids(codec.encode(loaded.samples, loaded.rate).indices[0].numpy())
