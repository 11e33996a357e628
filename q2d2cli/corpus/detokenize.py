"""Shards of tokens back to audio files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from q2d2cli.audio import WavWriter
from q2d2cli.checkpoints import find_weights
from q2d2cli.codec import Codec
from q2d2cli.corpus.folder import TokenFolder, shard_name
from q2d2cli.corpus.formats import TokenRow
from q2d2cli.errors import Q2D2Error, UsageError
from q2d2cli.files import atomic_output, make_folder

BATCH_SECONDS = 120.0


def decode_corpus(
    path: Path, out: Path, model: str | None, device: str, progress: Callable[[int], None]
) -> tuple[int, list[str]]:
    """Decode every clip of an output of `q2d2 tokenize` that is not there yet.

    Args:
        path: the output.
        out: gets `ID.wav`, with the recording's sample rate and number of samples.
        model: where the model is, if not where it was.
        device: as `Codec.from_pretrained` takes it.
        progress: called with the number of clips done.

    Returns:
        How many were decoded, and a line for each that could not be.

    Raises:
        UsageError: if it is no such output, or the model's weights are others.
        Q2D2Error: if a file cannot be written.
    """
    folder = TokenFolder(path)
    job = folder.job
    codec = Codec.from_pretrained(model or find_weights(job.model, job.weights).folder, device)
    if not codec.understands(job.weights):
        raise UsageError(f"{path} was made with {codec.foreign(job.model, job.weights)}")
    make_folder(out)
    problems: list[str] = []
    decoded = 0
    batch: list[tuple[TokenRow, np.ndarray]] = []
    for row in rows(folder, problems):
        if (out / f"{row.id}.wav").exists():
            continue
        try:
            indices = folder.job.vocabulary.to_indices(row.codes)
            check_length(codec, row, len(indices))
        except ValueError as error:
            problems.append(f"{path}: clip {row.id}: {error}")
            continue
        if batch and (row.sample_rate != batch[0][0].sample_rate or span([*batch, (row, indices)]) > BATCH_SECONDS):
            decode_batch(codec, out, batch, problems)
            decoded += len(batch)
            progress(decoded)
            batch = []
        batch.append((row, indices))
    if batch:
        decode_batch(codec, out, batch, problems)
    return decoded + len(batch), problems


def rows(folder: TokenFolder, problems: list[str]) -> Iterator[TokenRow]:
    """All clips; a shard that cannot be read becomes a problem."""
    for record in sorted(folder.records.values(), key=lambda record: record.unit):
        if record.files:
            try:
                yield from folder.format.read(shard_name(record.unit))
            except Q2D2Error as error:
                problems.append(str(error))


def check_length(codec: Codec, row: TokenRow, frames: int) -> None:
    """Raise ValueError unless the frames of a clip hold its duration."""
    seconds = frames / codec.frame_rate
    if not 0 < row.duration <= seconds + 1e-9:
        raise ValueError(f"{frames} frames hold {seconds:.3f} s, but its duration is {row.duration:.3f} s")


def span(batch: list[tuple[TokenRow, np.ndarray]]) -> float:
    """Seconds of a batch, padding included."""
    return len(batch) * max(row.duration for row, _ in batch)


def decode_batch(codec: Codec, out: Path, batch: list[tuple[TokenRow, np.ndarray]], problems: list[str]) -> None:
    """Decode clips of one sample rate and write them."""
    rate, frames = batch[0][0].sample_rate, [len(indices) for _, indices in batch]
    padded = torch.zeros(len(batch), max(frames), codec.quantizer.num_indices, dtype=torch.int64)
    for place, (_, indices) in zip(padded, batch, strict=True):
        place[: len(indices)] = torch.from_numpy(indices)
    samples = [round(row.duration * rate) for row, _ in batch]
    audio, _ = codec.decode_batch(padded, frames, samples, rate)
    for (row, _), signal, wanted in zip(batch, audio, samples, strict=True):
        target = out / f"{row.id}.wav"
        if out.resolve() not in target.resolve().parents:
            problems.append(f"clip {row.id} would be written outside of {out}")
            continue
        make_folder(target.parent)
        with atomic_output(target) as file:
            writer = WavWriter(file, rate, 1, wanted)
            writer.write(signal[None, :wanted].cpu().numpy())
            writer.close()
