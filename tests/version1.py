"""Writes files of format version 1, as the program did up to version 2, so that reading them can be tested."""

from __future__ import annotations

import struct
import zlib

import numpy as np

from q2d2cli.container.header import PAYLOADS, Header
from q2d2cli.container.payload import to_payload
from q2d2cli.quantizers.spec import KINDS


def header_bytes(header: Header) -> bytes:
    mode, name, dim = PAYLOADS.index(header.payload), header.model.encode(), header.quantizer.dim
    samples = 2**64 - 1 if header.num_samples is None else header.num_samples
    data = b"\x89Q2D\r\n\x1a\n" + struct.pack("<BBH", 1, mode, 50 + 2 * dim + len(name))
    data += struct.pack("<BBBB", KINDS.index(header.quantizer.kind), mode, dim, len(name))
    data += struct.pack("<HHII", header.hop, header.channels, header.sample_rate, header.original_rate)
    data += struct.pack("<QH", samples, header.frames_per_block) + header.fingerprint
    data += struct.pack(f"<{dim}H", *header.quantizer.levels) + name
    return data + struct.pack("<I", zlib.crc32(data))


def block(kind: int, sequence: int, payload: bytes) -> bytes:
    head = struct.pack("<II", kind | len(payload) << 8, sequence)
    return head + struct.pack("<I", zlib.crc32(head + payload)) + payload


def write(header: Header, indices: np.ndarray, num_samples: int) -> bytes:
    data, sequence = header_bytes(header), 0
    for first in range(0, indices.shape[1], header.frames_per_block):
        part = indices[:, first : first + header.frames_per_block]
        data += block(1, sequence, struct.pack("<H", part.shape[1]) + to_payload(header, part))
        sequence += 1
    return data + block(2, sequence, struct.pack("<Q", num_samples))
