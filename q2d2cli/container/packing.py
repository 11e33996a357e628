"""Pair indices to bits and back: mixed radix over groups of frames (docs/format.md, "Payload").

A frame's pair indices are the digits of a number below the codebook size `C`. Packing single
frames wastes up to a bit each, so `K` frames form one number below `C**K`, written in
`ceil(K * log2 C)` bits. Everything is vectorised over groups; Python loops run over the digits
of one group only.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from q2d2cli.container.header import FormatError

MAX_GROUP_BITS = 128
LIMB_BITS = np.uint64(32)
LIMB_MASK = np.uint64(0xFFFFFFFF)


def number_bits(codebook: int, frames: int) -> int:
    """Bits that hold every number below `codebook ** frames`."""
    return int(codebook**frames - 1).bit_length()


@lru_cache(maxsize=256)
def group_frames(sizes: tuple[int, ...]) -> int:
    """Frames `K` that share one number.

    The one of 1 ... floor(128 / log2 C) (at least 1) with the fewest bits per frame, the smallest
    of equals.
    """
    codebook = math.prod(sizes)
    best, best_bits = 1, number_bits(codebook, 1)
    frames = 2
    while (bits := number_bits(codebook, frames)) <= MAX_GROUP_BITS:
        if bits * best < best_bits * frames:
            best, best_bits = frames, bits
        frames += 1
    return best


def payload_bytes(frames: int, sizes: tuple[int, ...]) -> int:
    """Bytes of one channel's `frames` frames."""
    group = group_frames(sizes)
    codebook = math.prod(sizes)
    bits = frames // group * number_bits(codebook, group) + number_bits(codebook, frames % group)
    return -(-bits // 8)


def pack(indices: np.ndarray, sizes: tuple[int, ...]) -> bytes:
    """Pack one channel's pair indices.

    Args:
        indices: `(frames, pairs)` integers, column `j` in `[0, sizes[j])`.
        sizes: points of each pair's grid.

    Returns:
        `payload_bytes(frames, sizes)` bytes.

    Raises:
        ValueError: if the shape is wrong or an index is out of range.
    """
    check_range(indices, sizes)
    group = group_frames(sizes)
    full = len(indices) // group * group
    digits = indices.astype(np.uint64)
    parts = [to_bits(digits[:full].reshape(-1, group * len(sizes)), sizes * group)]
    if rest := len(indices) - full:
        parts.append(to_bits(digits[full:].reshape(1, -1), sizes * rest))
    return np.packbits(np.concatenate(parts), bitorder="little").tobytes()


def check_range(indices: np.ndarray, sizes: tuple[int, ...]) -> None:
    """Raise ValueError unless `indices` is `(frames, pairs)` with column `j` in `[0, sizes[j])`."""
    if indices.ndim != 2 or indices.shape[1] != len(sizes):
        raise ValueError(f"indices have shape {indices.shape}: expected (frames, {len(sizes)})")
    wrong = (indices < 0) | (indices >= np.array(sizes))
    if wrong.any():
        frame, pair = np.argwhere(wrong)[0]
        raise ValueError(f"index {indices[frame, pair]} is out of range: pair {pair} has {sizes[pair]} points")


def unpack(data: bytes, frames: int, sizes: tuple[int, ...], strict: bool = True) -> np.ndarray:
    """Inverse of `pack`: bytes to `(frames, pairs)` int64.

    Args:
        data: what `pack` gave.
        frames: how many frames that are.
        sizes: points of each pair's grid.
        strict: whether bits that `pack` does not write are an error. Otherwise padding is ignored
            and each group's number is taken modulo `C**k`.

    Raises:
        FormatError: if the number of bytes is wrong, or the bits are (`strict`).
    """
    if len(data) != payload_bytes(frames, sizes):
        raise FormatError(f"payload has {len(data)} bytes where {payload_bytes(frames, sizes)} belong")
    group = group_frames(sizes)
    groups, rest = divmod(frames, group)
    codebook = math.prod(sizes)
    bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
    width = number_bits(codebook, group)
    full_bits = groups * width
    end = full_bits + number_bits(codebook, rest)
    if strict and bits[end:].any():
        raise FormatError("padding bits of a payload are not zero")
    parts = [from_bits(bits[:full_bits].reshape(groups, width), sizes * group, strict).reshape(-1, len(sizes))]
    if rest:
        parts.append(from_bits(bits[full_bits:end].reshape(1, -1), sizes * rest, strict).reshape(-1, len(sizes)))
    return np.concatenate(parts).astype(np.int64)


def to_bits(digits: np.ndarray, radices: tuple[int, ...]) -> np.ndarray:
    """Mixed-radix numbers to bits, least significant first.

    Args:
        digits: `(groups, digits)` uint64, the least significant digit first.
        radices: radix of each digit, below 2**32.

    Returns:
        `(groups * bits)` of 0 and 1, where `bits` holds every number below the radices' product.
    """
    bits = (math.prod(radices) - 1).bit_length()
    limbs = np.zeros((-(-bits // 32), len(digits)), np.uint64)
    for column, radix in reversed(list(enumerate(radices))):
        carry = digits[:, column]
        for limb in limbs:
            value = limb * np.uint64(radix) + carry
            limb[:] = value & LIMB_MASK
            carry = value >> LIMB_BITS
    octets = np.ascontiguousarray(limbs.T.astype("<u4")).view(np.uint8)
    return np.unpackbits(octets, axis=1, bitorder="little")[:, :bits].reshape(-1)


def from_bits(bits: np.ndarray, radices: tuple[int, ...], strict: bool) -> np.ndarray:
    """Inverse of `to_bits`: `(groups, bits)` of 0 and 1 to `(groups, digits)` uint64.

    Raises:
        FormatError: if a number is not below the radices' product and `strict`; otherwise it is taken modulo that.
    """
    groups, width = bits.shape
    padded = np.zeros((groups, -(-width // 32) * 32), np.uint8)
    padded[:, :width] = bits
    limbs = np.packbits(padded, axis=1, bitorder="little").view("<u4").T.astype(np.uint64)
    digits = np.empty((groups, len(radices)), np.uint64)
    for column, radix in enumerate(radices):
        remainder = np.zeros(groups, np.uint64)
        for limb in limbs[::-1]:
            value = (remainder << LIMB_BITS) | limb
            limb[:], remainder = np.divmod(value, np.uint64(radix))
        digits[:, column] = remainder
    if strict and limbs.any():
        raise FormatError("payload holds a number outside the codebook")
    return digits
