"""Rows of scores summed up: means with intervals, bit rates, use of the codebook; and as CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from q2d2cli.evaluation.codebook import codebook_use, pair_entropies, pair_utilization
from q2d2cli.evaluation.codecs import ChannelSubject
from q2d2cli.evaluation.scoring import ScoreRow, ScoringPlan, codes_of
from q2d2cli.evaluation.statistics import summarize
from q2d2cli.evaluation.subjects import Subject


def sum_up(
    plan: ScoringPlan, subjects: Sequence[Subject], rows: Sequence[ScoreRow], skipped: Sequence[str]
) -> dict[str, Any]:
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


def sum_up_codec(subject: Subject, rows: Sequence[ScoreRow], metrics: Sequence[str]) -> dict[str, Any]:
    """The part of the result that belongs to one codec."""
    channel = {}
    if isinstance(subject, ChannelSubject):
        channel = {"channel": {"model": subject.inner.name, **asdict(subject.setting)}}
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
        **use_of_codebook(subject, good),
        **channel,
    }


def failures(subject: Subject, row: ScoreRow) -> list[str]:
    """What failed in a row, in words."""
    problems = [f"{subject.name}: {metric} of {row['clip']}: {why}" for metric, why in row["problems"].items()]
    return [row["error"], *problems] if row["error"] else problems


def use_of_codebook(subject: Subject, rows: Sequence[ScoreRow]) -> dict[str, Any]:
    """Entropy (bits) and utilization (share of points that occur) of the pairs and the codebook (Table 10)."""
    if subject.sizes is None or not rows:
        return {}
    indices = np.concatenate([codes for row in rows if (codes := codes_of(row, subject.sizes)) is not None])
    book = codebook_use(indices, math.prod(subject.sizes))
    return {
        "frames": book["frames"],
        "pair_entropy": [round(entropy, 3) for entropy in pair_entropies(indices, subject.sizes)],
        "pair_entropy_max": [round(math.log2(size), 3) for size in subject.sizes],
        "pair_utilization": [round(share, 4) for share in pair_utilization(indices, subject.sizes)],
        "codebook_size": book["size"],
        "codebook_seen": book["distinct"],
        "codebook_utilization": round(book["utilization"], 4),
    }


def to_csv(result: dict[str, Any], rows: Sequence[ScoreRow]) -> str:
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
