"""A second decoder of .q2d files, written from docs/format.md alone: big integers, no NumPy, slow and plain."""

from __future__ import annotations

import math
import struct
import zlib
from typing import Any


def bits(numbers: int) -> int:
    return (numbers - 1).bit_length()


def sizes_of(kind: int, levels: list[int]) -> list[int]:
    pairs = list(zip(levels[::2], levels[1::2], strict=True))
    return [[a * b, a * b + (a - 1) * (b - 1), a * a][kind] for a, b in pairs]


def group_size(codebook: int) -> int:
    if bits(codebook) > 128:
        return 1
    candidates = [k for k in range(1, 129) if bits(codebook**k) <= 128]
    return min(candidates, key=lambda k: (bits(codebook**k) / k, k))


def packed_bytes(frames: int, sizes: list[int]) -> int:
    codebook = math.prod(sizes)
    group = group_size(codebook)
    return -(-(frames // group * bits(codebook**group) + bits(codebook ** (frames % group))) // 8)


def unpack(data: bytes, frames: int, sizes: list[int]) -> list[list[int]]:
    stream = int.from_bytes(data, "little")
    codebook = math.prod(sizes)
    group = group_size(codebook)
    result: list[list[int]] = []
    while len(result) < frames:
        count = min(group, frames - len(result))
        width = bits(codebook**count)
        number, stream = stream & ((1 << width) - 1), stream >> width
        for _ in range(count):
            frame = []
            for size in sizes:
                number, index = divmod(number, size)
                frame.append(index)
            result.append(frame)
        assert number == 0, "number outside the codebook"
    assert stream == 0, "padding"
    return result


def decode(data: bytes) -> dict[str, Any]:
    """Header fields, and `indices[channel][frame][pair]`."""
    assert data[:8] == b"\x89Q2D\r\n\x1a\n"
    major, minor, length = struct.unpack_from("<BBH", data, 8)
    assert major == 1
    assert zlib.crc32(data[: length - 4]) == struct.unpack_from("<I", data, length - 4)[0]
    kind, mode, dim, name_length = struct.unpack_from("<BBBB", data, 12)
    assert mode == 0
    hop, channels, rate, original, samples, block_frames = struct.unpack_from("<HHIIQH", data, 16)
    levels = list(struct.unpack_from(f"<{dim}H", data, 46))
    name = data[46 + 2 * dim : 46 + 2 * dim + name_length].decode()
    sizes = sizes_of(kind, levels)
    indices: list[list[list[int]]] = [[] for _ in range(channels)]
    position, sequence = length, 0
    while True:
        first, number, crc = struct.unpack_from("<III", data, position)
        kind_of_block, size = first % 256, first // 256
        payload = data[position + 12 : position + 12 + size]
        assert zlib.crc32(data[position : position + 8] + payload) == crc
        assert number == sequence
        position, sequence = position + 12 + size, sequence + 1
        if kind_of_block == 2:
            (total,) = struct.unpack_from("<Q", payload)
            break
        assert kind_of_block == 1
        (frames,) = struct.unpack_from("<H", payload)
        step = packed_bytes(frames, sizes)
        assert size == 2 + channels * step
        for channel in range(channels):
            part = payload[2 + channel * step : 2 + (channel + 1) * step]
            indices[channel] += unpack(part, frames, sizes)
    assert position == len(data)
    assert samples in (2**64 - 1, total)
    return {
        "version": [major, minor],
        "kind": ["rectangular", "rhombic", "hexagonal"][kind],
        "levels": levels,
        "hop": hop,
        "sample_rate": rate,
        "model": name,
        "fingerprint": data[38:46].hex(),
        "original_rate": original,
        "channels": channels,
        "num_samples": total,
        "frames_per_block": block_frames,
        "indices": indices,
    }
