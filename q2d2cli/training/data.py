"""Corpora of files: held in memory as 16-bit samples, or read by seeking."""

from __future__ import annotations

import os
from abc import abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from torch import Tensor

from q2d2cli.audio import Resampler, audio_files, check_finite, file_seconds, read_list, read_mono
from q2d2cli.errors import Q2D2Error, UsageError
from q2d2cli.training.config import DataConfig
from q2d2cli.training.corpus import Corpus
from q2d2cli.training.shards import ShardCorpus

FULL_SCALE = 32768.0
SHARD_SUFFIXES = (".tar", ".tar.gz", ".tgz")


def find_audio(source: Path) -> list[Path]:
    """The audio files of a folder, or those that a list names (`read_list`).

    Raises:
        UsageError: if there is neither, or no audio in it.
    """
    if source.is_dir():
        return audio_files(source)
    if not source.is_file():
        raise UsageError(f"{source} is neither a folder of audio nor a list of paths")
    return read_list(source)


class FilesCorpus(Corpus):
    """A corpus whose files have all been looked at.

    Args:
        source: as `find_audio` takes it.
        sample_rate: of the crops, Hz.
        device: where they go.
        balance: as in `DataConfig`.

    Attributes:
        paths: of the files that could be read.
        ends: `(files,)` seconds at which each ends, laid end to end.

    Raises:
        UsageError: if no file could be read.
    """

    def __init__(
        self,
        source: Path,
        sample_rate: int,
        device: torch.device | str = "cpu",
        *,
        balance: float = 0.0,
    ) -> None:
        self.sample_rate, self.device, self.balance = sample_rate, device, balance
        self.broken, self.paths = {}, list[Path]()
        seconds: list[float] = []
        paths = find_audio(source)
        for path in paths:
            try:
                seconds.append(self._add(path))
                self.paths.append(path)
            except (Q2D2Error, OSError) as error:
                self.broken[path] = str(error)
        if not self.paths:
            raise UsageError(
                f"none of the {len(paths)} files in {source} could be read; the first: {self.broken[paths[0]]}"
            )
        self.ends = np.cumsum(seconds)

    @abstractmethod
    def _add(self, path: Path) -> float:
        """Look at one file; returns its seconds.

        Raises:
            Q2D2Error: if it cannot be read or holds no samples.
        """

    @property
    def files(self) -> int:
        """Number of files that could be read."""
        return len(self.paths)

    @property
    def seconds(self) -> float:
        """Length of all."""
        return float(self.ends[-1])

    @cached_property
    def _weighed(self) -> np.ndarray:
        """`(files + 1,)` from 0 to 1: how often a crop comes from the files before each end."""
        lengths = np.diff(self.ends, prepend=0.0)
        _, folder = np.unique([str(path.parent) for path in self.paths], return_inverse=True)
        weights = lengths * np.maximum(np.bincount(folder, lengths), 1e-9)[folder] ** -self.balance
        return np.concatenate([[0.0], np.cumsum(weights) / weights.sum()])

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """As `Corpus.draw`, but a folder of length `l` is as likely as `l ** (1 - balance)`."""
        places = rng.random(count)
        if not self.balance:
            return places
        return np.interp(places, self._weighed, np.concatenate([[0.0], self.ends]) / self.seconds)

    @property
    def summary(self) -> str:
        """As `Corpus.summary`."""
        return f"{self.files} files, {self.seconds / 3600:.2f} hours of audio"


class MemoryCorpus(FilesCorpus):
    """All files joined to one array of 16-bit samples, on the training device."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self._parts: list[np.ndarray] = []
        super().__init__(*args, **options)
        self.samples = torch.from_numpy(np.concatenate(self._parts)).to(self.device)
        del self._parts

    def _add(self, path: Path) -> float:
        audio = read_mono(path, self.sample_rate)
        self._parts.append((audio * FULL_SCALE).round().clip(-32768, 32767).astype(np.int16))
        return len(audio) / self.sample_rate

    def read(self, places: np.ndarray, length: int) -> Tensor:
        """As `Corpus.read`; crops cross from file to file."""
        starts = torch.from_numpy((places * max(1, len(self.samples) - length)).astype(np.int64))
        index = starts[:, None] + torch.arange(length)
        inside = (index < len(self.samples)).to(self.samples.device)
        picked = self.samples[index.clamp(max=len(self.samples) - 1).to(self.samples.device)]
        return picked * inside / FULL_SCALE


class FileCorpus(FilesCorpus):
    """Files that stay on disk; a crop is read by seeking to it."""

    def _add(self, path: Path) -> float:
        return file_seconds(path)

    def read(self, places: np.ndarray, length: int) -> Tensor:
        """As `Corpus.read`; a crop stays within its file."""
        batch = np.zeros((len(places), length), np.float32)
        for row, place in zip(batch, places, strict=True):
            at = place * self.seconds
            number = min(int(np.searchsorted(self.ends, at, side="right")), self.files - 1)
            begin = self.ends[number - 1] if number else 0.0
            path = self.paths[number]
            try:
                piece = self._read_one(path, at - begin, length)
            except (Q2D2Error, soundfile.LibsndfileError, OSError) as error:
                # Its head was readable when training began; silence now, and named.
                self.broken.setdefault(path, str(error))
                continue
            row[: len(piece)] = piece
        return torch.from_numpy(batch).to(self.device)

    def _read_one(self, path: Path, at: float, length: int) -> np.ndarray:
        with soundfile.SoundFile(os.fsencode(path)) as file:
            wanted = int(np.ceil(length * file.samplerate / self.sample_rate)) + 1
            start = min(int(at * file.samplerate), max(0, file.frames - wanted))
            file.seek(start)
            samples = file.read(wanted, dtype="float32", always_2d=True)
            check_finite(samples, str(path), start, file.samplerate)
            mono = samples.mean(axis=1)
            return Resampler(file.samplerate, self.sample_rate, 1).push(mono[None], last=True)[0][:length]


def open_corpus(
    config: DataConfig, sample_rate: int, device: torch.device | str, *, seed: int = 0, processes: int = 1
) -> Corpus:
    """The corpus to train on: streamed from tar shards, in memory, or on disk.

    Args:
        config: where it is.
        sample_rate: of the crops, Hz.
        device: where they go.
        seed: of a stream's order.
        processes: that share a stream.

    Raises:
        UsageError: if there is no audio, or shards that should be balanced.
    """
    if shards := find_shards(config.train):
        if config.balance:
            raise UsageError("data.balance needs folders of files, and tar shards have none: set it to 0")
        return ShardCorpus(shards, sample_rate, device, seed=seed, buffer=config.shuffle_buffer, processes=processes)
    kind = MemoryCorpus if config.in_memory else FileCorpus
    return kind(Path(str(config.train)), sample_rate, device, balance=config.balance)


def find_shards(source: str | tuple[str, ...]) -> list[str]:
    """Patterns of tar shards that `DataConfig.train` names, or those in its folder; none if it is not about shards.

    Raises:
        UsageError: if a list names anything else.
    """
    names = [source] if isinstance(source, str) else list(source)
    if all(name.endswith(SHARD_SUFFIXES) for name in names):
        return names
    if not isinstance(source, str):
        other = next(name for name in names if not name.endswith(SHARD_SUFFIXES))
        raise UsageError(f"data.train is a list, and {other} is not a tar shard: name one folder, or .tar files only")
    return sorted(str(path) for path in Path(source).rglob("*.tar")) if Path(source).is_dir() else []
