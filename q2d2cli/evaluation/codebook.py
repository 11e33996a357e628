"""How well the codebook is used: utilization, entropies and mutual information, from counts (paper Table 10, Figure 4).

All estimates are plain counts put into the formulas. Entropies come out too small, and mutual
information too large, where there are few frames for each cell counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

NEIGHBOURS = 3
"""Of the estimator for continuous values; the default of scikit-learn."""


def pair_entropies(indices: np.ndarray, sizes: Sequence[int]) -> list[float]:
    """Order-0 entropy of each pair in bits.

    Args:
        indices: `(frames, pairs)` pair indices.
        sizes: points of each pair's grid.
    """
    return [entropy(np.bincount(indices[:, j], minlength=size)) for j, size in enumerate(sizes)]


def pair_utilization(indices: np.ndarray, sizes: Sequence[int]) -> list[float]:
    """Share of each pair's grid points that occur at all, in [0, 1]."""
    return [len(np.unique(indices[:, j])) / size for j, size in enumerate(sizes)]


def entropy(counts: np.ndarray) -> float:
    """Entropy in bits of the distribution that `counts` (non-negative, any shape) is proportional to."""
    share = counts[counts > 0] / max(1, counts.sum())
    return float(-(share * np.log2(share)).sum()) + 0.0  # not -0.0


def joint(columns: np.ndarray) -> np.ndarray:
    """`(frames, n)` integers, n >= 0, to `(frames,)` int64: one number for each distinct row, counted from 0."""
    ids = np.zeros(len(columns), np.int64)
    for column in columns.T:
        _, values = np.unique(column, return_inverse=True)
        # Renumbered at each step: products of sizes may not fit 64 bits.
        _, ids = np.unique(ids * (values.max(initial=0) + 1) + values, return_inverse=True)
    return ids


def conditional_entropy(values: np.ndarray, context: np.ndarray) -> float:
    """`H(values | context)` in bits, as `H(values, context) - H(context)` from counts.

    Args:
        values: `(frames,)` integers.
        context: `(frames, n)` integers; every distinct row is a context.
    """
    contexts = joint(context)
    both = joint(np.stack([contexts, values], axis=1))
    return max(0.0, entropy(np.bincount(both)) - entropy(np.bincount(contexts)))


def mutual_information(x: np.ndarray, y: np.ndarray) -> float:
    """Mutual information in bits of two `(frames,)` discrete variables, from counts.

    The same as `sklearn.metrics.mutual_info_score`, which is in nats. It is too large by about
    `(X - 1)(Y - 1) / (2 ln(2) frames)` bits, where `X` and `Y` are the numbers of values.
    """
    a, b = joint(x[:, None]), joint(y[:, None])
    both = joint(np.stack([a, b], axis=1))
    return max(0.0, entropy(np.bincount(a)) + entropy(np.bincount(b)) - entropy(np.bincount(both)))


def continuous_mutual_information(x: np.ndarray, y: np.ndarray) -> float | None:
    """Mutual information in bits of two `(frames,)` continuous variables; None for too few frames.

    The nearest-neighbour estimator of Kraskov et al. (2004) with 3 neighbours, by
    `sklearn.feature_selection.mutual_info_regression`.
    """
    if len(x) <= NEIGHBOURS + 1:
        return None
    from sklearn.feature_selection import mutual_info_regression

    nats = mutual_info_regression(x[:, None], y, discrete_features=False, n_neighbors=NEIGHBOURS, random_state=0)
    return float(nats[0]) / math.log(2)


def pair_use(indices: np.ndarray, sizes: Sequence[int], starts: Sequence[int], seed: int = 0) -> list[dict[str, Any]]:
    """Utilization and entropies of each pair.

    Args:
        indices: `(frames, pairs)` pair indices of all files, one after the other.
        sizes: points of each pair's grid.
        starts: where each file begins in `indices`; nothing is predicted across a start.
        seed: of the shuffles.

    Returns:
        For each pair `points`, `counts` of each point, `utilization` in [0, 1], `entropy` in bits,
        `entropy_max` (`log2` of the points), `entropy_share` of it, `perplexity`; and the entropy
        `given_previous` (the same pair one frame before) and `given_others` (the other pairs of
        the frame), each with the same estimate for contexts that were `shuffled`. Contexts are
        many and frames are few: what a context coder can win is how far an estimate lies below its
        shuffled one, not below the entropy. None where there are no contexts.
    """
    follows = np.setdiff1d(np.arange(1, len(indices)), starts)
    random = np.random.default_rng(seed)
    entropies, used = pair_entropies(indices, sizes), pair_utilization(indices, sizes)
    rows = []
    for j, size in enumerate(sizes):
        most = math.log2(size)
        row: dict[str, Any] = {
            "points": size,
            "counts": np.bincount(indices[:, j], minlength=size).tolist(),
            "utilization": used[j],
            "entropy": entropies[j],
            "entropy_max": most,
            "entropy_share": entropies[j] / most,
            "perplexity": 2 ** entropies[j],
        }
        others = np.delete(indices, j, axis=1)
        for name, values, context in (
            ("given_previous", indices[follows, j], indices[follows - 1, j : j + 1]),
            ("given_others", indices[:, j], others),
        ):
            there = len(values) > 0 and context.shape[1] > 0
            row[name] = conditional_entropy(values, context) if there else None
            row[f"{name}_shuffled"] = conditional_entropy(values, random.permutation(context)) if there else None
        rows.append(row)
    return rows


def codebook_use(indices: np.ndarray, codebook_size: int) -> dict[str, Any]:
    """Utilization and entropy of the product codebook (paper Table 10).

    Args:
        indices: `(frames, pairs)` pair indices.
        codebook_size: product of the pairs' sizes.

    Returns:
        `size`, `frames`, `distinct` tokens seen, `utilization` in [0, 1] and what it would be for
        as many frames `utilization_if_even` were all tokens equally likely, `entropy` of the
        tokens in bits, `entropy_max` (`log2` of the size), `entropy_share` of it, and
        `entropy_limit` (`log2` of the frames), which no count can exceed.
    """
    counts = np.bincount(joint(indices))
    frames, bits, most = len(indices), entropy(counts), math.log2(codebook_size)
    return {
        "size": codebook_size,
        "frames": frames,
        "distinct": len(counts),
        "utilization": len(counts) / codebook_size,
        "utilization_if_even": -math.expm1(frames * math.log1p(-1 / codebook_size)),
        "entropy": bits,
        "entropy_max": most,
        "entropy_share": bits / most,
        "entropy_limit": math.log2(max(1, frames)),
    }
