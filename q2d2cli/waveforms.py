"""`load`, `save` and `info`: .q2d files with the arguments that torchaudio's functions of these names have.

>>> import torch, q2d2cli
>>> q2d2cli.save("silence.q2d", torch.zeros(1, 16_000), 16_000)
>>> q2d2cli.info("silence.q2d")
AudioInfo(sample_rate=16000, num_frames=16000, num_channels=1, bits_per_sample=0, encoding='Q2D')
>>> waveform, sample_rate = q2d2cli.load("silence.q2d", frame_offset=8000, num_frames=4000)
>>> waveform.shape, sample_rate
(torch.Size([1, 4000]), 16000)
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from q2d2cli.checkpoints import DEFAULT_MODEL, find_weights
from q2d2cli.codec import Codec
from q2d2cli.container.header import FormatError, Header
from q2d2cli.container.mending import Part, mended
from q2d2cli.container.stream import Reader
from q2d2cli.errors import UsageError
from q2d2cli.files import open_binary
from q2d2cli.streaming import CHUNK_SECONDS
from q2d2cli.transcode import decoded


class AudioInfo(NamedTuple):
    """What `info` tells of a file, in torchaudio's words."""

    sample_rate: int
    """Of the audio that was encoded, Hz; the rate that `load` gives."""
    num_frames: int
    """Samples per channel: torchaudio calls a sample of every channel a frame."""
    num_channels: int
    bits_per_sample: int
    """0: the samples are not stored."""
    encoding: str
    """`Q2D`."""


def load(
    uri: str | Path,
    frame_offset: int = 0,
    num_frames: int = -1,
    channels_first: bool = True,
    *,
    model: str | None = None,
    device: str = "auto",
) -> tuple[Tensor, int]:
    """Decode a .q2d file, or a part of it; only the blocks of the part are read.

    A part has the very samples that are there in the whole. A model is loaded once and kept.

    Args:
        uri: path of the file.
        frame_offset: the first sample wanted, at the file's sample rate.
        num_frames: how many samples at most; -1 for all up to the end.
        channels_first: False for `(samples, channels)`.
        model: where the model is, if it is not found by the name in the file.
        device: as `Codec.from_pretrained` takes it.

    Returns:
        `(channels, samples)` float32, full scale is +-1, and the sample rate, Hz. Behind the end there are no samples.

    Raises:
        UsageError: if there is no such file or model, or `frame_offset` or `num_frames` is out of range.
        Q2D2Error: if the file is damaged.
    """
    if frame_offset < 0:
        raise UsageError(f"frame_offset is {frame_offset}: give 0 or more samples")
    if num_frames < -1:
        raise UsageError(f"num_frames is {num_frames}: give -1 for all, or 0 or more samples")
    try:
        with open_binary(Path(uri)) as file:
            reader = Reader(mended(file, wanted_part(frame_offset, num_frames)))
            header = reader.header
            codec = _codec(model or str(find_weights(header.model, header.fingerprint).folder), device)
            length = reader.length()
            wanted = None if num_frames < 0 else num_frames
            pieces = [np.empty((header.channels, 0), np.float32)]
            if wanted != 0 and (length is None or frame_offset < length):
                decoder = codec.stream_decoder(header, chunk_seconds=CHUNK_SECONDS, start=frame_offset)
                for piece in decoded(reader, decoder):
                    pieces.append(piece[:, :wanted])
                    if wanted is not None:
                        wanted -= pieces[-1].shape[1]
                        if not wanted:
                            break
    except FormatError as error:
        raise FormatError(f"{uri} {error}") from error
    waveform = torch.from_numpy(np.concatenate(pieces, axis=1))
    return waveform if channels_first else waveform.T, header.original_rate


def wanted_part(frame_offset: int, num_frames: int) -> Callable[[Header], Part] | None:
    """Start and duration in seconds of what `load` takes; None for all."""
    if not frame_offset and num_frames < 0:
        return None
    return lambda header: (
        frame_offset / header.original_rate,
        None if num_frames < 0 else num_frames / header.original_rate,
    )


def save(
    uri: str | Path,
    src: Tensor | np.ndarray,
    sample_rate: int,
    channels_first: bool = True,
    *,
    model: str = DEFAULT_MODEL,
    device: str = "auto",
    effort: int = 0,
    rate_weight: float = 0.0,
) -> None:
    """Encode a waveform to a .q2d file, which replaces one that is there as torchaudio's does.

    Args:
        uri: path of the file; it appears whole or not at all.
        src: `(channels, samples)`, as `Codec.encode` takes it.
        sample_rate: of the waveform, Hz.
        channels_first: False for `(samples, channels)`.
        model: name or folder, as `Codec.from_pretrained` takes it.
        device: there, too.
        effort: as `Codec.encode` takes it, and `rate_weight`.

    Raises:
        UsageError: if there is no such model or folder, or the rate is out of range.
        ValueError: if the waveform's shape or type is wrong.
        Q2D2Error: if it is empty or holds NaN or infinity.
    """
    waveform = src if channels_first or src.ndim < 2 else src.T
    tokens = _codec(model, device).encode(waveform, sample_rate, effort=effort, rate_weight=rate_weight)
    tokens.save(uri, overwrite=True)


def info(uri: str | Path) -> AudioInfo:
    """Rate, length and channels of a .q2d file; takes no model, and reads no more than it must.

    Args:
        uri: path of the file.

    Raises:
        UsageError: if there is no such file.
        Q2D2Error: if it is no .q2d file, or damaged where its length stands.
    """
    try:
        with Reader(open_binary(Path(uri))) as reader:
            length = reader.length()
            if length is None:
                for _ in reader.blocks():
                    pass
                length = reader.num_samples
    except FormatError as error:
        raise FormatError(f"{uri} {error}") from error
    assert length is not None
    return AudioInfo(reader.header.original_rate, length, reader.header.channels, 0, "Q2D")


@functools.lru_cache(maxsize=4)
def _codec(model: str, device: str) -> Codec:
    return Codec.from_pretrained(model, device)
