"""One clip through the codec as the demo page shows it: encoded, damaged, decoded, and every byte counted."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from q2d2cli.audio import AudioReader
from q2d2cli.codec import Codec, Tokens
from q2d2cli.container.channel import Channel, damage_file
from q2d2cli.container.header import FormatError, Payload
from q2d2cli.container.stream import Fault, Reader
from q2d2cli.errors import UsageError
from q2d2cli.transcode import decoded

LONGEST_SECONDS = 30.0
"""Of a clip; what is behind is left out, so that a page answers while one waits."""
SHORTEST_SECONDS = 0.1
"""There is nothing to hear or see in less."""


@dataclass(frozen=True)
class Damage:
    """What happens to the file on its way.

    Attributes:
        kind: bits of the payload are flipped, or whole blocks dropped.
        amount: probability of each bit or block, in [0, 1].
        robust: whether the file is made for it: each index in bits of its own, in small blocks.
        conceal: whether what is lost is filled in, as `decode --conceal` does.
        seed: the same seed does the same damage.
    """

    kind: Literal["bits", "packets"]
    amount: float
    robust: bool = True
    conceal: bool = True
    seed: int = 1


@dataclass(frozen=True)
class Sizes:
    """What the bytes of a .q2d file are for."""

    payload: int
    """Pair indices."""
    checksums: int
    """Head and checksum of each block."""
    header: int
    """Header and end block."""

    @property
    def total(self) -> int:
        """Of the file."""
        return self.payload + self.checksums + self.header


@dataclass(frozen=True, eq=False)
class RoundTrip:
    """What became of a clip.

    Attributes:
        original: `(samples,)` float32, full scale is +-1.
        rate: Hz.
        tokens: of the encoder, one channel.
        data: the .q2d file as it was sent.
        payload: its payload mode.
        sizes: of the file in each payload mode that the model has.
        decoded: `(samples,)` float32; None if the damaged file was refused.
        refusal: why it was refused; empty if it was not.
        faults: damage that was found and decoded all the same.
        encode_seconds: time taken by encoding.
        decode_seconds: time taken by decoding.
        notes: what was done to the clip before.
    """

    original: np.ndarray
    rate: int
    tokens: Tokens
    data: bytes
    payload: Payload
    sizes: dict[Payload, Sizes]
    decoded: np.ndarray | None
    refusal: str
    faults: tuple[Fault, ...]
    encode_seconds: float
    decode_seconds: float
    notes: tuple[str, ...]


def round_trip(
    codec: Codec,
    path: Path,
    effort: int = 0,
    damage: Damage | None = None,
    progress: Callable[[float], None] | None = None,
) -> RoundTrip:
    """Encode a clip, damage the file if asked to, and decode it.

    Args:
        codec: the model.
        path: of the clip, any format that `q2d2 encode` reads; its channels are averaged.
        effort: as `Codec.encode` takes it.
        damage: on the way; None for none.
        progress: called with the share of the encoding that is done, in [0, 1].

    Raises:
        Q2D2Error: if the clip cannot be read or encoded, is too short, or the model's grids are too large for a robust
            payload.
    """
    audio, rate, notes = read_clip(path)
    started = time.monotonic()
    encoder = codec.stream_encoder(
        rate,
        num_samples=len(audio),
        effort=effort,
        on_progress=None if progress is None else lambda seconds: progress(min(1.0, seconds * rate / len(audio))),
    )
    parts = [*encoder.push(audio[None]), *encoder.finish()]
    tokens = Tokens(torch.from_numpy(np.concatenate(parts, axis=1)), encoder.header)
    encoded = time.monotonic()
    payload: Payload = "robust" if damage is not None and damage.robust else tokens.header.payload
    data = saved(tokens, payload)
    files = {payload: data}
    for other in ("coded", "packed", "robust"):
        if other not in files and (other != "coded" or codec.context is not None):
            try:
                files[other] = saved(tokens, other)
            except UsageError:  # grids too large for a robust payload
                continue
    sizes = {name: count(files[name]) for name in ("coded", "packed", "robust") if name in files}
    arrived, conceal = data, False
    if damage is not None:
        ber, loss = (damage.amount, None) if damage.kind == "bits" else (None, damage.amount)
        arrived = damage_file(data, Channel(ber, loss, np.random.Generator(np.random.PCG64(damage.seed))))
        conceal = damage.conceal
    began = time.monotonic()
    sound, refusal, faults = received(codec, arrived, conceal)
    return RoundTrip(
        original=audio,
        rate=rate,
        tokens=tokens,
        data=data,
        payload=payload,
        sizes=sizes,
        decoded=sound,
        refusal=refusal,
        faults=faults,
        encode_seconds=encoded - started,
        decode_seconds=time.monotonic() - began,
        notes=notes,
    )


def read_clip(path: Path) -> tuple[np.ndarray, int, tuple[str, ...]]:
    """`(samples,)` float32 of at most `LONGEST_SECONDS`, the rate in Hz, and what was done to it.

    Raises:
        Q2D2Error: if it cannot be read, or is too short.
    """
    notes, pieces, samples = [], [], 0
    with AudioReader(path) as reader:
        rate, longest = reader.sample_rate, int(LONGEST_SECONDS * reader.sample_rate)
        for block in reader.blocks():
            pieces.append(block.mean(axis=0))
            samples += block.shape[1]
            if samples > longest:
                notes.append(f"The first {LONGEST_SECONDS:.0f} s of a longer clip.")
                break
        if reader.channels > 1:
            notes.append(f"{reader.channels} channels mixed to one; q2d2 encode keeps them.")
    audio = np.concatenate(pieces)[:longest]
    if len(audio) < SHORTEST_SECONDS * rate:
        raise UsageError(f"the clip is {len(audio) / rate:.3f} s long: give one of at least {SHORTEST_SECONDS} s")
    return audio, rate, tuple(notes)


def saved(tokens: Tokens, payload: Payload) -> bytes:
    """The .q2d file."""
    file = io.BytesIO()
    tokens.save(file, payload)
    return file.getvalue()


def count(data: bytes) -> Sizes:
    """What the bytes of a sound file are for."""
    payload = checksums = 0
    for block in Reader(io.BytesIO(data)).blocks():
        payload += len(block.packed.payload)
        checksums += block.end - block.offset - len(block.packed.payload)
    return Sizes(payload, checksums, len(data) - payload - checksums)


def received(codec: Codec, data: bytes, conceal: bool) -> tuple[np.ndarray | None, str, tuple[Fault, ...]]:
    """`(samples,)` audio of a file that may be damaged, or else why it is refused, and what is wrong with it."""
    try:
        reader = Reader(io.BytesIO(data), conceal)
        pieces = list(decoded(reader, codec.stream_decoder(reader.header, chunk_seconds=None)))
    except FormatError as error:
        return None, f"The file {error}", ()
    return np.concatenate(pieces, axis=1)[0], "", tuple(reader.faults)
