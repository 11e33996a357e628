"""One unit of a corpus to one shard of tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch

from q2d2cli.audio import AudioReader
from q2d2cli.codec import Codec
from q2d2cli.corpus.folder import Job, Record, record_files, shard_name
from q2d2cli.corpus.formats import TokenRow, open_format
from q2d2cli.corpus.reading import Loaded, blocks, load_ahead, on_disk
from q2d2cli.corpus.sources import CorpusClip, StoreError, Unit
from q2d2cli.corpus.vocabulary import Vocabulary
from q2d2cli.errors import Q2D2Error

GROUP_CLIPS = 256
GROUP_SECONDS = 600.0
"""How much is read before it is sorted by length."""
BATCH_SECONDS = 120.0
"""Audio of a batch, padding included."""
Progress = Callable[[int, float], None]
"""Called with the clips and the seconds that were done since the last call."""


def describe_output(codec: Codec, vocabulary: Vocabulary) -> dict[str, Any]:
    """What an output says of its ids and the codec that they are from."""
    return {
        **vocabulary.describe(),
        "model": codec.decoder,
        "fingerprint": codec.fingerprint.hex(),
        **({} if codec.decoder == codec.name else {"encoder": f"{codec.name} {codec.encoder_fingerprint.hex()}"}),
        "frame_rate": codec.frame_rate,
        "hop": codec.config.hop,
        "model_sample_rate": codec.sample_rate,
    }


@dataclass
class Encoder:
    """Encodes clips in batches of similar length, and keeps them in their order.

    Attributes:
        codec: the model.
        vocabulary: makes ids.
        progress: called after each batch.
        rows: of the clips so far, by number.
        rejected: source and reason of those that could not be read, by number.
    """

    codec: Codec
    vocabulary: Vocabulary
    progress: Progress
    rows: dict[int, TokenRow] = field(default_factory=dict)
    rejected: dict[int, dict[str, str]] = field(default_factory=dict)

    def run(self, clips: Sequence[CorpusClip] | Any) -> None:
        """Encode all clips of an iterable.

        Raises:
            StoreError: if a store cannot be reached.
        """
        group: list[tuple[int, Loaded]] = []
        seconds = 0.0
        for number, loaded in enumerate(load_ahead(iter(clips))):
            if loaded.reason is not None:
                self._reject(number, loaded.clip, loaded.reason)
            elif loaded.samples is None:
                self._encode_long(number, loaded.clip)
            else:
                group.append((number, loaded))
                seconds += len(loaded.samples) / loaded.rate
            if len(group) >= GROUP_CLIPS or seconds >= GROUP_SECONDS:
                self._encode_group(group)
                group, seconds = [], 0.0
        self._encode_group(group)

    def _reject(self, number: int, clip: CorpusClip, reason: str) -> None:
        self.rejected[number] = {"source": clip.source, "reason": reason}
        self.progress(1, 0.0)

    def _encode_group(self, group: list[tuple[int, Loaded]]) -> None:
        def length(item: tuple[int, Loaded]) -> int:
            return 0 if item[1].samples is None else len(item[1].samples)

        for rate, same in groupby(sorted(group, key=lambda item: (item[1].rate, -length(item))), lambda x: x[1].rate):
            batch: list[tuple[int, Loaded]] = []
            for item in same:
                if batch and (len(batch) + 1) * length(batch[0]) > BATCH_SECONDS * rate:
                    self._encode_batch(batch, rate)
                    batch = []
                batch.append(item)
            self._encode_batch(batch, rate)

    def _encode_batch(self, batch: list[tuple[int, Loaded]], rate: int) -> None:
        signals = [loaded.samples for _, loaded in batch if loaded.samples is not None]
        lengths = [len(signal) for signal in signals]
        padded = torch.zeros(len(signals), max(lengths))
        for row, signal in zip(padded, signals, strict=True):
            row[: len(signal)] = torch.from_numpy(signal)
        indices, frames = self.codec.encode_batch(padded, lengths, rate)
        for (number, loaded), found, count, samples in zip(batch, indices, frames.tolist(), lengths, strict=True):
            self._add(number, loaded.clip, found[:count].cpu().numpy(), samples, rate)
        self.progress(len(batch), sum(lengths) / rate)

    def _encode_long(self, number: int, clip: CorpusClip) -> None:
        try:
            indices, samples, rate = encode_long(self.codec, clip)
        except StoreError:
            raise
        except Q2D2Error as error:
            self._reject(number, clip, str(error))
            return
        self._add(number, clip, indices, samples, rate)
        self.progress(1, samples / rate)

    def _add(self, number: int, clip: CorpusClip, indices: np.ndarray, samples: int, rate: int) -> None:
        codes, known = self.vocabulary.to_ids(indices), (clip.speaker, clip.language, clip.text)
        self.rows[number] = TokenRow(clip.id, codes, len(indices), samples / rate, rate, *known, clip.source)


def encode_long(codec: Codec, clip: CorpusClip) -> tuple[np.ndarray, int, int]:
    """Encode a clip as it is read, in bounded memory.

    Returns:
        `(frames, pairs)` int64 indices, the number of samples and their rate, Hz.

    Raises:
        Q2D2Error: if it cannot be read.
    """
    with on_disk(clip) as path, AudioReader(path) as reader:
        encoder = codec.stream_encoder(reader.sample_rate, 1)
        pieces, samples = list[np.ndarray](), 0
        for block in blocks(clip, reader):
            samples += len(block)
            pieces += encoder.push(block[None])
        pieces += encoder.finish()
        return np.concatenate(pieces, axis=1)[0], samples, reader.sample_rate


def encode_unit(codec: Codec, job: Job, unit: Unit, number: int, folder: Path, progress: Progress) -> Record:
    """Make the shard of a unit.

    Args:
        codec: the model of the job.
        job: what is to be made.
        unit: the clips.
        number: of the unit in the plan.
        folder: the output.
        progress: called after each batch.

    Returns:
        What became of it; the shard is on the disk then.

    Raises:
        StoreError: if a store cannot be reached.
        Q2D2Error: if the shard cannot be written.
    """
    encoder = Encoder(codec, job.vocabulary, progress)
    encoder.run(unit.clips())
    rows = [encoder.rows[key] for key in sorted(encoder.rows)]
    files = {}
    if rows:
        written = open_format(job.format, folder, job.description).write(shard_name(number), rows)
        files = record_files(folder, written)
    return Record(
        number,
        files,
        len(rows),
        sum(row.n_frames for row in rows),
        sum(len(row.codes) for row in rows),
        sum(row.duration for row in rows),
        [encoder.rejected[key] for key in sorted(encoder.rejected)],
    )
