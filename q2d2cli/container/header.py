"""The .q2d header: what it holds, to bytes and back (docs/format.md, "Header"). Imports no torch."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import BinaryIO, Literal

from q2d2cli.errors import Q2D2Error
from q2d2cli.quantizers.spec import KINDS, QuantizerSpec

MAGIC = b"\x89Q2D\r\n\x1a\n"
MAJOR = 1
UNKNOWN = 2**64 - 1
Payload = Literal["packed", "robust"]
PAYLOADS: tuple[Payload, ...] = ("packed", "robust")
"""Payload modes in the order of their codes: mixed radix, and a field of its own for every index."""
MINORS: dict[Payload, int] = {"packed": 0, "robust": 1}
"""The first minor version with each payload mode; files carry the lowest that describes them."""
MAX_RATE = 1_000_000
"""Highest sample rate, Hz: what a crafted file may ask of a resampler; recordings of bats have half of it."""
MAX_ROBUST_POINTS = 65536
"""Points of a pair that a robust payload can have: its labelling is a table."""

# Kind, payload mode, number of levels, length of the name, hop, channels, model rate, original
# rate, samples, frames per block, fingerprint; the version and the header's length go before.
PREFIX = struct.Struct("<8sBBH")
FIXED = struct.Struct("<BBBBHHIIQH8s")
CRC = struct.Struct("<I")

OTHER_FORMATS = {
    b"RIFF": "a WAV file",
    b"fLaC": "a FLAC file",
    b"OggS": "an Ogg file",
    b"ID3": "an MP3 file",
    b"ECDC": "an EnCodec file",
    b"PK\x03\x04": "a zip archive",
    b"\x93NUMPY": "a NumPy file (DAC's .dac, perhaps)",
}


class FormatError(Q2D2Error):
    """The bytes are not a valid .q2d file; the message says why and what to do."""


@dataclass(frozen=True)
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
    version: tuple[int, int] = (MAJOR, 0)
    """Of the file that was read; at least the one that has the payload mode."""
    payload: Payload = "packed"
    """How pair indices become bits."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "version", max(self.version, (MAJOR, MINORS[self.payload])))
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
        if len(self.fingerprint) != 8:
            raise ValueError(f"fingerprint has {len(self.fingerprint)} bytes: it must have 8")

    @property
    def frame_rate(self) -> float:
        """Frames (and tokens) per second and channel."""
        return self.sample_rate / self.hop

    @property
    def bits_per_frame(self) -> float:
        """Payload bits of a frame: `log2` of the codebook size; robust, the sum of the fields' widths."""
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

    def to_bytes(self) -> bytes:
        """The header as it stands in a file."""
        name = self.model.encode()
        body = FIXED.pack(
            KINDS.index(self.quantizer.kind),
            PAYLOADS.index(self.payload),
            self.quantizer.dim,
            len(name),
            self.hop,
            self.channels,
            self.sample_rate,
            self.original_rate,
            UNKNOWN if self.num_samples is None else self.num_samples,
            self.frames_per_block,
            self.fingerprint,
        )
        body += struct.pack(f"<{self.quantizer.dim}H", *self.quantizer.levels) + name
        # Not the version that was read: what a later one adds is not kept.
        prefix = PREFIX.pack(MAGIC, MAJOR, MINORS[self.payload], PREFIX.size + len(body) + CRC.size)
        return prefix + body + CRC.pack(zlib.crc32(prefix + body))


def read_header(file: BinaryIO) -> tuple[Header, int]:
    """Read a header and leave `file` at the first block; returns it and its length in bytes.

    Raises:
        FormatError: if this is not a .q2d file, a newer version, truncated or damaged.
    """
    prefix = file.read(PREFIX.size)
    if not prefix:
        raise FormatError("is empty: not a .q2d file")
    if not MAGIC.startswith(prefix[: len(MAGIC)]):
        raise FormatError(describe_foreign(prefix))
    if len(prefix) < PREFIX.size:
        raise FormatError("is truncated: it ends inside the header")
    _, major, minor, length = PREFIX.unpack(prefix)
    if major != MAJOR:
        raise FormatError(f"has format version {major}.{minor}, and this q2d2 reads version {MAJOR}: upgrade q2d2")
    if length < PREFIX.size + FIXED.size + CRC.size:
        raise FormatError("is damaged: its header is too short")
    rest = file.read(length - PREFIX.size)
    if len(rest) < length - PREFIX.size:
        raise FormatError("is truncated: it ends inside the header")
    body, (crc,) = rest[: -CRC.size], CRC.unpack(rest[-CRC.size :])
    if zlib.crc32(prefix + body) != crc:
        raise FormatError("is damaged: the checksum of its header does not match")
    return parse_body(body, (major, minor)), length


def parse_body(body: bytes, version: tuple[int, int]) -> Header:
    """Header fields from checked bytes; what a later minor version adds behind them is skipped."""
    kind, mode, dim, name_length, hop, channels, rate, original, samples, frames, mark = FIXED.unpack_from(body)
    variable = body[FIXED.size :]
    if len(variable) < 2 * dim + name_length:
        raise FormatError("is damaged: its header is too short for its fields")
    if kind >= len(KINDS) or mode >= len(PAYLOADS):
        what = f"quantizer kind {kind}" if kind >= len(KINDS) else f"payload mode {mode}"
        raise FormatError(f"uses {what}, which this q2d2 does not know: upgrade q2d2")
    levels = struct.unpack_from(f"<{dim}H", variable)
    try:
        return Header(
            QuantizerSpec(KINDS[kind], levels),
            hop,
            rate,
            variable[2 * dim : 2 * dim + name_length].decode(),
            mark,
            original,
            channels,
            None if samples == UNKNOWN else samples,
            frames,
            version,
            PAYLOADS[mode],
        )
    except ValueError as error:
        raise FormatError(f"has an impossible header: {error}") from error


def describe_foreign(start: bytes) -> str:
    """What a file without the magic probably is."""
    if start.startswith(b"\x89Q2D"):
        return "was damaged in transfer (line endings were changed): copy it again in binary mode"
    for magic, name in OTHER_FORMATS.items():
        if start.startswith(magic):
            return f"is not a .q2d file: it looks like {name}"
    return "is not a .q2d file"
