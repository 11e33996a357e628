"""The public API: `Codec` turns waveforms into `Tokens` and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
from q2d2cli.passes import run_alone, side_by_side
from q2d2cli.quantizers.base import indices_to_tokens, tokens_to_indices
from q2d2cli.search import Search

CHUNK_SECONDS = 10.0
PASS_SECONDS = 5.0
"""About how much audio goes through a network at once. Cutting at the same frames whatever the chunks makes the results
the same bit by bit."""
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
            chunk_seconds: audio that is handled at once; None for all. The tokens do not
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

    def encode_batch(
        self, waveforms: Tensor, lengths: Tensor | Sequence[int] | None = None, sample_rate: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Encode several clips of different lengths.

        Each clip gets the tokens that `encode` gives it alone, bit by bit: whatever the others are, their number and
        order, the padding, and the number of threads. Clips are spread over the processor's threads, where `encode`
        gives one thread to every five seconds of its clip, so that batches of short clips are faster than a loop.

        Args:
            waveforms: `(batch, samples)` floating point, full scale is +-1; anything after a clip's end.
            lengths: `(batch,)` samples of each clip, from 1 to `samples`; all of them if None.
            sample_rate: of the clips, Hz; the model's if None.

        Returns:
            `(batch, frames, pairs)` int64 indices on the device of `waveforms`, -1 after a clip's end, and
            `(batch,)` int64 frames of each clip, there too.

        Raises:
            ValueError: if a shape, type or length does not fit; names the clip.
            Q2D2Error: if a clip holds NaN or infinity; names the clip.
        """
        if waveforms.ndim != 2 or not waveforms.is_floating_point():
            raise ValueError(
                f"waveforms have shape {tuple(waveforms.shape)} and type {waveforms.dtype}: "
                "expected floating point, (batch, samples)"
            )
        counts = batch_lengths(lengths, waveforms.shape, "samples", least=1)
        audio, rate = waveforms.detach().float().cpu(), sample_rate or self.sample_rate

        def one(number: int) -> Tensor:
            try:
                return self.encode(audio[number, : counts[number]], rate).indices[0]
            except Q2D2Error as error:
                raise type(error)(f"clip {number} of the batch: {error}") from error

        return join_batch(side_by_side(one, len(counts)), (self.quantizer.num_indices,), -1, waveforms.device)

    def decode_batch(
        self,
        indices: Tensor,
        frames: Tensor | Sequence[int] | None = None,
        lengths: Tensor | Sequence[int] | None = None,
        sample_rate: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Decode several clips of different lengths, each exactly as `decode` does it alone.

        Args:
            indices: `(batch, frames, pairs)` int64; anything after a clip's end.
            frames: `(batch,)` frames of each clip; all of them if None.
            lengths: `(batch,)` samples of each clip at `sample_rate`; all that the frames hold if None.
            sample_rate: of the result, Hz; the model's if None.

        Returns:
            `(batch, samples)` float32 on the device of `indices`, zeros after a clip's end, and `(batch,)` int64
            samples of each clip, there too.

        Raises:
            ValueError: if a shape, a length or an index does not fit; names the clip.
        """
        if indices.ndim != 3 or indices.is_floating_point():
            raise ValueError(f"indices have shape {tuple(indices.shape)}: expected integers, (batch, frames, pairs)")
        counts = batch_lengths(frames, indices.shape, "frames")
        rate, codes = sample_rate or self.sample_rate, indices.long().cpu()
        held = [count * self.config.hop * rate // self.sample_rate for count in counts]
        samples = held if lengths is None else batch_lengths(lengths, (len(counts), max(held, default=0)), "samples")

        def one(number: int) -> Tensor:
            if samples[number] > held[number]:
                raise ValueError(
                    f"clip {number} of the batch: {counts[number]} frames hold {held[number]} samples, "
                    f"fewer than {samples[number]}"
                )
            header = self.header(rate, 1, samples[number])
            used = codes[number : number + 1, : min(counts[number], header.frames_for(samples[number]))]
            try:
                return self.decode(Tokens(used, header))[0]
            except ValueError as error:
                raise ValueError(f"clip {number} of the batch: {error}") from error

        return join_batch(side_by_side(one, len(counts)), (), 0, indices.device)

    def decode(self, tokens: Tokens, chunk_seconds: float | None = CHUNK_SECONDS) -> Tensor:
        """Decode to a waveform of the original's rate, channel count and exact length.

        Args:
            tokens: from `encode`, `Tokens.load` or `tokens`.
            chunk_seconds: audio that is handled at once; None for all.

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
        chunk_seconds: audio that is handled at once; None for all.
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
        self._most = 1 if self._search is not None else chunks_at_once(codec, self._chunk)
        self._buffer = np.empty((channels, 0), np.float32)
        self._known = torch.empty(channels, 0, codec.quantizer.num_indices, dtype=torch.int64)
        self._buffer_frame = self._next_frame = self._end = self._pushed = 0
        self._on_progress = on_progress

    def push(self, samples: np.ndarray) -> Iterator[np.ndarray]:
        """`(channels, samples)` float32 in; `(channels, frames, pairs)` int64 pieces out as they get ready."""
        self._pushed += samples.shape[1]
        self._append(self._resampler.push(samples))
        while self._chunk is not None:
            ready = (self._buffer_end() - (self._context or 0) - self._next_frame) // self._chunk
            if ready < 1:
                return
            yield self._run(self._next_frame + min(ready, self._most) * self._chunk)

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
        keep = context_start(self._codec, end, context)
        if self._search is None:
            new = self._run_passes(end, context)
        else:
            stop = min(end + context, self._buffer_end())
            found = self.network(self._audio(self._buffer_frame, stop)).cpu()[:, : end - self._buffer_frame]
            new = found[:, self._next_frame - self._buffer_frame :]
            self._known = found[:, keep - self._buffer_frame :]
        self._report(1.0)
        self._next_frame = end
        self._buffer = self._buffer[:, (keep - self._buffer_frame) * self._hop :]
        self._buffer_frame = keep
        return new.numpy()

    def _run_passes(self, end: int, context: int) -> Tensor:
        """Encode frames `next_frame ... end`, each channel alone."""
        spans = pass_spans(self._codec, self._next_frame, end, self._context)
        starts = [context_start(self._codec, begin, context) for begin, _ in spans]
        audio = [
            self._audio(start, min(stop + context, self._buffer_end()), channel)
            for (_, stop), start in zip(spans, starts, strict=True)
            for channel in range(self._channels)
        ]
        found = run_alone(self.network, audio)
        pieces = []
        for number, ((begin, stop), start) in enumerate(zip(spans, starts, strict=True)):
            rows = found[number * self._channels : (number + 1) * self._channels]
            pieces.append(torch.cat(rows)[:, begin - start : stop - start])
        return torch.cat(pieces, dim=1).cpu()

    def _audio(self, begin: int, end: int, channel: int | None = None) -> Tensor:
        """Samples of frames `begin ... end` on the device, `(channels, samples)`; of one channel if one is named."""
        rows = slice(None) if channel is None else slice(channel, channel + 1)
        first = self._buffer_frame
        return torch.from_numpy(self._buffer[rows, (begin - first) * self._hop : (end - first) * self._hop].copy()).to(
            self._codec.device
        )


class StreamDecoder:
    """Decodes pair indices that arrive in pieces, in bounded memory.

    Args:
        codec: the model.
        header: of the indices; decides the output's rate.
        chunk_seconds: audio that is handled at once; None for all.

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
        self._most = chunks_at_once(codec, self._chunk)
        self._buffer = np.empty((header.channels, 0, codec.quantizer.num_indices), np.int64)
        self._buffer_frame = self._next_frame = self._emitted = 0

    def push(self, indices: np.ndarray) -> Iterator[np.ndarray]:
        """`(channels, frames, pairs)` int64 in; `(channels, samples)` float32 pieces out as they get ready.

        The last frames are always held back, so that `finish` can cut at the exact sample.
        """
        self._buffer = np.concatenate([self._buffer, indices], axis=1)
        while self._chunk is not None:
            frames = self._buffer_frame + self._buffer.shape[1]
            ready = (frames - max(self._context or 0, 2) - self._next_frame) // self._chunk
            if ready < 1:
                return
            end = self._next_frame + min(ready, self._most) * self._chunk
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
        context, first, hop = self._context or 0, self._buffer_frame, self._codec.config.hop
        spans = pass_spans(self._codec, self._next_frame, end, self._context)
        starts = [context_start(self._codec, begin, context) for begin, _ in spans]
        indices = [
            torch.from_numpy(self._buffer[channel : channel + 1, start - first : stop + context - first].copy())
            for (_, stop), start in zip(spans, starts, strict=True)
            for channel in range(self._channels)
        ]
        found = run_alone(self._codec.model.decode, [part.to(self._codec.device) for part in indices])
        pieces = []
        for number, ((begin, stop), start) in enumerate(zip(spans, starts, strict=True)):
            rows = found[number * self._channels : (number + 1) * self._channels]
            pieces.append(torch.cat(rows)[:, (begin - start) * hop : (stop - start) * hop])
        audio = torch.cat(pieces, dim=1).float().cpu().numpy()
        self._next_frame = end
        keep = context_start(self._codec, end, context)
        self._buffer = self._buffer[:, keep - self._buffer_frame :]
        self._buffer_frame = keep
        return audio


def batch_lengths(lengths: Tensor | Sequence[int] | None, shape: Sequence[int], unit: str, least: int = 0) -> list[int]:
    """Checked lengths of the clips of a batch whose tensor has this shape.

    Raises:
        ValueError: if there are not as many as clips, or one is below `least` or beyond the tensor's end.
    """
    batch, longest = shape[:2]
    if lengths is None:
        counts = [longest] * batch
    else:
        values = torch.as_tensor(lengths)
        if values.shape != (batch,) or values.is_floating_point():
            raise ValueError(f"lengths have shape {tuple(values.shape)}: expected {batch} integers, one for each clip")
        counts = values.tolist()
    for number, count in enumerate(counts):
        if not least <= count <= longest:
            raise ValueError(f"clip {number} of the batch has length {count}: expected {least} to {longest} {unit}")
    return counts


def join_batch(clips: list[Tensor], rest: tuple[int, ...], fill: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Clips of shape `(length, *rest)` as one tensor `(batch, longest, *rest)` filled up, and their lengths."""
    lengths = torch.tensor([len(clip) for clip in clips], dtype=torch.int64)
    if not clips:
        return torch.empty(0, 0, *rest, device=device), lengths.to(device)
    joined = clips[0].new_full((len(clips), int(lengths.max()), *rest), fill)
    for row, clip in zip(joined, clips, strict=True):
        row[: len(clip)] = clip
    return joined.to(device), lengths.to(device)


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
    frames, size = max(1, round(seconds * codec.frame_rate)), pass_frames(codec)
    return frames if frames < size else round(frames / size) * size


def chunks_at_once(codec: Codec, chunk: int | None) -> int:
    """How many chunks that are there already are worth taking together: whole passes that keep all threads busy."""
    size = pass_frames(codec)
    return 1 if chunk is None or chunk < size else max(1, torch.get_num_threads() * size // chunk)


def pass_frames(codec: Codec) -> int:
    """Frames that go through a network at once, whole inner frames of them."""
    return max(1, round(PASS_SECONDS * codec.frame_rate / codec.model.alignment)) * codec.model.alignment


def pass_spans(codec: Codec, begin: int, end: int, context: int | None) -> list[tuple[int, int]]:
    """Where each pass over frames `begin ... end` begins and ends; one if the network must see everything."""
    size = end - begin if context is None else pass_frames(codec)
    return [(start, min(start + size, end)) for start in range(begin, end, max(1, size))]


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
