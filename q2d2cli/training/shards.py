"""Training data streamed from tar shards, for corpora that do not fit a disk."""

from __future__ import annotations

import io
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
import torch
import webdataset
from torch import Tensor
from webdataset.shardlists import expand_urls
from webdataset.tariterators import tar_file_expander, url_opener

from q2d2cli.audio import SNDFILE_SUFFIXES, Resampler, check_finite, is_foreign
from q2d2cli.errors import Q2D2Error, UsageError
from q2d2cli.training.corpus import Corpus


class Excerpt(NamedTuple):
    """A stretch of a member that becomes a crop."""

    name: str
    data: bytes
    """The whole member, still encoded."""
    start: int
    """In frames of the member, as `length`."""
    length: int


class ShardCorpus(Corpus):
    """Audio files in tar shards, read in passes: every file once in each, cut into crops, shuffled in a buffer.

    The order follows from the seed, the pass and the number of processes. Each process reads its share of the
    shards. A stream goes on exactly where it stood if shards, seed, buffer and number of processes are the same: it
    reads the current pass again up to there, without decoding.

    Args:
        patterns: paths or URLs of shards, with braces for ranges; what `webdataset` opens.
        sample_rate: of the crops, Hz.
        device: where crops go.
        seed: of the order.
        buffer: crops to draw from at random.
        processes: that share the shards.

    Raises:
        UsageError: if a shard on disk is not there, a pattern is wrong, or there are fewer shards than processes.
    """

    def __init__(
        self,
        patterns: Sequence[str],
        sample_rate: int,
        device: torch.device | str = "cpu",
        *,
        seed: int = 0,
        buffer: int = 1000,
        processes: int = 1,
    ) -> None:
        self.sample_rate, self.device, self.seed, self.buffer = sample_rate, device, seed, buffer
        try:
            self.shards = [url for pattern in patterns for url in expand_urls(pattern)]
        except (AssertionError, ValueError) as error:
            raise UsageError(f"cannot understand shards {', '.join(patterns)}: {error}") from error
        for url in self.shards:
            if ":" not in url and not Path(url).is_file():
                raise UsageError(f"shard {url} does not exist")
        if len(self.shards) < processes:
            raise UsageError(f"{len(self.shards)} shards for {processes} processes: each needs at least one")
        self.broken = {}
        self.position = (0, 0)
        self._stream: Iterator[np.ndarray] | None = None

    @property
    def summary(self) -> str:
        """As `Corpus.summary`."""
        return f"{len(self.shards)} shards of audio"

    def read(self, places: np.ndarray, length: int) -> Tensor:
        """As `Corpus.read`, but the stream decides where the crops are.

        Raises:
            Q2D2Error: if a whole pass holds no audio that can be read.
        """
        if self._stream is None:
            self._stream = self._crops(length)
        return torch.from_numpy(np.stack([next(self._stream) for _ in places])).to(self.device)

    def _crops(self, length: int) -> Iterator[np.ndarray]:
        while True:
            turn, taken = self.position or (0, 0)
            readable = taken > 0
            for number, piece in enumerate(self._pieces(turn, length)):
                if number < taken:
                    continue
                self.position = (turn, number + 1)
                if (crop := self._decode(piece, length)) is not None:
                    readable = True
                    yield crop
            if not readable:
                raise Q2D2Error(f"no audio could be read from {self.shards[0]} and the other shards: check data.train")
            self.position = (turn + 1, 0)

    def _pieces(self, turn: int, length: int) -> Iterator[Excerpt]:
        """The pieces of one pass, in its order; this process's share."""
        order = random.Random(f"{self.seed} {turn}")
        shards = order.sample(self.shards, len(self.shards))
        members = tar_file_expander(
            url_opener(self._named(webdataset.split_by_node(shards)), handler=self._failed),
            handler=self._failed,
            select_files=lambda name: Path(name).suffix.lower() in SNDFILE_SUFFIXES and not is_foreign(Path(name)),
            eof_value=None,
        )
        shuffle = webdataset.detshuffle(self.buffer, self.buffer, seed=self.seed, epoch=turn - 1)
        yield from shuffle.run(self._cut(members, length, order))

    def _named(self, shards: Iterable[str]) -> Iterator[dict[str, Any]]:
        for shard in shards:
            self._shard = shard
            yield {"url": shard}

    def _failed(self, error: Exception) -> bool:
        """What webdataset calls when a shard or a member cannot be read: go on."""
        self.broken.setdefault(self._shard, str(error))
        return True

    def _cut(self, members: Iterable[dict[str, Any]], length: int, order: random.Random) -> Iterator[Excerpt]:
        """Pieces side by side from a random start, so that every sample is as likely as any other."""
        for member in members:
            name = f"{member['__url__']}:{member['fname']}"
            try:
                info = soundfile.info(io.BytesIO(member["data"]))
            except (soundfile.LibsndfileError, RuntimeError) as error:
                self.broken.setdefault(name, str(error))
                continue
            wanted = int(np.ceil(length * info.samplerate / self.sample_rate)) + 1
            count = max(1, info.frames // wanted)
            first = order.randint(0, max(0, info.frames - count * wanted))
            for number in range(count):
                yield Excerpt(name, member["data"], first + number * wanted, wanted)

    def _decode(self, piece: Excerpt, length: int) -> np.ndarray | None:
        """`(length,)` float32, zeros beyond the end; None, and noted, if it cannot be decoded."""
        try:
            with soundfile.SoundFile(io.BytesIO(piece.data)) as file:
                file.seek(piece.start)
                samples = file.read(piece.length, dtype="float32", always_2d=True)
                rate = file.samplerate
                check_finite(samples, piece.name, piece.start, rate)
                if not len(samples):
                    raise Q2D2Error(f"{piece.name} is empty: it holds no samples")
        except (Q2D2Error, soundfile.LibsndfileError, RuntimeError) as error:
            self.broken.setdefault(piece.name, str(error))
            return None
        crop = np.zeros(length, np.float32)
        mono = Resampler(rate, self.sample_rate, 1).push(samples.mean(axis=1)[None], last=True)[0][:length]
        crop[: len(mono)] = mono
        return crop
