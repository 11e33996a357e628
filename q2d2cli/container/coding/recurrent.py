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

from q2d2cli.container.coding.context import ContextModel, Predictor, costs, sides, spans
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
GATE, CHANGE, HIDDEN = ((np.float32(low), np.float32(high)) for low, high in ((0, 256), (-ONE, ONE), (0, 256)))
"""Bounds, of the type that NumPy is fast with."""
EXACT = 2**24
"""Whole numbers up to here are exact in float32."""
MAX_POINTS = MAX_TOTAL // LARGEST - 1
"""Largest grid that the counts have room for."""
Tensors = dict[str, np.ndarray]


@lru_cache(maxsize=1)
def powers() -> np.ndarray:
    """`(16 * STEPS + 1,)` uint64: `LARGEST * 2**(-k / STEPS)` rounded down, from integers alone; the last is 1."""
    table = []
    for k in range(16 * STEPS + 1):
        # The largest value whose 64th power is not above 2**(16 * 64 - k), from a guess that is not below it.
        value = int(LARGEST * 2.0 ** (-k / STEPS)) + 2
        while value**STEPS > 1 << (16 * STEPS - k):
            value -= 1
        table.append(value)
    return np.array(table, np.uint64)


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
        pairs = range(sum(name.startswith("out.") for name in tensors))
        self.sizes = tuple(tensors[f"out.{j}"].shape[1] for j in pairs)
        units, width, embedded = check_shapes(tensors, self.sizes)
        whole = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
        shift = np.float32(2 ** (PRE_BITS - WEIGHT_BITS["embedding"] - WEIGHT_BITS["input"]))
        embeddings = [whole[f"embedding.{j}"] for j in pairs]
        # The state and each hidden layer have one unit more, which is always 1: its weights are the biases.
        self.units, self.width = units + 1, width + 1
        self.recurrent = np.pad(padded(whole["recurrent"], units), ((0, 1), (0, 0)))
        self.inputs = [padded(embeddings[j] @ whole[f"input.{j}"] * shift, units) for j in pairs]
        self.inputs[0] += padded(whole["recurrent_bias"][None], units)
        self.hidden = [np.zeros((self.units, self.width), np.float32) for _ in pairs]
        for j in pairs:
            self.hidden[j][:-1, :-1], self.hidden[j][-1, :-1] = whole[f"hidden.{j}"], whole[f"hidden_bias.{j}"]
            self.hidden[j][-1, -1] = 2 ** (PRE_BITS - HIDDEN_BITS)
        self.within = {
            (j, k): padded(embeddings[k][:-1] @ whole[f"within.{j}.{k}"] * shift, width)
            for j in pairs
            for k in range(j)
        }
        self.out = [np.concatenate([whole[f"out.{j}"], whole[f"out_bias.{j}"][None]]) for j in pairs]
        self._check_sums(embedded)
        self._shift()

    def _shift(self) -> None:
        """Put the points of sums where the next step has them: powers of two, so that all stays as exact."""
        gate, change, hidden = (2.0 ** (bits - PRE_BITS) for bits in (6, 10, HIDDEN_BITS))
        scale = np.repeat(np.array([gate, change], np.float32), self.units)
        self.recurrent *= scale
        self.inputs = [table * scale for table in self.inputs]
        self.inputs[0][:, : self.units - 1] += 128  # the gate's 1/2; the last unit's stays shut
        self.hidden = [weights * np.float32(hidden) for weights in self.hidden]
        self.within = {pair: table * np.float32(hidden) for pair, table in self.within.items()}
        logit = np.float32(STEPS / 2.0 ** (HIDDEN_BITS + WEIGHT_BITS["out"]))
        self.out = [weights * logit for weights in self.out]

    def _check_sums(self, embedded: int) -> None:
        """Raise ValueError unless every sum is exact in whatever order it is taken."""

        def most(weights: np.ndarray, unit: int) -> np.ndarray:
            units = np.append(np.full(len(weights) - 1, unit, np.float64), 1)
            return units @ np.abs(weights)

        largest = {pair: np.abs(table).max(axis=0) for pair, table in self.within.items()}
        inputs = sum(np.abs(table).max(axis=0) for table in self.inputs)
        highest = [most(self.recurrent, ONE) + inputs, np.array(127.0 * 127.0 * embedded)]
        for j, (hidden, out) in enumerate(zip(self.hidden, self.out, strict=True)):
            highest += [most(hidden, ONE) + sum(largest[j, k] for k in range(j)), most(out, 2**HIDDEN_BITS)]
        if max(float(values.max()) for values in highest) >= EXACT / 2:
            raise ValueError("its sums are too large to be exact")

    def begin(self, rows: int) -> Predictor:
        """As `ContextModel.begin`."""
        return RecurrentPredictor(self, rows)

    def first(self, rows: int) -> tuple[np.ndarray, np.ndarray]:
        """State before the first frame `(rows, units)`, and what stands for the indices before it `(pairs, rows)`."""
        state = np.zeros((rows, self.units), np.float32)
        state[:, -1] = 1
        return state, np.tile(np.array(self.sizes)[:, None], rows)

    def drive(self, before: np.ndarray, room: Room) -> np.ndarray:
        """What frames that have ended put into the gates: `(pairs, n)` indices to `(n, 2 * units)` of `room`."""
        self.inputs[0].take(before[0], 0, room.mixed, "clip")
        for pair in range(1, len(self.sizes)):
            room.mixed += self.inputs[pair].take(before[pair], 0, room.spare, "clip")
        return room.mixed

    def step(self, state: np.ndarray, drive: np.ndarray, out: np.ndarray) -> None:
        """One frame of the recurrent unit.

        Args:
            state: `(rows, units)` before.
            drive: `(rows, 2 * units)`, `drive` of the frame that has ended.
            out: `(rows, units)`, for the state behind it; may be `state`.
        """
        mixed = np.dot(state, self.recurrent)
        mixed += drive
        np.floor(mixed, mixed)
        # A hard sigmoid in 256ths, x / 4 + 1/2; a hard hyperbolic tangent.
        gate, change = mixed[:, : self.units].clip(*GATE), mixed[:, self.units :].clip(*CHANGE)
        change -= state
        change *= gate
        change += HALF
        change *= UNIT
        np.floor(change, change)
        np.add(change, state, out)

    def counts(self, pair: int, states: np.ndarray, indices: np.ndarray, room: Room) -> np.ndarray:
        """Counts of one pair.

        Args:
            pair: its number.
            states: `(rows, units)` in this frame.
            indices: `(pairs, rows)` of this frame; those from `pair` on have no influence.
            room: for `rows`.

        Returns:
            `(rows, points)` uint64, good until the next call with this `room`.
        """
        hidden, logits, places = room.hidden, room.logits[pair], room.places[pair]
        np.dot(states, self.hidden[pair], hidden)
        for earlier in range(pair):
            hidden += self.within[pair, earlier].take(indices[earlier], 0, room.added, "clip")
        np.floor(hidden, hidden)
        hidden.clip(*HIDDEN, hidden)
        np.dot(hidden, self.out[pair], logits)
        # NumPy is fastest this way: rows' largest as parts of one row, and numbers for `take` by way of int32.
        largest = np.maximum.reduceat(logits.reshape(-1), room.starts[pair])
        np.subtract(largest[:, None], logits, logits)
        np.copyto(room.whole[pair], logits, casting="unsafe")
        np.copyto(places, room.whole[pair])
        # What is far behind the likeliest takes the last count, 1.
        return powers().take(places, None, room.counts[pair], "clip")

    def intervals(self, indices: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """As `ContextModel.intervals`."""
        found = np.zeros((*indices.shape, 3), np.int64)
        ends = np.zeros(max(TOGETHER, len(indices)) * max(self.sizes) + 1, np.uint64)
        for part, rows, pair, counts in self._known(indices, lengths):
            symbols = indices[:rows, part, pair].T.reshape(-1)
            found[:rows, part, pair] = spans(counts, symbols, ends).reshape(-1, rows, 3).transpose(1, 0, 2)
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
        rows, frames, _ = indices.shape
        state, before = self.first(rows)
        alive = sides(lengths)
        indices, room, begin = indices.transpose(2, 1, 0), Room(self, 0), 0
        while begin < frames:
            rows = alive[begin]
            part = slice(begin, min(begin + max(1, TOGETHER // rows), frames))
            known = indices[:, part, :rows]
            shape, flat = known.shape[1:], known.reshape(len(known), -1)
            if len(room.hidden) != flat.shape[1]:
                room = Room(self, flat.shape[1])
            drives = self.drive(np.concatenate([before[:, :rows], flat[:, :-rows]], axis=1), room)
            states = np.empty((*shape, self.units), np.float32)
            state = state[:rows]
            for drive, after in zip(drives.reshape(*shape, -1), states, strict=True):
                self.step(state, drive, after)
                state = after
            before, begin = flat[:, -rows:], part.stop
            for pair in range(len(flat)):
                yield part, rows, pair, self.counts(pair, states.reshape(-1, self.units), flat, room)


class Room:
    """Memory that is used again and again: fresh memory costs about as much as the arithmetic.

    Args:
        model: that works in it.
        rows: for which it is.
    """

    def __init__(self, model: RecurrentModel, rows: int) -> None:
        self.mixed, self.spare = np.empty((2, rows, 2 * model.units), np.float32)
        self.hidden, self.added = np.empty((2, rows, model.width), np.float32)
        self.starts = [np.arange(rows) * size for size in model.sizes]

        def shared(kind: type[np.generic]) -> list[np.ndarray]:
            memory = np.empty(rows * max(model.sizes), kind)
            return [memory[: rows * size].reshape(rows, size) for size in model.sizes]

        self.logits, self.whole = shared(np.float32), shared(np.int32)
        self.places, self.counts = shared(np.intp), shared(np.uint64)


class RecurrentPredictor(Predictor):
    """See `RecurrentModel`."""

    def __init__(self, model: RecurrentModel, rows: int) -> None:
        self._model = model
        self._state, self._indices = model.first(rows)
        self._room = Room(model, rows)

    def counts(self, pair: int) -> np.ndarray:
        """As `Predictor.counts`."""
        if pair == 0:
            self._model.step(self._state, self._model.drive(self._indices, self._room), self._state)
        return self._model.counts(pair, self._state, self._indices, self._room)

    def take(self, pair: int, indices: np.ndarray) -> None:
        """As `Predictor.take`."""
        self._indices[pair] = indices

    def keep(self, rows: int) -> None:
        """As `Predictor.keep`."""
        if rows != len(self._state):
            self._state, self._indices = self._state[:rows], self._indices[:, :rows].copy()
            self._room = Room(self._model, rows)


def padded(table: np.ndarray, size: int) -> np.ndarray:
    """A zero more behind each `size` columns."""
    parts = table.reshape(len(table), -1, size)
    return np.pad(parts, ((0, 0), (0, 0), (0, 1))).reshape(len(table), -1)


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
