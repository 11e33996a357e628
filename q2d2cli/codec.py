"""The public API: `Codec` turns waveforms into `Tokens` and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from q2d2cli import DEFAULT_MODEL, checkpoints
from q2d2cli.audio import Resampler
from q2d2cli.container.header import FormatError, Header, Payload
from q2d2cli.container.stream import Reader, Writer
from q2d2cli.errors import Q2D2Error, UsageError
from q2d2cli.files import atomic_output
from q2d2cli.models.model import CodecModel
from q2d2cli.quantizers.base import indices_to_tokens, tokens_to_indices
from q2d2cli.search import Search

CHUNK_SECONDS = 10.0
BLOCK_SECONDS = 1.0
"""About how much audio a block of a .q2d file holds."""


@dataclass(frozen=True, eq=False)
class Tokens:
    """Encoded audio: pair indices, and what is needed to decode and store them.

    Attributes:
        indices: `(channels, frames, pairs)` int64 on the CPU; entry `j` of a frame is a point of grid `j`.
        header: model, rates, sample count; `header.num_samples` is never None.
        damaged_blocks: blocks of the robust file they come from whose checksum did not match.
        lost_blocks: blocks that were missing there; their frames hold the points nearest the origin.
    """

    indices: Tensor
    header: Header
    damaged_blocks: int = 0
    lost_blocks: int = 0

    @property
    def tokens(self) -> Tensor:
        """`(channels, frames)` int64, one token per frame in `[0, codebook_size)`; pair 0 is least significant."""
        return indices_to_tokens(self.indices, self.header.quantizer)

    @property
    def num_samples(self) -> int:
        """Samples per channel of the original, at its own rate."""
        assert self.header.num_samples is not None
        return self.header.num_samples

    @property
    def sample_rate(self) -> int:
        """Rate of the original, Hz; `Codec.decode` returns this rate."""
        return self.header.original_rate

    @property
    def duration(self) -> float:
        """Seconds."""
        return self.num_samples / self.sample_rate

    @property
    def frame_rate(self) -> float:
        """Tokens per second and channel."""
        return self.header.frame_rate

    @property
    def bit_rate(self) -> float:
        """Payload bits per second of all channels."""
        return self.header.bit_rate

    def save(self, path: str | Path, robust: bool | None = None) -> None:
        """Write a .q2d file (atomically).

        Args:
            path: of the file.
            robust: whether each index gets a field of its own, so that a flipped bit damages one
                index and not the file; as the header says if None.

        Raises:
            UsageError: if the grids are too large for a robust payload.
            Q2D2Error: if it cannot be written.
        """
        header = self.header if robust is None else with_payload(self.header, "robust" if robust else "packed")
        with atomic_output(Path(path)) as file:
            writer = Writer(file, header)
            writer.write(self.indices.numpy())
            writer.close(self.num_samples)

    @classmethod
    def load(cls, path: str | Path) -> Tokens:
        """Read a .q2d file; needs no model.

        Raises:
            Q2D2Error: if the file cannot be read, is truncated or damaged (a robust one: if more
                than its pair indices is damaged).
        """
        try:
            with open(path, "rb") as file:
                reader = Reader(file)
                blocks = [reader.unpack(block) for block in reader.blocks()]
        except OSError as error:
            raise UsageError(f"cannot read {path}: {error.strerror}") from error
        except FormatError as error:
            raise FormatError(f"{path} {error}") from error
        assert reader.num_samples is not None
        empty = np.empty((reader.header.channels, 0, reader.header.quantizer.num_indices), np.int64)
        indices = torch.from_numpy(np.concatenate([empty, *blocks], axis=1))
        header = replace(reader.header, num_samples=reader.num_samples)
        return cls(indices, header, reader.damaged_blocks, reader.lost_blocks)


class Codec:
    """A codec model ready for use.

    Use `Codec.from_pretrained`; the constructor takes what that has loaded.

    Attributes:
        model: the network.
        name: model name.
        fingerprint: identifies the weights (8 bytes).
        device: where it computes.
    """

    def __init__(self, model: CodecModel, fingerprint: bytes, device: torch.device) -> None:
        self.model, self.fingerprint, self.device = model, fingerprint, device
        self.config = model.config
        self.name = model.config.name
        self.quantizer = model.config.quantizer.spec()

    @classmethod
    def from_pretrained(cls, name: str | Path = DEFAULT_MODEL, device: str = "auto") -> Codec:
        """Load a model.

        Args:
            name: name of a model that is here (`q2d2 models` lists them), a folder with
                `config.json` and `model.safetensors`, or a Hugging Face Hub id (`owner/name`).
            device: `auto` (CUDA when present, else the CPU), `cpu`, `cuda`, `cuda:1`, `mps`.

        Raises:
            UsageError: if there is no such model or device.
            Q2D2Error: if the checkpoint is damaged.
        """
        target = pick_device(device)
        checkpoint = checkpoints.find(str(name))
        return cls(checkpoints.load(checkpoint, target), checkpoint.fingerprint(), target)

    @property
    def sample_rate(self) -> int:
        """The model's own rate, Hz."""
        return self.config.sample_rate

    @property
    def frame_rate(self) -> float:
        """Tokens per second and channel."""
        return self.config.frame_rate

    @property
    def bit_rate(self) -> float:
        """Payload bits per second and channel."""
        return self.config.bit_rate

    def header(self, sample_rate: int, channels: int, num_samples: int | None) -> Header:
        """Header of a .q2d file for audio of this rate, channel count and length.

        Raises:
            UsageError: if one of them does not fit the format.
        """
        try:
            return Header(
                self.quantizer,
                self.config.hop,
                self.sample_rate,
                self.name,
                self.fingerprint,
                sample_rate,
                channels,
                num_samples,
                max(1, round(BLOCK_SECONDS * self.frame_rate)),
            )
        except ValueError as error:
            raise UsageError(str(error)) from error

    def encode(
        self,
        waveform: Tensor | np.ndarray,
        sample_rate: int,
        chunk_seconds: float | None = CHUNK_SECONDS,
        effort: int = 0,
    ) -> Tokens:
        """Encode a waveform.

        Args:
            waveform: `(samples,)` or `(channels, samples)`, floating point, full scale is +-1.
                Each channel is coded alone.
            sample_rate: its rate, Hz; any.
            chunk_seconds: audio per pass of the network; None for all at once. The tokens do not
                depend on it, unless they are searched.
            effort: rounds of a search for better tokens, through the decoder (`q2d2cli.search`);
                each takes several times as long as encoding without. 0 takes what the encoder gives.

        Raises:
            UsageError: if the effort is negative, or above 0 with a quantizer that has no grids.
            ValueError: if the waveform's shape or type is wrong.
            Q2D2Error: if it is empty or holds NaN or infinity, or the packages that a search needs are missing.
        """
        samples = torch.as_tensor(waveform).detach().cpu()
        if samples.ndim == 1:
            samples = samples.unsqueeze(0)
        if samples.ndim != 2 or not samples.is_floating_point():
            raise ValueError(
                f"waveform has shape {tuple(samples.shape)} and type {samples.dtype}: "
                "expected floating point, (samples,) or (channels, samples)"
            )
        if not samples.numel():
            raise Q2D2Error("the waveform is empty")
        if not samples.isfinite().all():
            raise Q2D2Error("the waveform holds NaN or infinite samples")
        channels, num_samples = samples.shape
        header = self.header(sample_rate, channels, num_samples)
        encoder = StreamEncoder(self, sample_rate, channels, chunk_seconds, effort)
        parts = [*encoder.push(samples.float().numpy()), *encoder.finish()]
        return Tokens(torch.from_numpy(np.concatenate(parts, axis=1)), header)

    def decode(self, tokens: Tokens, chunk_seconds: float | None = CHUNK_SECONDS) -> Tensor:
        """Decode to a waveform of the original's rate, channel count and exact length.

        Args:
            tokens: from `encode`, `Tokens.load` or `tokens`.
            chunk_seconds: audio per pass of the network; None for all at once.

        Returns:
            `(channels, samples)` float32 on the CPU.

        Raises:
            Q2D2Error: if the tokens belong to another model or other weights.
            ValueError: if an index is out of range.
        """
        decoder = StreamDecoder(self, tokens.header, chunk_seconds)
        parts = [*decoder.push(tokens.indices.numpy()), *decoder.finish(tokens.num_samples)]
        return torch.from_numpy(np.concatenate(parts, axis=1))

    def tokens(self, ids: Tensor, num_samples: int | None = None, sample_rate: int | None = None) -> Tokens:
        """Wrap token ids (from a language model, say) so that they can be decoded or saved.

        Args:
            ids: `(frames,)` or `(channels, frames)` integers in `[0, codebook_size)`.
            num_samples: samples per channel of the audio, frames beyond it are cut; all if None.
            sample_rate: rate to decode to, Hz; the model's if None.

        Raises:
            ValueError: if an id is out of range; names the value.
            UsageError: if `num_samples` is longer than the frames are.
        """
        rate = sample_rate or self.sample_rate
        ids = torch.as_tensor(ids).long().cpu()
        ids = ids.unsqueeze(0) if ids.ndim == 1 else ids
        length = ids.shape[1] * self.config.hop * rate // self.sample_rate
        if num_samples is not None and num_samples > length:
            raise UsageError(f"{ids.shape[1]} frames hold {length} samples, fewer than {num_samples}")
        header = self.header(rate, ids.shape[0], length if num_samples is None else num_samples)
        indices = tokens_to_indices(ids, self.quantizer)
        return Tokens(indices[:, : header.frames_for(header.num_samples or 0)], header)

    def check(self, header: Header) -> None:
        """Raise Q2D2Error unless `header` belongs to these weights."""
        if header.fingerprint != self.fingerprint:
            raise Q2D2Error(
                f"was encoded with model {header.model!r}, weights {header.fingerprint.hex()}, but the model here is "
                f"{self.name!r}, weights {self.fingerprint.hex()}: get those weights and name their folder with --model"
            )
        if (header.quantizer, header.hop, header.sample_rate) != (self.quantizer, self.config.hop, self.sample_rate):
            raise Q2D2Error(f"has a header that contradicts its model {self.name!r}")


class StreamEncoder:
    """Encodes audio that arrives in pieces, in bounded memory.

    Chunks overlap by what the encoder's layers see (`CodecModel.encoder_context`), so that the
    tokens are those of the whole signal encoded at once. An encoder that sees everything (LSTM)
    gets everything at once. A search overlaps by what it needs, and goes on from the tokens of the chunk before.

    Args:
        codec: the model.
        sample_rate: of the audio pushed, Hz.
        channels: of the audio pushed.
        chunk_seconds: audio per pass of the network; None for all at once.
        effort: as `Codec.encode` takes it.
        on_progress: called with the seconds encoded so far, after each chunk and each round of a search.
    """

    def __init__(
        self,
        codec: Codec,
        sample_rate: int,
        channels: int,
        chunk_seconds: float | None = CHUNK_SECONDS,
        effort: int = 0,
        on_progress: Callable[[float], None] | None = None,
    ) -> None:
        if effort < 0:
            raise UsageError(f"effort is {effort}: give 0 or more rounds of search")
        self._codec, self._rate, self._channels = codec, sample_rate, channels
        self._resampler = Resampler(sample_rate, codec.sample_rate, channels)
        self._hop = codec.config.hop
        self._search = Search(codec.model, effort, self._report) if effort else None
        self._context = codec.model.encoder_context if self._search is None else self._search.context
        self._chunk = chunk_frames(codec, chunk_seconds, self._context)
        self._buffer = np.empty((channels, 0), np.float32)
        self._known = torch.empty(channels, 0, codec.quantizer.num_indices, dtype=torch.int64)
        self._buffer_frame = self._next_frame = self._end = self._pushed = 0
        self._on_progress = on_progress

    def push(self, samples: np.ndarray) -> Iterator[np.ndarray]:
        """`(channels, samples)` float32 in; `(channels, frames, pairs)` int64 pieces out as they get ready."""
        self._pushed += samples.shape[1]
        self._append(self._resampler.push(samples))
        while self._chunk is not None:
            end = self._next_frame + self._chunk
            if self._buffer_end() < end + (self._context or 0):
                return
            yield self._run(end)

    def finish(self) -> Iterator[np.ndarray]:
        """The remaining frames; in all there are `Header.frames_for` of them."""
        self._append(self._resampler.push(np.empty((self._channels, 0), np.float32), last=True))
        frames = self._codec.header(self._rate, self._channels, self._pushed).frames_for(self._pushed)
        wanted = (frames - self._buffer_frame) * self._hop
        missing = max(0, wanted - self._buffer.shape[1])
        self._buffer = np.pad(self._buffer, ((0, 0), (0, missing)))[:, :wanted]
        while self._next_frame < frames:
            yield self._run(chunk_end(self._next_frame, frames, self._chunk))

    def network(self, audio: Tensor) -> Tensor:
        """What is wanted of every frame: `(channels, samples)` at the model's rate to `(channels, frames, pairs)`.

        A subclass may want something else than indices; its pieces then hold that.
        """
        if self._search is None:
            return self._codec.model.encode(audio)
        return self._search(audio, self._known.to(audio.device))

    def _report(self, share: float) -> None:
        """Say that this share of frames `next_frame ... end` is done."""
        if self._on_progress is not None:
            frames = self._next_frame + share * (self._end - self._next_frame)
            self._on_progress(frames * self._hop / self._codec.sample_rate)

    def _append(self, samples: np.ndarray) -> None:
        self._buffer = np.concatenate([self._buffer, samples], axis=1)

    def _buffer_end(self) -> int:
        return self._buffer_frame + self._buffer.shape[1] // self._hop

    def _run(self, end: int) -> np.ndarray:
        """Encode frames `next_frame ... end`."""
        context, self._end = self._context or 0, end
        stop = min(end + context, self._buffer_end())
        audio = torch.from_numpy(self._buffer[:, : (stop - self._buffer_frame) * self._hop])
        found = self.network(audio.to(self._codec.device)).cpu()[:, : end - self._buffer_frame]
        new = found[:, self._next_frame - self._buffer_frame :]
        self._report(1.0)
        self._next_frame = end
        keep = context_start(self._codec, end, context)
        if self._search is not None:
            self._known = found[:, keep - self._buffer_frame :]
        self._buffer = self._buffer[:, (keep - self._buffer_frame) * self._hop :]
        self._buffer_frame = keep
        return new.numpy()


class StreamDecoder:
    """Decodes pair indices that arrive in pieces, in bounded memory.

    Args:
        codec: the model.
        header: of the indices; decides the output's rate.
        chunk_seconds: audio per pass of the network; None for all at once.

    Raises:
        Q2D2Error: if `header` belongs to another model or other weights.
    """

    def __init__(self, codec: Codec, header: Header, chunk_seconds: float | None = CHUNK_SECONDS) -> None:
        codec.check(header)
        self._codec = codec
        self._resampler = Resampler(codec.sample_rate, header.original_rate, header.channels)
        self._channels = header.channels
        self._context = codec.model.decoder_context
        self._chunk = chunk_frames(codec, chunk_seconds, self._context)
        self._buffer = np.empty((header.channels, 0, codec.quantizer.num_indices), np.int64)
        self._buffer_frame = self._next_frame = self._emitted = 0

    def push(self, indices: np.ndarray) -> Iterator[np.ndarray]:
        """`(channels, frames, pairs)` int64 in; `(channels, samples)` float32 pieces out as they get ready.

        The last frames are always held back, so that `finish` can cut at the exact sample.
        """
        self._buffer = np.concatenate([self._buffer, indices], axis=1)
        while self._chunk is not None:
            end = self._next_frame + self._chunk
            if self._buffer_frame + self._buffer.shape[1] < end + max(self._context or 0, 2):
                return
            yield self._emit(self._resampler.push(self._run(end)))

    def finish(self, num_samples: int) -> Iterator[np.ndarray]:
        """The remaining audio, cut or filled with zeros to `num_samples` in all."""
        frames = self._buffer_frame + self._buffer.shape[1]
        pieces = []
        while self._next_frame < frames:
            end = chunk_end(self._next_frame, frames, self._chunk)
            pieces.append(self._resampler.push(self._run(end)))
        pieces.append(self._resampler.push(np.empty((self._channels, 0), np.float32), last=True))
        rest = np.concatenate(pieces, axis=1)
        wanted = num_samples - self._emitted
        yield self._emit(np.pad(rest, ((0, 0), (0, max(0, wanted - rest.shape[1]))))[:, :wanted])

    def _emit(self, samples: np.ndarray) -> np.ndarray:
        self._emitted += samples.shape[1]
        return samples

    def _run(self, end: int) -> np.ndarray:
        """Decode frames `next_frame ... end`."""
        context, hop = self._context or 0, self._codec.config.hop
        stop = min(end + context, self._buffer_frame + self._buffer.shape[1])
        indices = torch.from_numpy(self._buffer[:, : stop - self._buffer_frame])
        audio = self._codec.model.decode(indices.to(self._codec.device)).float().cpu().numpy()
        audio = audio[:, (self._next_frame - self._buffer_frame) * hop : (end - self._buffer_frame) * hop]
        self._next_frame = end
        keep = context_start(self._codec, end, context)
        self._buffer = self._buffer[:, keep - self._buffer_frame :]
        self._buffer_frame = keep
        return audio


def with_payload(header: Header, payload: Payload) -> Header:
    """`header` with another payload mode.

    Raises:
        UsageError: if the grids are too large for it.
    """
    try:
        return replace(header, payload=payload)
    except ValueError as error:
        raise UsageError(str(error)) from error


def chunk_frames(codec: Codec, seconds: float | None, context: int | None) -> int | None:
    """Frames per pass of the network; None for all at once."""
    if seconds is None or context is None:
        return None
    return max(1, round(seconds * codec.frame_rate))


def chunk_end(begin: int, frames: int, chunk: int | None) -> int:
    """Where the chunk that begins at `begin` ends, of `frames` in all."""
    # A short rest joins the last chunk: it would be mostly overlap.
    return begin + chunk if chunk is not None and frames - begin >= 2 * chunk else frames


def context_start(codec: Codec, frame: int, context: int) -> int:
    """First frame that `frame` sees, back to the beginning of an inner frame."""
    start = max(0, frame - context)
    return start - start % codec.model.alignment


def pick_device(name: str) -> torch.device:
    """A usable device; `auto` is CUDA when present, else the CPU.

    Raises:
        UsageError: if the name is unknown or the device is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"unknown device {name!r}: use auto, cpu, cuda, cuda:N or mps") from error
    if device.type == "cuda":
        there = torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()
    elif device.type == "mps":
        there = torch.backends.mps.is_available()
    else:
        there = device.type == "cpu"
    if not there:
        raise UsageError(f"device {name!r} is not available here: leave --device out, or use cpu")
    return device
