"""Metrics of audio quality at a validation."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from q2d2cli.evaluation.evaluate import summarize
from q2d2cli.evaluation.metrics import score


def measure(metrics: Sequence[str], rate: int, reference: Tensor, estimate: Tensor) -> dict[str, float | None]:
    """Means over signals.

    Args:
        metrics: names of what is measured.
        rate: of the signals, Hz.
        reference: `(batch, samples)`.
        estimate: the same.

    Returns:
        The mean of each metric, None where it is undefined.
    """
    rows = [
        score(metrics, a.float().cpu().numpy(), b.float().cpu().numpy(), rate)
        for a, b in zip(reference, estimate, strict=True)
    ]
    return {name: summarize(row[name] for row in rows)["mean"] for name in metrics}
