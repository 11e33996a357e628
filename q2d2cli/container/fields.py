"""Pair indices to fields of fixed width and back (docs/format.md, "Payload mode 1"). Imports no torch."""

from __future__ import annotations

import numpy as np

from q2d2cli.container.header import FormatError
from q2d2cli.container.labelling import labellings
from q2d2cli.container.packing import check_range
from q2d2cli.quantizers.spec import QuantizerSpec


def fields_bytes(frames: int, spec: QuantizerSpec) -> int:
    """Bytes of one channel's `frames` frames."""
    return -(-frames * sum(spec.field_bits) // 8)


def pack_fields(indices: np.ndarray, spec: QuantizerSpec) -> bytes:
    """Write one channel's pair indices, each in its own field.

    Args:
        indices: `(frames, pairs)` integers, column `j` in `[0, spec.sizes[j])`.
        spec: of the quantizer they come from.

    Returns:
        `fields_bytes(frames, spec)` bytes.

    Raises:
        ValueError: if the shape is wrong or an index is out of range.
    """
    check_range(indices, spec.sizes)
    columns = [
        labelling.codes[indices[:, j], None] >> np.arange(labelling.width) & 1
        for j, labelling in enumerate(labellings(spec))
    ]
    return np.packbits(np.concatenate(columns, axis=1).astype(np.uint8), bitorder="little").tobytes()


def unpack_fields(data: bytes, frames: int, spec: QuantizerSpec) -> np.ndarray:
    """Inverse of `pack_fields`: bytes, damaged ones too, to `(frames, pairs)` int64.

    Raises:
        FormatError: if the number of bytes is wrong.
    """
    if len(data) != fields_bytes(frames, spec):
        raise FormatError(f"payload has {len(data)} bytes where {fields_bytes(frames, spec)} belong")
    width = sum(spec.field_bits)
    bits = np.unpackbits(np.frombuffer(data, np.uint8), count=frames * width, bitorder="little").reshape(frames, width)
    columns = np.split(bits.astype(np.int64), np.cumsum(spec.field_bits)[:-1], axis=1)
    return np.stack(
        [
            labelling.points[column @ (1 << np.arange(labelling.width))]
            for labelling, column in zip(labellings(spec), columns, strict=True)
        ],
        axis=1,
    )
