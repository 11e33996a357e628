"""A small recurrent network in whole numbers as context model (docs/entropy-coding.md, "The network").

A light gated recurrent unit (Ravanelli et al. 2018, arXiv:1803.10225) over frames, and for each pair a hidden layer
that sees the state and the pairs before it in the frame. Weights have 8 bits. Numbers are held as float32 so that the
products run in a BLAS, and stay whole and below 2**24 throughout, where float32 is exact: whatever the order of the
sums, the processor or the library, the counts are the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from q2d2cli.container.coding.context import ContextModel, Predictor, costs, spans
from q2d2cli.container.coding.ranges import MAX_TOTAL

ONE = 2**10
"""1.0 in the state."""
WEIGHT_BITS = {"state": 7, "embedding": 6, "input": 6, "out": 4}
"""Bits behind the point of each kind of weight."""
PRE_BITS = 17
"""Bits behind the point of what goes into gates and hidden layers."""
HIDDEN_BITS = 8
"""Bits behind the point of the hidden layers."""
STEPS = 64
"""Logits are in this part of a bit."""
LARGEST = 2**16
"""Count of the likeliest point."""
TOGETHER = 512
"""Rows times frames whose counts are made together where they can be: they fit into a processor's cache."""
HALF, UNIT = np.float32(128), np.float32(2.0**-8)
EXACT = 2**24
"""Whole numbers up to here are exact in float32."""
MAX_POINTS = MAX_TOTAL // LARGEST - 1
"""Largest grid that the counts have room for."""
Tensors = dict[str, np.ndarray]


@lru_cache(maxsize=1)
def powers() -> np.ndarray:
    """`(16 * STEPS + 1,)` uint32: `LARGEST * 2**(-k / STEPS)` rounded down, from integers alone; the last is 1."""
    table = []
    for k in range(16 * STEPS + 1):
        # The largest value whose 64th power is not above 2**(16 * 64 - k), from a guess that is not below it.
        value = int(LARGEST * 2.0 ** (-k / STEPS)) + 2
        while value**STEPS > 1 << (16 * STEPS - k):
            value -= 1
        table.append(value)
    return np.array(table, np.uint32)


class RecurrentModel(ContextModel):
    """The network.

    Args:
        tensors: `recurrent` (units, 2 * units), `recurrent_bias` (2 * units,), and for each pair `j`
            `embedding.j` (points + 1, size), `input.j` (size, 2 * units), `hidden.j` (units, width), `hidden_bias.j`
            (width,), `out.j` (width, points), `out_bias.j` (points,), and for each pair `k` before it `within.j.k`
            (size, width). Weights int8, biases int32.

    Raises:
        ValueError: if a tensor is missing or has another shape or type, a grid is too large, or a sum could become
            too large to be exact.
        KeyError: if a tensor is missing.
    """

    def __init__(self, tensors: Tensors) -> None:
        pairs = sum(name.startswith("out.") for name in tensors)
        self.sizes = tuple(tensors[f"out.{j}"].shape[1] for j in range(pairs))
        self.units, self.width, embedded = check_shapes(tensors, self.sizes)
        whole = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
        shift = np.float32(2 ** (PRE_BITS - WEIGHT_BITS["embedding"] - WEIGHT_BITS["input"]))
        embeddings = [whole[f"embedding.{j}"] for j in range(pairs)]
        self.state = np.concatenate([whole["recurrent"], *(whole[f"hidden.{j}"] for j in range(pairs))], axis=1)
        self.inputs = [embeddings[j] @ whole[f"input.{j}"] * shift for j in range(pairs)]
        self.inputs[0] += whole["recurrent_bias"]
        self.hidden_bias = np.concatenate([whole[f"hidden_bias.{j}"] for j in range(pairs)])
        self.within = {
            (j, k): embeddings[k][:-1] @ whole[f"within.{j}.{k}"] * shift for j in range(pairs) for k in range(j)
        }
        self.out = [whole[f"out.{j}"] for j in range(pairs)]
        self.out_bias = [whole[f"out_bias.{j}"] for j in range(pairs)]
        self._check_sums(embedded)
        self._shift()

    def _shift(self) -> None:
        """Put the points of sums where the next step has them: powers of two, so that all stays as exact."""
        gate, change, hidden = (2.0 ** (bits - PRE_BITS) for bits in (6, 10, HIDDEN_BITS))
        scale = np.repeat(np.array([gate, change], np.float32), self.units)
        self.state *= np.concatenate([scale, np.full(len(self.sizes) * self.width, hidden, np.float32)])
        self.inputs = [table * scale for table in self.inputs]
        self.inputs[0][:, : self.units] += 128  # the gate's 1/2
        # Bounds as rows: NumPy is slow with single numbers there.
        self.lowest = np.repeat(np.array([0, -ONE], np.float32), self.units)
        self.highest = np.repeat(np.array([256, ONE], np.float32), self.units)
        self.none = np.zeros(self.width, np.float32)
        self.full = np.full(self.width, 2**HIDDEN_BITS, np.float32)
        self.hidden_bias *= np.float32(hidden)
        self.within = {pair: table * np.float32(hidden) for pair, table in self.within.items()}
        logit = np.float32(STEPS / 2.0 ** (HIDDEN_BITS + WEIGHT_BITS["out"]))
        self.out = [weights * logit for weights in self.out]
        self.out_bias = [bias * logit for bias in self.out_bias]

    def _check_sums(self, embedded: int) -> None:
        """Raise ValueError unless every sum is exact in whatever order it is taken."""
        pairs = range(len(self.sizes))
        sums = np.abs(self.state).astype(np.float64).sum(axis=0) * ONE
        recurrent = sums[: 2 * self.units] + sum(np.abs(table).max(axis=0) for table in self.inputs)
        hidden = sums[2 * self.units :] + np.abs(self.hidden_bias)
        highest = [recurrent, np.array(127.0 * 127.0 * embedded)]
        for j in pairs:
            part = hidden[j * self.width : (j + 1) * self.width]
            highest.append(part + sum(np.abs(self.within[j, k]).max(axis=0) for k in range(j)))
            highest.append(
                np.abs(self.out[j]).astype(np.float64).sum(axis=0) * 2**HIDDEN_BITS + np.abs(self.out_bias[j])
            )
        if max(float(values.max()) for values in highest) >= EXACT / 2:
            raise ValueError("its sums are too large to be exact")

    def begin(self, rows: int) -> Predictor:
        """As `ContextModel.begin`."""
        return RecurrentPredictor(self, rows)

    def first(self) -> np.ndarray:
        """`(pairs,)`: what stands for the indices before the first frame."""
        return np.array(self.sizes)

    def drive(self, before: np.ndarray) -> np.ndarray:
        """What frames that have ended put into the gates: `(n, pairs)` indices to `(n, 2 * units)`."""
        mixed = self.inputs[0].take(before[:, 0], axis=0)
        for pair in range(1, len(self.sizes)):
            mixed += self.inputs[pair].take(before[:, pair], axis=0)
        return mixed

    def step(self, state: np.ndarray, mixed: np.ndarray) -> np.ndarray:
        """One frame of the recurrent unit.

        Args:
            state: `(rows, units)` before.
            mixed: `(rows, 2 * units)`, `drive` of the frame that has ended, and `state @ self.state` added; is spent.

        Returns:
            `(rows, units)`.
        """
        np.floor(mixed, out=mixed)
        # A hard sigmoid in 256ths, x / 4 + 1/2; a hard hyperbolic tangent.
        np.maximum(mixed, self.lowest, out=mixed)
        np.minimum(mixed, self.highest, out=mixed)
        change = mixed[:, self.units :] - state
        change *= mixed[:, : self.units]
        change += HALF
        change *= UNIT
        np.floor(change, out=change)
        change += state
        return change

    def counts(self, pair: int, sums: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """Counts of one pair.

        Args:
            pair: its number.
            sums: `(rows, pairs * width)`, `state @ self.state` from its column `2 * units` on, `hidden_bias` added.
            indices: `(rows, pairs)` of this frame; those from `pair` on have no influence.

        Returns:
            `(rows, points)` uint32.
        """
        part = sums[:, pair * self.width : (pair + 1) * self.width]
        if pair:
            hidden = self.within[pair, 0].take(indices[:, 0], axis=0)
            for earlier in range(1, pair):
                hidden += self.within[pair, earlier].take(indices[:, earlier], axis=0)
            hidden += part
            np.floor(hidden, out=hidden)
        else:
            hidden = np.floor(part)
        np.maximum(hidden, self.none, out=hidden)
        np.minimum(hidden, self.full, out=hidden)
        logits = hidden @ self.out[pair]
        logits += self.out_bias[pair]
        # NumPy finds a row's largest faster by place than by value, and numbers for `take` faster by way of int32.
        largest = logits[np.arange(len(logits)), logits.argmax(axis=1)]
        np.subtract(largest[:, None], logits, out=logits)
        # What is far behind the likeliest takes the last count, 1.
        return powers().take(logits.astype(np.int32).astype(np.intp), mode="clip")

    def intervals(self, indices: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """As `ContextModel.intervals`."""
        found = np.zeros((*indices.shape, 3), np.int64)
        for part, rows, pair, counts in self._known(indices, lengths):
            symbols = indices[:rows, part, pair]
            found[:rows, part, pair] = spans(counts, symbols.T.reshape(-1)).reshape(-1, rows, 3).transpose(1, 0, 2)
        return found

    def bits(self, indices: np.ndarray) -> list[np.ndarray]:
        """As `ContextModel.bits`."""
        rows, frames, _ = indices.shape
        found = [np.empty((rows, frames, size), np.float32) for size in self.sizes]
        for part, _, pair, counts in self._known(indices, np.full(rows, frames)):
            found[pair][:, part] = costs(counts).reshape(-1, rows, self.sizes[pair]).transpose(1, 0, 2)
        return found

    def _known(self, indices: np.ndarray, lengths: np.ndarray) -> Iterator[tuple[slice, int, int, np.ndarray]]:
        """Counts of indices that are all known: the states come one after the other, all else of some frames at once.

        Args:
            indices: as `intervals` takes them, and `lengths`.

        Yields:
            Some frames, how many rows have frames there, a pair, and its counts `(frames * rows, points)` there.
        """
        rows, frames, pairs = indices.shape
        state = np.zeros((rows, self.units), np.float32)
        before = np.tile(self.first(), (rows, 1))
        recurrent = np.ascontiguousarray(self.state[:, : 2 * self.units])
        hidden = np.ascontiguousarray(self.state[:, 2 * self.units :])
        begin = 0
        while begin < frames:
            rows = int((lengths > begin).sum())
            part = slice(begin, min(begin + max(1, TOGETHER // rows), frames))
            known = np.ascontiguousarray(indices[:rows, part].transpose(1, 0, 2))
            mixed = self.drive(np.concatenate([before[None, :rows], known[:-1]]).reshape(-1, pairs))
            states = np.empty((len(known), rows, self.units), np.float32)
            state = state[:rows]
            for place, drive in enumerate(mixed.reshape(len(known), rows, -1)):
                drive += state @ recurrent
                states[place] = state = self.step(state, drive)
            sums = states.reshape(-1, self.units) @ hidden
            sums += self.hidden_bias
            before, begin = known[-1], part.stop
            known = known.reshape(-1, pairs)
            for pair in range(pairs):
                yield part, rows, pair, self.counts(pair, sums, known)


class RecurrentPredictor(Predictor):
    """See `RecurrentModel`."""

    def __init__(self, model: RecurrentModel, rows: int) -> None:
        self._model = model
        self._indices = np.tile(model.first(), (rows, 1))
        self._state = np.zeros((rows, model.units), np.float32)
        self._sums = self._state @ model.state
        self._hidden = self._sums[:, 2 * model.units :]

    def counts(self, pair: int) -> np.ndarray:
        """As `Predictor.counts`."""
        if pair == 0:
            mixed = self._model.drive(self._indices)
            mixed += self._sums[:, : 2 * self._model.units]
            self._state = self._model.step(self._state, mixed)
            self._sums = self._state @ self._model.state
            self._hidden = self._sums[:, 2 * self._model.units :] + self._model.hidden_bias
        return self._model.counts(pair, self._hidden, self._indices)

    def take(self, pair: int, indices: np.ndarray) -> None:
        """As `Predictor.take`."""
        self._indices[:, pair] = indices

    def keep(self, rows: int) -> None:
        """As `Predictor.keep`."""
        self._indices, self._state, self._sums = self._indices[:rows], self._state[:rows], self._sums[:rows]


def check_shapes(tensors: Tensors, sizes: tuple[int, ...]) -> tuple[int, int, int]:
    """Units, width of the hidden layers and size of the embeddings.

    Raises:
        ValueError: if a tensor has another shape or type than it should, or a grid is too large.
        KeyError: if one is missing.
    """
    if not sizes or max(sizes) > MAX_POINTS:
        raise ValueError(f"it has {len(sizes)} grids of up to {max(sizes, default=0)} points, not 1 to {MAX_POINTS}")
    units, width, embedded = len(tensors["recurrent"]), tensors["hidden.0"].shape[-1], tensors["embedding.0"].shape[-1]
    expected: dict[str, tuple[int, ...]] = {"recurrent": (units, 2 * units), "recurrent_bias": (2 * units,)}
    for j, size in enumerate(sizes):
        expected[f"embedding.{j}"] = (size + 1, embedded)
        expected[f"input.{j}"] = (embedded, 2 * units)
        expected[f"hidden.{j}"] = (units, width)
        expected[f"hidden_bias.{j}"] = (width,)
        expected[f"out.{j}"] = (width, size)
        expected[f"out_bias.{j}"] = (size,)
        expected.update({f"within.{j}.{k}": (embedded, width) for k in range(j)})
    for name, shape in expected.items():
        kind = np.int32 if "bias" in name else np.int8
        if tensors[name].shape != shape or tensors[name].dtype != kind:
            raise ValueError(f"its tensor {name} has shape {tensors[name].shape}, not {shape}, or another type")
    return units, width, embedded
