"""Metrics of audio quality at a validation."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from q2d2cli.audio import Resampler
from q2d2cli.evaluation.evaluate import summarize
from q2d2cli.evaluation.metrics import METRIC_RATE, METRICS


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
    pairs = [
        [Resampler(rate, METRIC_RATE, 1).push(x[None].float().cpu().numpy(), last=True)[0] for x in pair]
        for pair in zip(reference, estimate, strict=True)
    ]
    return {name: summarize(METRICS[name](*pair) for pair in pairs)["mean"] for name in metrics}
