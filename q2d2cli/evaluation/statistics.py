"""Means with their 95% intervals."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np


def half_width(values: Sequence[float] | np.ndarray) -> float | None:
    """Half width of the 95% interval of a mean, by Student's t; None below two values."""
    from scipy.stats import t

    count = len(values)
    return float(t.ppf(0.975, count - 1) * np.std(values, ddof=1) / math.sqrt(count)) if count > 1 else None


def summarize(values: Iterable[float | None], weights: Iterable[float] | None = None) -> dict[str, float | int | None]:
    """Mean, half width of its 95% interval and count of the defined values.

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
    mean = float(np.mean(shares * scores))
    half = half_width(shares * (scores - mean))
    return {"mean": round(mean, 4), "interval95": None if half is None else round(half, 4), "n": len(scores)}
