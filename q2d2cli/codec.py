"""The public API: `Codec` turns waveforms into `Tokens` and back."""

from __future__ import annotations

import io
import warnings
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from q2d2cli.arrays import as_integers, as_waveform, whole_number
from q2d2cli.checkpoints import Lender
from q2d2cli.coder import Coder, sample_range, with_payload
from q2d2cli.container.coding.context import ContextModel
from q2d2cli.container.header import FormatError, Header, Payload
from q2d2cli.container.mending import mended
from q2d2cli.container.stream import PACKED_TOGETHER, Reader, Writer
from q2d2cli.container.tags import Tags
from q2d2cli.errors import Q2D2Error, UsageError
from q2d2cli.files import atomic_output
from q2d2cli.models.model import CodecModel
from q2d2cli.passes import Network, side_by_side
from q2d2cli.quantizers.base import indices_to_tokens, tokens_to_indices
from q2d2cli.runtimes.pytorch import TorchNetwork
from q2d2cli.streaming import CHUNK_SECONDS, StreamEncoder


@dataclass(frozen=True, eq=False, repr=False)
class Tokens:
    """Encoded audio: pair indices, and what is needed to decode and store them.

    Attributes:
        indices: `(channels, frames, pairs)` int64 on the CPU; entry `j` of a frame is a point of grid `j`.
        header: model, rates, sample count; `header.num_samples` is never None.
        damaged_blocks: blocks of the robust file they come from whose checksum did not match.
        lost_blocks: blocks that were missing there; their frames hold the points nearest the origin.
        tags: comments (title, artist, ...) and pictures that `save` and `load` keep.

    Raises:
        ValueError: if the indices are no integers, or their shape does not fit the header.

    Examples:
        >>> import io
        >>> codec = Codec.from_pretrained("speech-3k", device="cpu")
        >>> tokens = codec.tokens([214135, 700916, 761928])  # of a language model, say
        >>> tokens.indices.shape
        torch.Size([1, 3, 3])
        >>> file = io.BytesIO()
        >>> tokens.save(file)
        >>> _ = file.seek(0)
        >>> Tokens.load(file).tokens
        tensor([[214135, 700916, 761928]])
    """

    indices: Tensor
    header: Header
    damaged_blocks: int = 0
    lost_blocks: int = 0
    tags: Tags = field(default_factory=Tags)

    def __post_init__(self) -> None:
        indices = torch.from_numpy(as_integers(self.indices, "indices"))
        channels, pairs = self.header.channels, self.header.quantizer.num_indices
        if indices.ndim != 3 or (indices.shape[0], indices.shape[2]) != (channels, pairs):
            raise ValueError(f"indices have shape {tuple(indices.shape)}: expected ({channels}, frames, {pairs})")
        object.__setattr__(self, "indices", indices)

    def __repr__(self) -> str:
        channels, frames, pairs = self.indices.shape
        return (
            f"Tokens({self.header.model}, {channels} channels, {frames} frames of {pairs} indices, "
            f"{self.duration:.3f} s at {self.sample_rate} Hz)"
        )

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
        """Payload bits per second of all channels, before entropy coding."""
        return self.header.bit_rate

    def save(self, file: str | Path | BinaryIO, payload: Payload | None = None, *, overwrite: bool = False) -> None:
        """Write a .q2d file (whole or not at all).

        Args:
            file: its path, or a file open for writing in binary.
            payload: `coded` (entropy coded, the smallest; needs the model's context model), `packed`, or
                `robust` (each index in a field of its own, so that a flipped bit damages one index and
                not the file); as the header says if None.
            overwrite: whether to replace a file that is there.

        Raises:
            UsageError: if the file exists and is not to be overwritten, the grids are too large
                for a robust payload, or there is no context model for a coded one.
            Q2D2Error: if it cannot be written.
        """
        header = self.header if payload is None else with_payload(self.header, payload)
        with ExitStack() as stack:
            if isinstance(file, str | Path):
                if Path(file).exists() and not overwrite:
                    raise UsageError(f"{file} already exists: pass overwrite=True to replace it")
                file = stack.enter_context(atomic_output(Path(file)))
            check_binary(file)
            writer = Writer(file, header, PACKED_TOGETHER, tags=self.tags)
            writer.write(self.indices.numpy())
            writer.close(self.num_samples)

    @classmethod
    def load(cls, file: str | Path | BinaryIO, start: float = 0.0, duration: float | None = None) -> Tokens:
        """Read a .q2d file, or a part of it; needs no model, but an entropy-coded one needs
        its context model.

        Args:
            file: its path, or a file open for reading in binary.
            start: where to begin, seconds; the tokens begin with the frame that this time is in. Of a
                file that can be sought in, only the blocks of the part are read.
            duration: how much audio, seconds; up to the end if None.

        What is damaged of the file's tags is left out with a warning.

        Raises:
            UsageError: if `start` or `duration` is negative, or `start` is behind the end.
            Q2D2Error: if the file cannot be read, is truncated or damaged (a robust one: if more
                than its pair indices is damaged), or its context model is not here.
        """
        name = str(file) if isinstance(file, str | Path) else getattr(file, "name", "the file")
        try:
            with ExitStack() as stack:
                opened = stack.enter_context(open(file, "rb")) if isinstance(file, str | Path) else file
                check_binary(opened)
                part = (lambda _: (start, duration)) if start or duration is not None else None
                reader = Reader(mended(opened, part))
                blocks, num_samples = read_part(reader, start, duration)
        except OSError as error:
            raise UsageError(f"cannot read {name}: {error.strerror}") from error
        except FormatError as error:
            raise FormatError(f"{name} {error}") from error
        empty = np.empty((reader.header.channels, 0, reader.header.quantizer.num_indices), np.int64)
        header = replace(reader.header, num_samples=num_samples)
        indices = torch.from_numpy(np.concatenate([empty, *blocks], axis=1)[:, : header.frames_for(num_samples)])
        for fault in reader.faults:
            if fault.kind == "tags":
                warnings.warn(f"{name}: {fault}", stacklevel=2)
        return cls(indices, header, reader.damaged_blocks, reader.lost_blocks, reader.tags)


class Codec(Coder):
    """A codec model ready for use, with tensors.

    Use `Codec.from_pretrained`; the constructor takes what that has loaded.

    Args:
        model: the network, a PyTorch module or one that a runtime has opened.
        fingerprint: identifies the weights (8 bytes).
        context: the context model for entropy coding, if there is one for these weights.
        lender: the model whose decoder a student has.
        decodes: fingerprints of other weights whose files it decodes, too.

    Examples:
        >>> codec = Codec.from_pretrained("speech-3k", device="cpu")
        >>> stereo = torch.zeros(2, 22_050)
        >>> tokens = codec.encode(stereo, sample_rate=22_050)
        >>> tokens.tokens.shape, tokens.indices.shape
        (torch.Size([2, 167]), torch.Size([2, 167, 3]))
        >>> codec.decode(tokens).shape
        torch.Size([2, 22050])
        >>> codec.quantizer.codebook_size, round(codec.frame_rate, 1), round(codec.bit_rate)
        (1047625, 166.7, 3333)
    """

    def __init__(
        self,
        model: CodecModel | Network,
        fingerprint: bytes,
        context: ContextModel | None = None,
        lender: Lender | None = None,
        decodes: Collection[bytes] = (),
    ) -> None:
        network = TorchNetwork(model) if isinstance(model, CodecModel) else model
        super().__init__(network, fingerprint, context, lender, decodes)

    @property
    def model(self) -> CodecModel:
        """The network as a PyTorch module.

        Raises:
            UsageError: if another runtime computes it.
        """
        if not isinstance(self.network, TorchNetwork):
            raise UsageError(f"model {self.name!r} was opened without PyTorch: take runtime torch for this")
        return self.network.model

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.network.device if isinstance(self.network, TorchNetwork) else torch.device("cpu")

    def encode(
        self,
        waveform: Tensor | np.ndarray,
        sample_rate: float,
        chunk_seconds: float | None = CHUNK_SECONDS,
        effort: int = 0,
        rate_weight: float = 0.0,
    ) -> Tokens:
        """Encode a waveform.

        Args:
            waveform: `(samples,)` or `(channels, samples)`, floating point (full scale is +-1), int16 or
                int32 at their scale. Each channel is coded alone. `soundfile.read` gives the transpose.
            sample_rate: its rate, Hz; any whole number.
            chunk_seconds: audio that is handled at once; None for all. The tokens do not
                depend on it, unless they are searched.
            effort: rounds of a search for better tokens, through the decoder (`q2d2cli.search`);
                each takes several times as long as encoding without. 0 takes what the encoder gives.
            rate_weight: what a bit per frame weighs in that search (the lambda of rate-distortion optimization): the
                more, the fewer bits the tokens take when they are entropy coded, and the less they gain otherwise.

        Raises:
            UsageError: if the effort is negative, or above 0 with a quantizer that has no grids; if the
                rate is no whole number or out of range; if the rate weight is negative, or above 0 without effort or
                for a model without context model.
            ValueError: if the waveform's shape or type is wrong, or it has more than 255 channels or more
                channels than samples.
            Q2D2Error: if it is empty or holds NaN or infinity, or the packages that a search needs are missing.
        """
        samples = as_waveform(waveform)
        header = self.header(sample_rate, *samples.shape)
        encoder = StreamEncoder(
            self.network, header, chunk_seconds=chunk_seconds, effort=effort, rate_weight=rate_weight
        )
        parts = [*encoder.push(samples), *encoder.finish()]
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

        return join_batch(
            side_by_side(one, len(counts), self.network.threads), (self.quantizer.num_indices,), -1, waveforms.device
        )

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

        return join_batch(side_by_side(one, len(counts), self.network.threads), (), 0, indices.device)

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
        decoder = self.stream_decoder(tokens.header, chunk_seconds=chunk_seconds)
        parts = [*decoder.push(tokens.indices.numpy()), *decoder.finish(tokens.num_samples)]
        return torch.from_numpy(np.concatenate(parts, axis=1))

    def tokens(
        self, ids: Tensor | np.ndarray, num_samples: int | None = None, sample_rate: float | None = None
    ) -> Tokens:
        """Wrap token ids (from a language model, say) so that they can be decoded or saved.

        Args:
            ids: `(frames,)` or `(channels, frames)` integers in `[0, codebook_size)`.
            num_samples: samples per channel of the audio, frames beyond it are cut; all if None.
            sample_rate: rate to decode to, Hz; the model's if None.

        Raises:
            ValueError: if the ids are no integers, have another shape, or one is out of range; names the value.
            UsageError: if `num_samples` is longer than the frames are.
        """
        ids = torch.from_numpy(as_integers(ids, "token ids"))
        if ids.ndim not in (1, 2):
            raise ValueError(f"token ids have shape {tuple(ids.shape)}: expected (frames,) or (channels, frames)")
        ids = ids.unsqueeze(0) if ids.ndim == 1 else ids
        rate = whole_number(self.sample_rate if sample_rate is None else sample_rate, "sample rate")
        length = ids.shape[1] * self.config.hop * rate // self.sample_rate
        header = self.header(rate, ids.shape[0], length if num_samples is None else num_samples)
        if header.num_samples is not None and header.num_samples > length:
            raise UsageError(f"{ids.shape[1]} frames hold {length} samples, fewer than {num_samples}")
        indices = tokens_to_indices(ids, self.quantizer)
        return Tokens(indices[:, : header.frames_for(header.num_samples or 0)], header)


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


def check_binary(file: object) -> None:
    """Raise ValueError if a file was opened for text."""
    if isinstance(file, io.TextIOBase):
        raise ValueError('the file is open for text: open it in binary, "rb" or "wb"')


def read_part(reader: Reader, start: float, duration: float | None) -> tuple[list[np.ndarray], int]:
    """Pair indices of a part of a file, in pieces `(channels, frames, pairs)`, and its samples per channel."""
    header = reader.header
    begin, end = sample_range(header, reader.length(), start, duration)
    first = begin * header.sample_rate // (header.original_rate * header.hop)
    # The whole file is checked up to its end block.
    last = None if duration is None or end is None else header.frames_for(end)
    found = list(reader.unpacked(reader.part(first, last)))
    if end is None:
        _, end = sample_range(header, reader.num_samples, start, duration)
    assert end is not None
    pieces = [indices for _, indices in found if indices is not None]
    if pieces:
        pieces[0] = pieces[0][:, max(0, first - found[0][0].first) :]
    # What is before `start` in its frame belongs to the part.
    return pieces, end - -(-first * header.hop * header.original_rate // header.sample_rate)
