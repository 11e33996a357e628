"""Metrics of a pair of signals, each by its standard implementation at its standard rate."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np

METRIC_RATE = 16_000
"""PESQ and STOI are computed at 16 kHz, as in the paper."""


def pesq(reference: np.ndarray, degraded: np.ndarray) -> float | None:
    """Wide-band PESQ (ITU-T P.862.2) of two `(samples,)` signals at 16 kHz; None where it is not defined."""
    from pesq import NoUtterancesError
    from pesq import pesq as measure
    from pesq.cypesq import BufferTooShortError

    try:
        return float(measure(METRIC_RATE, reference, degraded, "wb"))
    except (NoUtterancesError, BufferTooShortError):
        return None


def stoi(reference: np.ndarray, degraded: np.ndarray) -> float | None:
    """STOI of two `(samples,)` signals at 16 kHz; None where it is not defined (under 0.4 s of speech)."""
    from pystoi import stoi as measure

    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        try:
            return float(measure(reference, degraded, METRIC_RATE))
        except RuntimeWarning:
            return None


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float | None]] = {"pesq": pesq, "stoi": stoi}
