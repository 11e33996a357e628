"""Context models that are tables of counts: how often a point follows another in the frame before.

They are what the recurrent network is measured against; the adaptive one also learns from the block itself.
"""

from __future__ import annotations

import numpy as np

from q2d2cli.container.coding.context import ContextModel, Predictor
from q2d2cli.container.coding.ranges import MAX_TOTAL

ADAPTED_TOTAL = 2**15
"""Where the counts of a block are halved, so that what is recent counts more."""
MAX_STEP = 2**15
"""Largest step."""


class TableModel(ContextModel):
    """Counts of a pair's points given its point one frame before.

    Args:
        tensors: for each pair `j` a `table.j` of `(points + 1, points)` uint16 counts of at least 1, rows by the point
            before, the last row for the first frame of a block; and `step` (1,) int32, what a point that came adds to
            its own count for the rest of the block, 0 for tables that stay.

    Raises:
        ValueError: if a tensor has another shape or type, or a count is out of range.
        KeyError: if a tensor is missing.
    """

    def __init__(self, tensors: dict[str, np.ndarray]) -> None:
        tables = [tensors[f"table.{j}"] for j in range(len(tensors) - 1)]
        self.step = int(tensors["step"].item())
        for table in tables:
            if table.ndim != 2 or table.shape[0] != table.shape[1] + 1 or table.dtype != np.uint16 or table.min() < 1:
                raise ValueError(f"a table has shape {table.shape} and type {table.dtype}, or a count of 0")
            if int(table.sum(axis=1, dtype=np.int64).max()) + ADAPTED_TOTAL + MAX_STEP > MAX_TOTAL:
                raise ValueError("the counts of a table are too large")
        if not tables or not 0 <= self.step <= MAX_STEP:
            raise ValueError(f"it has {len(tables)} tables and step {self.step}")
        self.sizes = tuple(table.shape[1] for table in tables)
        self.tables = [table.astype(np.uint64) for table in tables]

    def begin(self, rows: int) -> Predictor:
        """As `ContextModel.begin`."""
        return TablePredictor(self, rows)


class TablePredictor(Predictor):
    """See `TableModel`."""

    def __init__(self, model: TableModel, rows: int) -> None:
        self._model = model
        self._before = np.tile(np.array(model.sizes), (rows, 1))
        self._seen = [np.zeros((rows, size), np.uint64) for size in model.sizes]

    def counts(self, pair: int) -> np.ndarray:
        """As `Predictor.counts`."""
        counts = self._model.tables[pair][self._before[:, pair]]
        return counts + self._seen[pair] if self._model.step else counts

    def take(self, pair: int, indices: np.ndarray) -> None:
        """As `Predictor.take`."""
        self._before[:, pair] = indices
        if self._model.step:
            seen = self._seen[pair]
            seen[np.arange(len(seen)), indices] += np.uint64(self._model.step)
            full = seen.sum(axis=1) > ADAPTED_TOTAL
            seen[full] >>= np.uint64(1)

    def keep(self, rows: int) -> None:
        """As `Predictor.keep`."""
        self._before = self._before[:rows]
        self._seen = [seen[:rows] for seen in self._seen]
