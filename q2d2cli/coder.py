"""`Coder`: a model that codes streams of arrays, whatever computes it. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Self

from q2d2cli import checkpoints
from q2d2cli.arrays import whole_number
from q2d2cli.checkpoints import DEFAULT_MODEL, Lender
from q2d2cli.container.coding import library
from q2d2cli.container.coding.context import ContextModel
from q2d2cli.container.header import Header, Payload, block_frames
from q2d2cli.errors import Q2D2Error, UsageError
from q2d2cli.latency import LIVE_BLOCK_SECONDS, Latency, latency, live_frames
from q2d2cli.passes import Network
from q2d2cli.runtimes import check_runtime, open_network
from q2d2cli.streaming import CHUNK_SECONDS, PASS_SECONDS, StreamDecoder, StreamEncoder


class Coder:
    """A codec model ready for streams of NumPy arrays; `Codec` is one with tensors.

    Use `from_pretrained`; the constructor takes what that has loaded.

    Attributes:
        network: the model, ready to compute.
        config: of the model.
        name: model name.
        quantizer: kind and levels.
        fingerprint: identifies the weights that decode, which files name (8 bytes).
        decoder: name of the model that those are from, which files have: its own, or a student's lender's.
        encoder_fingerprint: identifies the weights that encode; the same but for a student.
        decodes: fingerprints of other weights whose files it decodes, too.
        context: the context model for entropy coding; None if there is none for these weights.
    """

    def __init__(
        self,
        network: Network,
        fingerprint: bytes,
        context: ContextModel | None = None,
        lender: Lender | None = None,
        decodes: Collection[bytes] = (),
    ) -> None:
        self.decodes = frozenset(decodes)
        self.network, self.context = network, context
        self.config = network.config
        self.name = self.decoder = network.config.name
        self.fingerprint = self.encoder_fingerprint = fingerprint
        if lender is not None:
            self.decoder, self.fingerprint = lender.model, lender.fingerprint
        self.quantizer = network.config.quantizer.spec()

    @classmethod
    def from_pretrained(cls, name: str | Path = DEFAULT_MODEL, device: str = "auto", runtime: str = "torch") -> Self:
        """Load a model.

        Args:
            name: name of a model that is here (`q2d2 models` lists them), a folder with
                `config.json` and `model.safetensors`, or a Hugging Face Hub id: `owner/name`, or with a branch,
                tag or whole commit hash `owner/name@revision`. Without a network the Hub's cache serves.
            device: `auto` (CUDA when present, else the CPU), `cpu`, `cuda`, `cuda:1`, `mps`.
            runtime: `torch`, or `onnx`, which computes on the CPU by ONNX Runtime and needs no torch.

        Raises:
            UsageError: if there is no such model, device or runtime, or the model does not run there.
            Q2D2Error: if the checkpoint is damaged.
        """
        check_runtime(runtime, device)
        checkpoint = checkpoints.find(str(name))
        context = library.open_for(checkpoint)
        network = open_network(checkpoint, device, runtime)
        return cls(network, checkpoint.fingerprint(), context, checkpoint.lender, checkpoint.decodes.values())

    @classmethod
    def for_weights(cls, model: str, fingerprint: bytes | str, device: str = "auto", runtime: str = "torch") -> Self:
        """Load a model that decodes tokens of certain weights, those that a file or a corpus of tokens names.

        It is these weights if they are here, under whatever name, or else later ones that went on from them and decode
        their files.

        Args:
            model: its name.
            fingerprint: of the weights, 8 bytes or 16 hexadecimal digits.
            device: as `from_pretrained` takes it.
            runtime: the same.

        Raises:
            UsageError: if there is none, or `fingerprint` is none; as `from_pretrained`.
            Q2D2Error: if the checkpoint is damaged.
        """
        try:
            weights = bytes.fromhex(fingerprint) if isinstance(fingerprint, str) else fingerprint
        except ValueError as error:
            raise UsageError(f"{fingerprint!r} is no fingerprint: it has 16 hexadecimal digits") from error
        coder = cls.from_pretrained(checkpoints.find_weights(model, weights).folder, device, runtime)
        if not coder.understands(weights):
            raise UsageError(f"tokens are those of {coder.foreign(model, weights)}")
        return coder

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

    def header(
        self, sample_rate: float, channels: int, num_samples: int | None, payload: Payload | None = None
    ) -> Header:
        """Header of a .q2d file for audio of this rate, channel count and length.

        Args:
            sample_rate: Hz.
            channels: how many.
            num_samples: per channel; None if not known.
            payload: how the file holds the indices; entropy coded if possible if None.

        Raises:
            UsageError: if one of them is no whole number or does not fit the format; if the grids are too large for a
                robust payload, or there is no context model for a coded one.
        """
        try:
            header = Header(
                quantizer=self.quantizer,
                hop=self.config.hop,
                sample_rate=self.sample_rate,
                model=self.decoder,
                fingerprint=self.fingerprint,
                original_rate=whole_number(sample_rate, "sample rate"),
                channels=whole_number(channels, "number of channels"),
                num_samples=None if num_samples is None else whole_number(num_samples, "number of samples"),
                frames_per_block=1,
                payload="packed" if self.context is None else "coded",
                context=b"" if self.context is None else self.context.fingerprint,
            )
            header = with_blocks(header)
        except ValueError as error:
            raise UsageError(str(error)) from error
        return header if payload is None else with_payload(header, payload)

    def stream_encoder(
        self,
        sample_rate: float,
        channels: int = 1,
        *,
        num_samples: int | None = None,
        payload: Payload | None = None,
        block_seconds: float | None = None,
        chunk_seconds: float | None = CHUNK_SECONDS,
        effort: int = 0,
        rate_weight: float = 0.0,
        on_progress: Callable[[float], None] | None = None,
    ) -> StreamEncoder:
        """An encoder that takes audio in pieces and gives indices in pieces.

        Args:
            sample_rate: of the audio, Hz.
            channels: of the audio.
            num_samples: per channel of the whole, if known; for the encoder's `header`, as is the next.
            payload: how a file or stream holds the indices; entropy coded if possible if None.
            block_seconds: for live streams, instead of `chunk_seconds`: about how much audio each piece and each
                block of the stream holds, 5 at most; the encoder gives it as soon as it can be known.
            chunk_seconds: audio that is handled at once; None for all.
            effort: as `encode` takes it.
            rate_weight: as `encode` takes it; for coded payloads.
            on_progress: called with the seconds encoded so far, after each chunk and each round of a search.

        Raises:
            UsageError: as `encode`; if the model's grids are too large for a robust payload, or it has no
                context model for a coded one; if
                `block_seconds` is out of range, or given with an effort above 0 or for a model that sees the
                whole recording at once.
        """
        header = self.header(sample_rate, channels, num_samples, payload)
        if block_seconds is not None:
            if not 0 < block_seconds <= PASS_SECONDS:
                raise UsageError(f"live blocks of {block_seconds:g} s: give more than 0 and at most {PASS_SECONDS:g}")
            if effort:
                raise UsageError("a live stream cannot wait for a search: leave the effort at 0")
            if self.config.encoder_context is None:
                raise UsageError(f"model {self.name!r} looks at a whole recording at once: it has no live streams")
            frames = live_frames(self.config, block_seconds)
            header, chunk_seconds = replace(header, frames_per_block=frames), frames / self.frame_rate
        return StreamEncoder(
            self.network,
            header,
            chunk_seconds=chunk_seconds,
            effort=effort,
            rate_weight=rate_weight,
            on_progress=on_progress,
        )

    def stream_decoder(self, header: Header, *, chunk_seconds: float | None = 0.0, start: int = 0) -> StreamDecoder:
        """A decoder that takes indices in pieces and gives audio in pieces.

        Args:
            header: of the indices: a `StreamEncoder`'s, or one read from a file or stream.
            chunk_seconds: audio that is handled at once; 0 for what can be known at each push, None for all.
            start: first sample wanted, at the original's rate. The decoder then takes frames from its
                `first_frame` on, and gives what it would have given from there on.

        Raises:
            Q2D2Error: if `header` belongs to another model or other weights.
        """
        self.check(header)
        return StreamDecoder(self.network, header, chunk_seconds=chunk_seconds, start=start)

    def latency(self, sample_rate: int, block_seconds: float = LIVE_BLOCK_SECONDS) -> Latency | None:
        """How much its live streams lag at least; None if the model looks at a whole recording at once.

        Args:
            sample_rate: of the audio, Hz.
            block_seconds: as `stream_encoder` takes it.
        """
        return latency(self.config, sample_rate, block_seconds)

    def understands(self, fingerprint: bytes) -> bool:
        """Whether it decodes tokens of the weights with this fingerprint: its own, or others in `decodes`."""
        return fingerprint == self.fingerprint or fingerprint in self.decodes

    def foreign(self, model: str, weights: bytes) -> str:
        """Why it does not decode tokens of that model, and what to do about it."""
        how = checkpoints.whereabouts(weights)
        return (
            f"model {model!r}, weights {weights.hex()}, but the model here is {self.name!r}, weights "
            f"{self.fingerprint.hex()}: get those weights "
            + (f"({how})" if how else "and name their folder as the model")
        )

    def check(self, header: Header) -> None:
        """Raise Q2D2Error unless `header` belongs to these weights, or to others whose files they decode."""
        if not self.understands(header.fingerprint):
            raise Q2D2Error(f"was encoded with {self.foreign(header.model, header.fingerprint)}")
        if (header.quantizer, header.hop, header.sample_rate) != (self.quantizer, self.config.hop, self.sample_rate):
            raise Q2D2Error(f"has a header that contradicts its model {self.name!r}")


def sample_range(header: Header, length: int | None, start: float, duration: float | None) -> tuple[int, int | None]:
    """First sample of a part of a file, and the one behind its last; None for the end of a file of unknown length.

    Raises:
        UsageError: if `start` or `duration` is negative, or `start` is behind the end.
    """
    for name, seconds in (("start", start), ("duration", duration or 0.0)):
        if not 0 <= seconds < 1e12:
            raise UsageError(f"{name} {seconds} s is out of range: give 0 or more seconds")
    begin = round(start * header.original_rate)
    if length is not None and begin >= length and begin:
        raise UsageError(f"there is nothing at {start} s: the audio is {length / header.original_rate:.3f} s long")
    if duration is None:
        return begin, length
    end = begin + round(duration * header.original_rate)
    return begin, end if length is None else min(end, length)


def with_blocks(header: Header) -> Header:
    """`header` with blocks as long as suits its payload mode and the length of its audio."""
    frames = None if header.num_samples is None else header.frames_for(header.num_samples)
    size = block_frames(header.quantizer, header.frame_rate, header.channels, header.payload, frames)
    return replace(header, frames_per_block=size)


def with_payload(header: Header, payload: Payload) -> Header:
    """`header` with another payload mode, and blocks that suit it.

    Raises:
        UsageError: if the grids are too large for it, or there is no context model for it.
    """
    if header.payload == payload:
        return header
    model = library.find_for(header.fingerprint) if payload == "coded" else None
    if payload == "coded" and model is None:
        raise UsageError(
            f"no context model for the weights {header.fingerprint.hex()} of model {header.model!r} here: "
            "make one with q2d2 context, or choose payload packed"
        )
    try:
        return with_blocks(replace(header, payload=payload, context=b"" if model is None else model.fingerprint))
    except ValueError as error:
        raise UsageError(str(error)) from error
