"""Audio file to .q2d file and back, in bounded memory; what the commands `encode` and `decode` do."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from q2d2cli.audio import AudioReader, RawFormat, open_sink, output_format, tagged_at_end
from q2d2cli.coder import Coder, sample_range
from q2d2cli.concealment import Concealer
from q2d2cli.container.header import FormatError, Header, Payload
from q2d2cli.container.mending import Mended, mended
from q2d2cli.container.payload import coder_for
from q2d2cli.container.stream import PACKED_TOGETHER, Fault, Reader, Writer
from q2d2cli.container.tags import TagEdits, Tags
from q2d2cli.errors import Q2D2Error, UsageError, report
from q2d2cli.files import PIPE, atomic_output, is_direct, open_binary, regular_file
from q2d2cli.signals import Stop
from q2d2cli.streaming import CHUNK_SECONDS, PASS_SECONDS, StreamDecoder

LIVE_PIECE_SECONDS = 0.02
"""How much audio of a live recording is waited for at a time."""

Progress = Callable[[float, float | None, float], None]
"""Called with the seconds done, the seconds in all (None if not known), and the bits per second of what there is of the
.q2d file (0 as long as there is nothing)."""


@dataclass(frozen=True)
class Summary:
    """What became of one file."""

    input: str
    output: str
    model: str
    duration: float
    """Seconds of audio."""
    channels: int
    sample_rate: int
    frames: int
    """Frames (tokens) per channel."""
    q2d_bytes: int
    """Size of the .q2d file."""
    payload_bytes: int
    """Packed pair indices among them."""
    bit_rate: float
    """Bits per second of the whole .q2d file but for its tags, all channels."""
    payload_bit_rate: float
    """Bits per second of the payload, all channels."""
    real_time_factor: float
    """Time taken over duration."""
    tag_bytes: int = 0
    """Blocks with tags in the .q2d file."""
    damaged_blocks: int = 0
    """Blocks that were decoded although their checksum did not match."""
    lost_blocks: int = 0
    """Blocks that were missing and filled in."""
    mended_bytes: int = 0
    """Bytes that did not arrive and were found by the file's parity."""
    lost_seconds: float = 0.0
    """Seconds that were lost: filled in, or cut off at the end."""
    faults: tuple[Fault, ...] = ()
    """What was wrong with the .q2d file that was decoded all the same."""
    stopped_by: int = 0
    """The signal that ended a recording (what was heard is in the file), 0 if none did."""
    warnings: tuple[str, ...] = ()
    """What was wrong with audio that was encoded all the same, and why tags were left out."""


def encode_file(
    codec: Coder,
    source: Path,
    target: Path,
    progress: Progress | None = None,
    payload: Payload | None = None,
    effort: int = 0,
    raw: RawFormat | None = None,
    *,
    live: float | None = None,
    parity: float | None = None,
    verify: bool = False,
    rate_weight: float = 0.0,
    tags: TagEdits | None = None,
) -> Summary:
    """Encode an audio file (`-`: standard input) to a .q2d file (`-`: standard output).

    Args:
        codec: the model.
        source: the audio file.
        target: the .q2d file.
        progress: called now and then.
        payload: the payload mode; None for coded where the model has a context model, else packed.
        effort: as `Codec.encode` takes it.
        raw: the format of audio without header.
        live: seconds of audio in a block; each is written as soon as it can be known. None for files.
        parity: share of the file that may be lost in one stretch and be mended; None for no parity.
        verify: whether to read what was written and compare tokens; `target` is a regular file then.
        rate_weight: as `Codec.encode` takes it.
        tags: what is to become of the audio file's tags; they are kept if None.

    Raises:
        UsageError: if there is no such file, the target's folder cannot be written to, the tags are too large, the
            model's grids are too large for a robust payload, or it has no context model for a coded one.
        Q2D2Error: if it is not audio, is empty or holds NaN, or what was written does not hold what was encoded;
            nothing is left at `target` then.
        KeyboardInterrupt, SystemExit: if a signal asks for an end. From a pipe (a recording, say) what
            was heard until then is encoded and written instead.
    """
    started = time.monotonic()
    samples = 0
    with (
        open_binary(source) as opened,
        recording(source) as stop,
        AudioReader(source, raw, opened) as audio,
        atomic_output(target) as file,
    ):
        total = audio.declared / audio.sample_rate if audio.declared is not None else None

        def encoded(seconds: float) -> None:
            if progress:
                written = writer.frames / writer.header.frame_rate
                untagged = writer.bytes_written - writer.tag_bytes
                progress(seconds, total, 8 * untagged / written if written else 0.0)

        encoder = codec.stream_encoder(
            audio.sample_rate,
            audio.channels,
            num_samples=audio.num_samples,
            payload=payload,
            block_seconds=live,
            effort=effort,
            rate_weight=rate_weight,
            on_progress=encoded,
        )
        # Whoever reads along, or records, wants each block as soon as it is there.
        ahead = live is None and regular_file(source, 0) is not None and file.seekable()
        together = PACKED_TOGETHER if ahead else 1
        writer = Writer(file, encoder.header, together, parity=parity, tags=edited_tags(audio, tags or TagEdits()))
        digest = hashlib.sha256()

        def put(indices: np.ndarray) -> None:
            writer.write(indices)
            if verify:
                add_tokens(digest, indices)

        file.flush()
        for block in audio.blocks() if live is None else audio.blocks(LIVE_PIECE_SECONDS):
            samples += block.shape[1]
            for indices in encoder.push(block):
                put(indices)
                if live is not None:
                    file.flush()
        for indices in encoder.finish():
            put(indices)
        if audio.num_samples not in (None, samples) and not file.seekable():
            raise Q2D2Error(f"{audio.name} holds {samples} samples but declares {audio.num_samples}")
        writer.close(samples)
        if verify:
            check_written(file, target, digest.digest(), samples)
    counts = (samples, writer.frames, writer.bytes_written, writer.payload_bytes, writer.tag_bytes)
    summary = make_summary(source, target, writer.header, *counts, time.monotonic() - started)
    return replace(summary, stopped_by=stop.signal, warnings=tuple(audio.warnings))


def edited_tags(audio: AudioReader, edits: TagEdits) -> Tags:
    """The tags that go with a recording.

    Raises:
        UsageError: if they are too large.
    """
    found = audio.tags() if edits.keep_comments or edits.keep_pictures else Tags()
    try:
        return edits.apply(found)
    except ValueError as error:
        raise UsageError(f"{audio.name}: {error}") from error


def add_tokens(digest: hashlib._Hash, indices: np.ndarray) -> None:
    """Add `(channels, frames, pairs)` indices to a checksum that does not depend on the pieces they come in."""
    digest.update(indices.transpose(1, 0, 2).astype("<i8").tobytes())


def check_written(file: BinaryIO, target: Path, expected: bytes, samples: int) -> None:
    """Raise Q2D2Error unless a file that was just written holds tokens of this checksum and so many samples."""
    file.flush()
    file.seek(0)
    digest, fault = hashlib.sha256(), ""
    try:
        reader = Reader(file)
        for block in reader.blocks():
            add_tokens(digest, reader.unpack(block))
        if reader.faults or digest.digest() != expected or reader.num_samples != samples:
            fault = "holds other tokens than were encoded"
    except FormatError as error:
        fault = str(error)
    if fault:
        raise Q2D2Error(f"{target}, read again, {fault}: it is removed; check the disk and memory")


@contextmanager
def recording(source: Path) -> Iterator[Stop]:
    """Signals end a pipe and nothing else, so that what it gave can be finished; a file they interrupt."""
    stop = Stop()
    if regular_file(source, 0) is not None:
        yield stop
        return
    with stop:
        try:
            yield stop
        except Q2D2Error as error:
            if not stop.signal:
                raise
            report(error)  # that there was no audio yet, say
            raise SystemExit(128 + stop.signal) from error


def decode_file(
    codec_for: Callable[[Header], Coder],
    source: Path,
    target: Path,
    progress: Progress | None = None,
    raw: str | None = None,
    start: float = 0.0,
    duration: float | None = None,
    conceal: bool = False,
    *,
    gain: float = 0.0,
    rate: int | None = None,
) -> Summary:
    """Decode a .q2d file (`-`: standard input) to an audio file (`-`: WAV on standard output).

    Args:
        codec_for: gives the codec for the model that the header names.
        source: the .q2d file.
        target: its suffix decides the format.
        progress: called now and then.
        raw: sample format (`s16le`, `f32le`) of output without header.
        start: where in the audio to begin, seconds; of a file only the blocks that are needed are read.
        duration: how much of it, seconds; all if None.
        conceal: whether to decode what there is of a damaged file, its gaps filled in.
        gain: dB; what gets beyond full scale is clipped.
        rate: of the audio, Hz; the original's if None.

    Raises:
        UsageError: if there is no such file, model or output format, or the audio ends before `start`.
        Q2D2Error: if the file is damaged (a robust one: if more than its pair indices is) and that is not
            to be concealed, or its weights are not here; nothing is left at `target` then.
    """
    started = time.monotonic()
    name = "standard input" if source == PIPE else str(source)
    warnings: list[str] = []
    with ExitStack() as stack:
        try:
            opened = stack.enter_context(open_binary(source))
            arrived = mended(opened, (lambda _: (start, duration)) if start or duration is not None else None)
            reader = Reader(arrived, conceal)
            header = at_rate(reader.header, rate)
            begin, end = sample_range(header, converted(reader.length(), reader.header, header), start, duration)
            codec = codec_for(header)
            if header.payload == "coded":
                coder_for(header)  # without its context model there is nothing to conceal
            live = is_live(source, header)
            try:
                decoder = codec.stream_decoder(header, chunk_seconds=0 if live else CHUNK_SECONDS, start=begin)
            except Q2D2Error as error:
                raise Q2D2Error(f"{name} {error}") from error
            file = stack.enter_context(atomic_output(target))
            known = None if end is None or conceal else end - begin
            if raw is None and not is_direct(target):
                form = output_format(target) if target.suffix else "WAV"
                stack.enter_context(tagged_at_end(file, form, lambda: reader.tags, warnings))
            sink = stack.enter_context(open_sink(file, target, header.original_rate, header.channels, known, raw))
            if live:
                file.flush()  # the header: a player opens the sound card
            position, factor = begin, np.float32(10 ** (gain / 20))
            for piece in decoded(reader, decoder):
                wanted = piece if end is None else piece[:, : end - position]
                position += wanted.shape[1]
                sink.write(wanted * factor if gain else wanted)
                if live:
                    file.flush()
                if progress:
                    total = None if end is None else (end - begin) / header.original_rate
                    progress((position - begin) / header.original_rate, total, reader.rates()[0])
                if position == end:
                    break
            if conceal and reader.nothing_left and not start and duration is None:
                raise FormatError("is damaged all over: none of its blocks can be read, and there is nothing to decode")
        except FormatError as error:
            raise FormatError(f"{name} {error}{'' if conceal else what_is_left(source)}") from error
    counts = (position - begin, reader.frames, reader.bytes_read, reader.payload_bytes, reader.tag_bytes)
    summary = make_summary(source, target, header, *counts, time.monotonic() - started)
    whole, payload = reader.rates()
    return replace(
        summary,
        bit_rate=whole,
        payload_bit_rate=payload,
        damaged_blocks=reader.damaged_blocks,
        lost_blocks=reader.lost_blocks,
        mended_bytes=arrived.mender.mended if isinstance(arrived, Mended) else 0,
        lost_seconds=reader.lost_seconds if conceal else 0.0,
        faults=tuple(reader.faults),
        warnings=tuple(f"{name}: {warning}" for warning in warnings),
    )


def decoded(reader: Reader, decoder: StreamDecoder) -> Iterator[np.ndarray]:
    """Audio in pieces, from the decoder's start on, at the rate of the decoder's header."""
    first, at = decoder.first_frame, decoder.start
    concealer = Concealer(decoder.header, first)

    def sound(pieces: list[np.ndarray]) -> Iterator[np.ndarray]:
        nonlocal at
        for piece in pieces:
            yield concealer.fade(piece, at) if concealer.gaps else piece
            at += piece.shape[1]

    for block, indices in reader.unpacked(reader.part(first, None)):
        skipped = max(0, first - block.first)
        filled = concealer.lose(block.frames - skipped) if indices is None else concealer.push(indices[:, skipped:])
        for part in filled:
            yield from sound(decoder.push(part))
    for part in concealer.finish():
        yield from sound(decoder.push(part))
    samples = converted(reader.num_samples, reader.header, decoder.header)
    assert samples is not None
    yield from sound(decoder.finish(samples))


def at_rate(header: Header, rate: int | None) -> Header:
    """`header` of the same audio at another sample rate, Hz; None leaves it as it is."""
    if rate is None:
        return header
    return replace(header, original_rate=rate, num_samples=None)


def converted(samples: int | None, before: Header, after: Header) -> int | None:
    """Number of samples at the original's rate in `before` as one at that in `after`, rounded."""
    if samples is None:
        return None
    return (2 * samples * after.original_rate + before.original_rate) // (2 * before.original_rate)


def what_is_left(source: Path) -> str:
    """What to say about the rest of a damaged file; nothing if its header is damaged or it is a pipe."""
    if regular_file(source, 0) is None:
        return ""
    try:
        with Reader(mended(open_binary(source)), conceal=True) as reader:
            for _ in reader.blocks():
                pass
    except FormatError:
        return ""
    if reader.nothing_left:
        return "; none of its blocks can be read"
    lost = f"{reader.lost_seconds:.2f} s would be lost" if reader.lost_seconds else "no sound would be lost"
    return f"; {lost}: --conceal decodes the rest"


def is_live(source: Path, header: Header) -> bool:
    """Whether a .q2d file may still be in the making: a pipe, with blocks not longer than a pass of the network."""
    return regular_file(source, 0) is None and header.frames_per_block < PASS_SECONDS * header.frame_rate + 1


def make_summary(
    source: Path,
    target: Path,
    header: Header,
    samples: int,
    frames: int,
    q2d_bytes: int,
    payload: int,
    tag_bytes: int,
    seconds: float,
) -> Summary:
    """Rates and real-time factor from counts; they are 0 for a file without samples."""
    duration = samples / header.original_rate
    per_second = 1 / duration if duration else 0.0
    return Summary(
        str(source),
        str(target),
        header.model,
        duration,
        header.channels,
        header.original_rate,
        frames,
        q2d_bytes,
        payload,
        8 * (q2d_bytes - tag_bytes) * per_second,
        8 * payload * per_second,
        seconds * per_second,
        tag_bytes,
    )
