"""What samples must be, wherever they come from."""

from __future__ import annotations

import numpy as np

from q2d2cli.errors import Q2D2Error


def check_finite(samples: np.ndarray, name: str, start: int, sample_rate: int) -> None:
    """Refuse NaN and infinity.

    Args:
        samples: `(samples, channels)`.
        name: of where they are from.
        start: how many samples of it came before.
        sample_rate: Hz.

    Raises:
        Q2D2Error: if there is one.
    """
    if not np.isfinite(samples).all():
        bad = start + int(np.argwhere(~np.isfinite(samples))[0][0])
        raise Q2D2Error(f"{name} holds a NaN or infinite sample at {bad / sample_rate:.3f} s: repair it first")
