"""How well the codebook is used: utilization and entropy of each pair (paper Table 10)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def pair_entropies(indices: np.ndarray, sizes: Sequence[int]) -> list[float]:
    """Order-0 entropy of each pair in bits.

    Args:
        indices: `(frames, pairs)` pair indices.
        sizes: points of each pair's grid.
    """
    entropies = []
    for j, size in enumerate(sizes):
        share = np.bincount(indices[:, j], minlength=size) / max(1, len(indices))
        share = share[share > 0]
        entropies.append(float(-(share * np.log2(share)).sum()))
    return entropies


def pair_utilization(indices: np.ndarray, sizes: Sequence[int]) -> list[float]:
    """Share of each pair's grid points that occur at all, in [0, 1]."""
    return [len(np.unique(indices[:, j])) / size for j, size in enumerate(sizes)]
