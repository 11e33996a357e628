"""The .q2d header: what it holds, to bytes and back (docs/format.md, "Header"). Imports no torch."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from itertools import groupby
from typing import BinaryIO, Literal

from q2d2cli.container.varint import VarintError, from_varint, to_varint
from q2d2cli.errors import Q2D2Error
from q2d2cli.quantizers.spec import KINDS, QuantizerSpec

MAGIC = b"\x89Q2D\r\n\x1a\n"
VERSION = (2, 0)
"""Major and minor version that is written, unless the file needs a later minor version."""
LATTICE_MINOR = 1
"""The minor version that has lattices."""
UNKNOWN = 2**64 - 1
Payload = Literal["packed", "robust", "coded"]
PAYLOADS: tuple[Payload, ...] = ("packed", "robust", "coded")
"""Payload modes in the order of their codes: mixed radix, a field of its own for every index, and entropy coded."""
MAX_RATE = 1_000_000
"""Highest sample rate, Hz: what a crafted file may ask of a resampler; recordings of bats have half of it."""
MAX_ROBUST_POINTS = 65536
"""Points of a pair that a robust payload can have: its labelling is a table."""
RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 88200, 96000, 176400, 192000)
"""Sample rates with a code of their own, from 1 on, Hz."""
FINGERPRINT_BYTES = 8
BLOCK_BYTES = 1400
"""About how large a payload a block of a file has: its head and checksum are half a percent of that."""
ROBUST_SECONDS = 1.0
"""About how much audio a block of a robust file holds: what is lost with it."""
MAX_PAYLOAD = 2**24 - 1
"""Bytes of a block's payload."""

PREFIX = struct.Struct("<8sBB")
"""Magic, major version, minor version."""
CRC = struct.Struct("<I")
CRC_TABLE = [zlib.crc32(bytes([byte])) ^ zlib.crc32(b"\0") for byte in range(256)]
"""By what an error in the last byte changes a CRC32."""
BY_TOP = {entry >> 24: byte for byte, entry in enumerate(CRC_TABLE)}
SAMPLES_BYTES = 7
"""Bytes kept for a number of samples that is put in later."""


class FormatError(Q2D2Error):
    """The bytes are not a valid .q2d file; the message says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """Everything the header of a .q2d file says.

    Raises:
        ValueError: if a field does not fit the format.
    """

    quantizer: QuantizerSpec
    hop: int
    """Samples per frame at the model's rate."""
    sample_rate: int
    """The model's rate, Hz."""
    model: str
    fingerprint: bytes
    """First 8 bytes of the SHA-256 of the weights file."""
    original_rate: int
    """Rate of the audio that went in, and comes out, Hz."""
    channels: int
    num_samples: int | None
    """Samples per channel at the original rate; None if not known when the header was written."""
    frames_per_block: int
    version: tuple[int, int] = VERSION
    """Of the file that was read; not kept, files are written in the newest."""
    payload: Payload = "packed"
    """How pair indices become bits."""
    context: bytes = b""
    """Fingerprint of the context model of a `coded` payload: first 8 bytes of the SHA-256 of its file."""
    parity: bool = False
    """Whether the file has parity blocks."""

    def __post_init__(self) -> None:
        limits = {
            "hop": (self.hop, 65535),
            "sample_rate": (self.sample_rate, MAX_RATE),
            "original_rate": (self.original_rate, MAX_RATE),
            "channels": (self.channels, 65535),
            "frames_per_block": (self.frames_per_block, 65535),
            "number of levels": (self.quantizer.dim, 255),
            "length of the model's name": (len(self.model.encode()), 255),
        }
        for name, (value, limit) in limits.items():
            if not 1 <= value <= limit:
                raise ValueError(f"{name} {value} is out of range: the format holds 1 to {limit}")
        if self.num_samples is not None and not 0 <= self.num_samples < UNKNOWN:
            raise ValueError(f"number of samples {self.num_samples} is out of range")
        if self.payload == "robust" and max(self.quantizer.sizes) > MAX_ROBUST_POINTS:
            raise ValueError(
                f"a grid of {max(self.quantizer.sizes)} points is out of range: a robust payload holds "
                f"{MAX_ROBUST_POINTS}"
            )
        for name, mark, size in (
            ("fingerprint", self.fingerprint, FINGERPRINT_BYTES),
            ("fingerprint of the context model", self.context, FINGERPRINT_BYTES if self.payload == "coded" else 0),
        ):
            if len(mark) != size:
                raise ValueError(f"{name} has {len(mark)} bytes: it must have {size}")

    @property
    def frame_rate(self) -> float:
        """Frames (and tokens) per second and channel."""
        return self.sample_rate / self.hop

    @property
    def bits_per_frame(self) -> float:
        """Payload bits of a frame: `log2` of the codebook size; robust, the sum of the fields' widths.

        A coded payload has fewer than that, how many its file tells.
        """
        return sum(self.quantizer.field_bits) if self.payload == "robust" else self.quantizer.bits_per_frame

    @property
    def bit_rate(self) -> float:
        """Payload bits per second of all channels: frame rate times bits per frame."""
        return self.channels * self.frame_rate * self.bits_per_frame

    @property
    def duration(self) -> float | None:
        """Seconds of audio, None if not known."""
        return None if self.num_samples is None else self.num_samples / self.original_rate

    def frames_for(self, num_samples: int) -> int:
        """Frames per channel of so many samples at the original rate: the samples at the model's rate, over the hop."""
        return -(-num_samples * self.sample_rate // (self.original_rate * self.hop))

    def to_bytes(self, room: bool = False) -> bytes:
        """The header as it stands in a file.

        Args:
            room: whether the number of samples takes `SAMPLES_BYTES`, so that it can be put in later.
        """
        body = bytearray([KINDS.index(self.quantizer.kind) | PAYLOADS.index(self.payload) << 4 | self.parity << 7])
        body += to_varint(self.quantizer.dim)
        for level, run in groupby(self.quantizer.levels):
            body += to_varint(level) + to_varint(len(list(run)))
        body += to_varint(self.hop) + to_varint(self.channels)
        rates = (self.sample_rate, self.original_rate)
        codes = [RATES.index(rate) + 1 if rate in RATES else 0 for rate in rates]
        body.append(codes[0] | codes[1] << 4)
        for rate, code in zip(rates, codes, strict=True):
            body += b"" if code else to_varint(rate)
        body += to_varint(self.frames_per_block)
        samples = 0 if self.num_samples is None else self.num_samples + 1
        body += to_varint(samples, SAMPLES_BYTES if room else 1)
        name = self.model.encode()
        body += self.fingerprint + to_varint(len(name)) + name + self.context
        minor = LATTICE_MINOR if self.quantizer.is_lattice else VERSION[1]
        data = PREFIX.pack(MAGIC, VERSION[0], minor) + to_varint(len(body)) + body
        return data + CRC.pack(zlib.crc32(data))


def block_frames(
    quantizer: QuantizerSpec, frame_rate: float, channels: int, payload: Payload = "packed", frames: int | None = None
) -> int:
    """Frames per block that a file should have.

    As many as fill `BLOCK_BYTES`, in a robust file `ROBUST_SECONDS`; of a file whose length is
    known a little fewer, so that all its blocks are equally long.

    Args:
        quantizer: of the model.
        frame_rate: frames per second and channel.
        channels: of the audio.
        payload: the payload mode.
        frames: per channel of the whole file; None if not known.
    """
    most = max(1, min(65535, int(8 * BLOCK_BYTES / (channels * quantizer.bits_per_frame))))
    if payload == "robust":
        return max(1, min(most, round(ROBUST_SECONDS * frame_rate)))
    if not frames:
        return most
    return -(-frames // -(-frames // most))


def read_rest(file: BinaryIO, prefix: bytes, mended: list[int] | None = None) -> tuple[Header, int]:
    """Read what follows magic and version of version 2; returns the header and its length in bytes.

    Args:
        file: open for reading in binary, behind `prefix`.
        prefix: magic and version.
        mended: gets the offset of a byte that was wrong and is known from the checksum; None: that is an error.

    Raises:
        FormatError: if it is truncated or damaged.
    """
    data = prefix + read_exactly(file, 1)
    while data[-1] >= 0x80:
        data += read_exactly(file, 1)
        if len(data) > PREFIX.size + 2:
            raise FormatError("is damaged: its header has an impossible length")
    length, begin = from_varint(data, PREFIX.size)
    data += read_exactly(file, length + CRC.size)
    if zlib.crc32(data[: -CRC.size]) != CRC.unpack(data[-CRC.size :])[0]:
        wrong = None if mended is None else wrong_byte(data[: -CRC.size], CRC.unpack(data[-CRC.size :])[0])
        if mended is None or wrong is None:
            raise FormatError("is damaged: the checksum of its header does not match")
        at, change = wrong
        mended.append(at)
        data = data[:at] + bytes([data[at] ^ change]) + data[at + 1 :]
    return parse_body(data[begin : -CRC.size], (VERSION[0], data[PREFIX.size - 1])), len(data)


def wrong_byte(data: bytes, checksum: int) -> tuple[int, int] | None:
    """Where a single wrong byte of data and CRC32 is, and what to XOR it with; None if no single one explains them.

    A wrong byte changes the CRC32 in a way that depends on its place and its error alone. Of bytes that are wrong
    otherwise, one in sixteen million for each byte of `data` passes for such.
    """
    difference = zlib.crc32(data) ^ checksum
    own = [number for number, byte in enumerate(CRC.pack(difference)) if byte]
    if len(own) == 1:
        return len(data) + own[0], CRC.pack(difference)[own[0]]
    for at in reversed(range(len(data))):
        last = BY_TOP[difference >> 24]
        if difference == CRC_TABLE[last]:
            return at, last
        # As it was one byte before.
        difference = (difference ^ CRC_TABLE[last]) << 8 & 0xFFFFFFFF | last
    return None


def read_exactly(file: BinaryIO, size: int) -> bytes:
    """So many bytes of the header.

    Raises:
        FormatError: if the file ends before.
    """
    data = file.read(size)
    if len(data) < size:
        raise FormatError("is truncated: it ends inside the header")
    return data


def parse_body(body: bytes, version: tuple[int, int]) -> Header:
    """Header fields from checked bytes; what a later minor version adds behind them is skipped."""
    at = 0

    def byte() -> int:
        return piece(1)[0]

    def number() -> int:
        nonlocal at
        value, at = from_varint(body, at)
        return value

    def piece(size: int) -> bytes:
        nonlocal at
        if len(body) < at + size:
            raise VarintError("its fields do not fit")
        at += size
        return body[at - size : at]

    try:
        first = byte()
        kind, mode, parity = first & 15, first >> 4 & 7, first >> 7 == 1
        if kind >= len(KINDS) or mode >= len(PAYLOADS):
            what = f"quantizer kind {kind}" if kind >= len(KINDS) else f"payload mode {mode}"
            raise FormatError(f"uses {what}, which this q2d2 does not know: upgrade q2d2")
        dim, levels = number(), list[int]()
        while len(levels) < dim:
            level, run = number(), number()
            if not 1 <= run <= dim - len(levels) or dim > 255:
                raise VarintError(f"{dim} levels, {run} of them {level}")
            levels += [level] * run
        hop, channels, codes = number(), number(), byte()
        rates = []
        for code in (codes & 15, codes >> 4):
            if code > len(RATES):
                raise FormatError(f"uses sample rate code {code}, which this q2d2 does not know: upgrade q2d2")
            rates.append(RATES[code - 1] if code else number())
        frames, samples = number(), number()
        mark, name = piece(FINGERPRINT_BYTES), piece(number()).decode()
        context = piece(FINGERPRINT_BYTES) if PAYLOADS[mode] == "coded" else b""
        return Header(
            quantizer=QuantizerSpec(KINDS[kind], tuple(levels)),
            hop=hop,
            sample_rate=rates[0],
            model=name,
            fingerprint=mark,
            original_rate=rates[1],
            channels=channels,
            num_samples=samples - 1 if samples else None,
            frames_per_block=frames,
            version=version,
            payload=PAYLOADS[mode],
            context=context,
            parity=parity,
        )
    except ValueError as error:
        raise FormatError(f"has an impossible header: {error}") from error
