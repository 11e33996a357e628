"""Encoding and decoding of audio that comes in pieces: as much is kept as the network's layers see.

>>> encoder = codec.stream_encoder(16_000, block_seconds=0.2)
>>> decoder = codec.stream_decoder(encoder.header)
>>> for samples in microphone:  # (samples,), any number of them
...     for indices in encoder.push(samples):  # (channels, frames, pairs)
...         for audio in decoder.push(indices):  # (channels, samples)
...             play(audio)
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from q2d2cli.arrays import as_integers, as_waveform
from q2d2cli.audio import Resampler, SeekableResampler
from q2d2cli.container.header import Header
from q2d2cli.container.payload import coder_for
from q2d2cli.errors import UsageError
from q2d2cli.passes import Network, Rate, Results

if TYPE_CHECKING:
    from torch import Tensor

CHUNK_SECONDS = 10.0
PASS_SECONDS = 5.0
"""About how much audio goes through a network at once. Cutting at the same frames whatever the chunks makes the results
the same bit by bit."""


class StreamEncoder:
    """Encodes audio that arrives in pieces, in bounded memory; made by `Codec.stream_encoder`.

    Chunks overlap by what the encoder's layers see (`ModelConfig.encoder_context`), so that the
    tokens are those of the whole signal encoded at once. An encoder that sees everything (LSTM)
    gets everything at once. A search overlaps by what it needs, and goes on from the tokens of the chunk before.

    Args:
        network: the model.
        header: of the file or stream to make; has the audio's rate and number of channels.
        chunk_seconds: audio that is handled at once; None for all.
        effort: as `Codec.encode` takes it, and `rate_weight`.
        on_progress: called with the seconds encoded so far, after each chunk and each round of a search.

    Attributes:
        header: as given.
    """

    def __init__(
        self,
        network: Network,
        header: Header,
        *,
        chunk_seconds: float | None = CHUNK_SECONDS,
        effort: int = 0,
        rate_weight: float = 0.0,
        on_progress: Callable[[float], None] | None = None,
    ) -> None:
        check_search(header, effort, rate_weight)
        self.header = header
        config = network.config
        self._resampler = Resampler(header.original_rate, header.sample_rate, header.channels)
        rate = Rate(rate_weight, coder_for(header).model) if rate_weight else None
        self._search = network.search(effort, self._report, rate) if effort else None
        context = config.encoder_context if self._search is None else self._search.context
        nothing = np.empty((header.channels, 0), np.float32)
        searched = self._search is not None
        fill = searched or not config.encoder.takes_parts
        self._window = Window(nothing, network, chunk_seconds, context, unit=header.hop, whole=searched, fill=fill)
        self._passes = Passes(network.encode, chunk_seconds)
        self._known = np.empty((header.channels, 0, header.quantizer.num_indices), np.int64)
        self._begin = self._end = self._pushed = 0
        self._on_progress = on_progress

    def push(self, samples: Tensor | np.ndarray) -> list[np.ndarray]:
        """Take the next samples and give what they complete.

        Args:
            samples: `(channels, samples)`, or `(samples,)` of one channel; as `Codec.encode` takes them. Any number.

        Returns:
            `(channels, frames, pairs)` int64 pair indices, one piece for each chunk; often none.

        Raises:
            ValueError: if the shape or type is wrong.
            Q2D2Error: if they hold NaN or infinity.
        """
        samples = as_waveform(samples, piece=True)
        if len(samples) != self.header.channels:
            raise ValueError(f"{len(samples)} channels were pushed: expected {self.header.channels}")
        self._pushed += samples.shape[1]
        self._window.append(self._resampler.push(samples))
        return self._run(self._window.ready())

    def finish(self) -> list[np.ndarray]:
        """The remaining frames; in all there are `Header.frames_for` of them."""
        self._window.append(self._resampler.push(np.empty((self.header.channels, 0), np.float32), last=True))
        return self._run(self._window.rest(self.header.frames_for(self._pushed)), last=True)

    def _report(self, share: float) -> None:
        """Say that this share of the frames of this pass is done."""
        if self._on_progress is not None:
            frames = self._begin + share * (self._end - self._begin)
            self._on_progress(frames / self.header.frame_rate)

    def _run(self, parts: Iterator[Part], last: bool = False) -> list[np.ndarray]:
        """What gets ready of these parts and those before, or all of them."""
        found = self._passes.run(parts, last) if self._search is None else self._run_search(parts)
        pieces = []
        for part, piece in found:
            self._begin, self._end = part.begin, part.end
            self._report(1.0)
            pieces.append(piece)
        return pieces

    def _run_search(self, parts: Iterator[Part]) -> Iterator[tuple[Part, np.ndarray]]:
        assert self._search is not None
        for part in parts:
            self._begin, self._end = part.begin, part.end
            found = self._search.on_arrays(part.values, self._known)[:, : part.end - part.start]
            self._known = found[:, part.keep - part.start :]
            yield part, found[:, part.begin - part.start :]


def check_search(header: Header, effort: int, rate_weight: float) -> None:
    """Raise UsageError unless a search can be made for a file with such a header, and saves what it is to save."""
    if effort < 0:
        raise UsageError(f"effort is {effort}: give 0 or more rounds of search")
    if not 0 <= rate_weight < math.inf:
        raise UsageError(f"the rate weight (lambda) is {rate_weight}: give 0 or more, 1 say")
    if rate_weight and not effort:
        raise UsageError("the rate weight (lambda) weighs bits in a search: give an effort above 0, too")
    if rate_weight and header.payload != "coded":
        raise UsageError(
            f"the rate weight (lambda) saves nothing in a {header.payload} payload: leave it out, or "
            "use entropy coding (a model without context model gets one with q2d2 context)"
        )


class StreamDecoder:
    """Decodes pair indices that arrive in pieces, in bounded memory; made by `Codec.stream_decoder`.

    Args:
        network: the model.
        header: of the indices; decides the output's rate.
        chunk_seconds: audio that is handled at once; 0 for what can be known at each push, None for all.
        start: first sample wanted, at the original's rate.

    Attributes:
        header: as given.
        start: as given.
        first_frame: the first frame to push: what `start` depends on.
    """

    def __init__(self, network: Network, header: Header, *, chunk_seconds: float | None = 0.0, start: int = 0) -> None:
        self.header = header
        self._resampler = SeekableResampler(header.sample_rate, header.original_rate, header.channels, start)
        nothing = np.empty((header.channels, 0, header.quantizer.num_indices), np.int64)
        first = self._resampler.first // header.hop
        self._window = Window(nothing, network, chunk_seconds, network.config.decoder_context, first=first)
        self._passes = Passes(network.decode, chunk_seconds, header.hop)
        self.first_frame = self._window.start
        self._skip = self._resampler.first - self._window.next * header.hop
        self.start = self._given = start

    def push(self, indices: Tensor | np.ndarray) -> list[np.ndarray]:
        """Take the next frames and give the audio that they complete.

        The last frames are always held back, so that `finish` can cut at the exact sample.

        Args:
            indices: `(channels, frames, pairs)` integers, any number of frames.

        Returns:
            `(channels, samples)` float32 at the original's rate, one piece for each chunk; often none.

        Raises:
            ValueError: if the shape or type is wrong, or an index is out of range.
        """
        checked = as_integers(indices, "indices")
        channels, pairs = self.header.channels, self.header.quantizer.num_indices
        if checked.ndim != 3 or checked.shape[::2] != (channels, pairs):
            raise ValueError(f"indices have shape {checked.shape}: expected ({channels}, frames, {pairs})")
        self._window.append(checked)
        return [self._give(piece) for piece in self._run(self._window.ready(ahead=2))]

    def finish(self, num_samples: int) -> list[np.ndarray]:
        """The remaining audio, cut or filled with zeros to `num_samples` in all, those before `start` counted."""
        pieces = self._run(self._window.rest(self._window.frames), last=True)
        pieces.append(self._resampler.push(np.empty((self.header.channels, 0), np.float32), last=True))
        rest = np.concatenate(pieces, axis=1)
        wanted = num_samples - self._given
        return [self._give(np.pad(rest, ((0, 0), (0, max(0, wanted - rest.shape[1]))))[:, :wanted])]

    def _give(self, samples: np.ndarray) -> np.ndarray:
        self._given += samples.shape[1]
        return samples

    def _run(self, parts: Iterator[Part], last: bool = False) -> list[np.ndarray]:
        """Audio at the original's rate of what gets ready of these parts and those before, or of all of them."""
        pieces = []
        for _, decoded in self._passes.run(parts, last):
            audio = decoded.astype(np.float32, copy=False)
            skipped = min(self._skip, audio.shape[1])
            self._skip -= skipped
            pieces.append(self._resampler.push(audio[:, skipped:]))
        return pieces


class Span(NamedTuple):
    """The frames of one pass: the network sees those from `start` to `stop`, and gives those from `begin` to `end`."""

    start: int
    begin: int
    end: int
    stop: int


class Part(NamedTuple):
    """What can be run now: frames from `begin` to `end`."""

    values: np.ndarray
    """Everything that was kept, from frame `start` on, as far as it is seen."""
    start: int
    begin: int
    end: int
    keep: int
    """The first frame that the next part sees."""
    unit: int
    """Entries of `values` in a frame."""
    spans: list[Span]


class Window:
    """What has been pushed and is still needed, and the parts of it that can be run.

    Args:
        nothing: what is collected, 0 long in axis 1.
        network: the model that it is for.
        chunk_seconds: audio that a part holds; 0 for what is there, None for all at once.
        context: frames that are seen on either side of one; None for everything.
        unit: entries of axis 1 in a frame.
        whole: whether a part is one pass, whatever its length.
        first: a frame that is wanted, and none before it; the window begins as long before as that takes.
        fill: whether the last frame is filled with zeros; if not, one entry of it is enough.
    """

    def __init__(
        self,
        nothing: np.ndarray,
        network: Network,
        chunk_seconds: float | None,
        context: int | None,
        *,
        unit: int = 1,
        whole: bool = False,
        first: int = 0,
        fill: bool = True,
    ) -> None:
        config = network.config
        self._values, self._unit, self._alignment, self._fill = nothing, unit, config.alignment, fill
        self._total: int | None = None
        self._context = context or 0
        rate = config.frame_rate
        size = max(1, round(PASS_SECONDS * rate / config.alignment)) * config.alignment
        self._pass = None if context is None or whole else size
        self._chunk: int | None = None
        if chunk_seconds is not None and context is not None:
            frames = max(1, round(chunk_seconds * rate))
            self._chunk = frames if frames < size else round(frames / size) * size
        # Chunks that are there already are taken together if that keeps all threads busy.
        self._most: int | None = 1
        if chunk_seconds == 0:
            self._most = None
        elif self._chunk is not None and self._chunk >= size and not whole:
            self._most = max(1, network.threads * size // self._chunk)
        # Passes are cut at the same frames wherever the window begins.
        self._next = 0 if self._pass is None else first // self._pass * self._pass
        self._start = self._seen_from(self._next)

    @property
    def start(self) -> int:
        """The first frame that is kept, or to be pushed."""
        return self._start

    @property
    def next(self) -> int:
        """The first frame that the next part gives."""
        return self._next

    @property
    def frames(self) -> int:
        """Whole frames that were pushed in all; with the last one once the end is known."""
        return self._start + self._values.shape[1] // self._unit if self._total is None else self._total

    def append(self, values: np.ndarray) -> None:
        """Take more."""
        self._values = np.concatenate([self._values, values], axis=1)

    def ready(self, ahead: int = 0) -> Iterator[Part]:
        """The parts that what was pushed is enough for: `ahead` frames must follow at least."""
        while self._chunk is not None:
            chunks = (self.frames - max(self._context, ahead) - self._next) // self._chunk
            if chunks < 1:
                return
            yield self._part(self._next + min(chunks, self._most or chunks) * self._chunk)

    def rest(self, frames: int) -> Iterator[Part]:
        """The parts up to the end, which is after so many frames in all."""
        wanted = (frames - self._start) * self._unit
        least = wanted if self._fill else wanted - self._unit + 1
        padding = [(0, 0)] * self._values.ndim
        padding[1] = (0, max(0, least - self._values.shape[1]))
        self._values = np.pad(self._values, padding)[:, :wanted]
        self._total = frames
        while self._next < frames:
            # A short rest joins the last chunk: it would be mostly overlap.
            last = self._chunk is None or self._most is None or frames - self._next < 2 * self._chunk
            yield self._part(frames if last else self._next + (self._chunk or 0))

    def _part(self, end: int) -> Part:
        start, begin, keep = self._start, self._next, self._seen_from(end)
        values = self._values[:, : (min(end + self._context, self.frames) - start) * self._unit]
        firsts = range(begin, end, self._pass or end - begin)
        spans = []
        for first, last in zip(firsts, [*firsts[1:], end], strict=True):
            stop = min(last + self._context, self.frames)
            spans.append(Span(self._seen_from(first), first, last, stop))
        self._values = self._values[:, (keep - start) * self._unit :]
        self._start, self._next = keep, end
        return Part(values, start, begin, end, keep, self._unit, spans)

    def _seen_from(self, frame: int) -> int:
        """First frame that `frame` sees, back to the beginning of an inner frame."""
        first = max(0, frame - self._context)
        return first - first % self._alignment


class Passes:
    """Parts of a signal on their way through a network, pass by pass and each channel alone.

    While the passes of one part are running, the caller goes on: reads, resamples and writes. Where parts are shorter
    than two passes somebody waits for them, and they are given at once.

    Args:
        begin: begins passes from `(1, seen * unit, ...)` to `(1, seen * hop, ...)`.
        chunk_seconds: audio that a part holds; None for all.
        hop: entries of the result in a frame.
    """

    def __init__(
        self, begin: Callable[[Sequence[np.ndarray]], Results], chunk_seconds: float | None, hop: int = 1
    ) -> None:
        self._start, self._hop = begin, hop
        self._most = 0 if chunk_seconds is not None and chunk_seconds < 2 * PASS_SECONDS else 1
        self._running: deque[tuple[Part, Results]] = deque()

    def run(self, parts: Iterator[Part], last: bool = False) -> Iterator[tuple[Part, np.ndarray]]:
        """Begin the passes of these parts and give, in order, what is done: all of it if these are the last.

        Yields:
            A part, and its `(channels, frames * hop, ...)`.
        """
        for part in parts:
            self._running.append((part, self._start(inputs(part))))
            if len(self._running) > self._most:
                yield self._next()
        while last and self._running:
            yield self._next()

    def _next(self) -> tuple[Part, np.ndarray]:
        part, wait = self._running.popleft()
        found, channels, pieces = wait(), len(part.values), []
        for number, span in enumerate(part.spans):
            rows = np.concatenate(found[number * channels : (number + 1) * channels])
            pieces.append(rows[:, (span.begin - span.start) * self._hop : (span.end - span.start) * self._hop])
        return part, np.concatenate(pieces, axis=1)


def inputs(part: Part) -> list[np.ndarray]:
    """What the network sees in each pass of a part: span by span, each channel alone."""
    found = []
    for span in part.spans:
        seen = part.values[:, (span.start - part.start) * part.unit : (span.stop - part.start) * part.unit]
        found += [channel[None].copy() for channel in seen]
    return found
