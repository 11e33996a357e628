"""Training data: audio held in memory as 16-bit samples, or read by seeking, and random crops from it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor

from q2d2cli.audio import Resampler, audio_files, read_mono
from q2d2cli.errors import Q2D2Error, UsageError
from q2d2cli.training.config import DataConfig

Progress = Callable[[int, int], None]
FULL_SCALE = 32768.0


def find_audio(source: Path) -> list[Path]:
    """The audio files of a folder, or of a list with one path per line (WavTokenizer's lists work as they are).

    Raises:
        UsageError: if there is neither, or no audio in it.
    """
    if source.is_dir():
        return audio_files(source)
    try:
        lines = source.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{source} is neither a folder of audio nor a list of paths") from error
    paths = [Path(line.strip()) for line in lines if line.strip()]
    if not paths:
        raise UsageError(f"no audio found in {source}: the list is empty")
    # Relative to the list, if that is where they are.
    return [path if path.is_absolute() or path.exists() else source.parent / path for path in paths]


class Corpus(ABC):
    """Audio to draw crops from, every sample as likely as any other.

    Attributes:
        sample_rate: of the crops, Hz.
        files: number of files that could be read.
        broken: paths that could not.
        seconds: length of all.
    """

    sample_rate: int
    files: int
    broken: list[Path]
    seconds: float

    @abstractmethod
    def read(self, places: np.ndarray, length: int) -> Tensor:
        """Samples at `places` (`(count,)` in [0, 1) of the whole): `(count, length)` float32, zeros beyond the end."""

    def crops(
        self, count: int, length: int, config: DataConfig, rng: np.random.Generator, part: slice = slice(None)
    ) -> Tensor:
        """Random crops at random levels.

        Args:
            count: how many are drawn.
            length: samples of each.
            config: levels.
            rng: decides everything.
            part: which of them are read and returned: one process's share.

        Returns:
            `(count or the part of it, length)` float32.
        """
        places = rng.random(count)
        target = 10 ** (rng.normal(config.level_mean, config.level_std, count) / 20)
        fade = np.where(rng.random(count) < config.silence, 10 ** rng.uniform(-4.5, -2.0, count), 1.0)
        batch = self.read(places[part], length)
        wanted, quiet = (torch.from_numpy(x[part]).float().to(batch.device) for x in (target, fade))
        rms = batch.square().mean(1).sqrt() + 1e-9
        peak = batch.abs().amax(1) + 1e-9
        # Pauses keep their level, loud peaks stay below full scale.
        gain = torch.where(rms > 1e-3, torch.minimum(wanted / rms, 0.99 / peak), 1.0)
        return batch * (gain * quiet)[:, None]


class MemoryCorpus(Corpus):
    """All files joined to one array of 16-bit samples, on the training device."""

    def __init__(
        self, source: Path, sample_rate: int, device: torch.device | str = "cpu", progress: Progress | None = None
    ) -> None:
        self.sample_rate = sample_rate
        self.broken = []
        parts: list[np.ndarray] = []
        paths = find_audio(source)
        for done, path in enumerate(paths):
            if progress:
                progress(done, len(paths))
            try:
                audio = read_mono(path, sample_rate)
            except Q2D2Error:
                self.broken.append(path)
                continue
            parts.append((audio * FULL_SCALE).round().clip(-32768, 32767).astype(np.int16))
        if not parts:
            raise UsageError(f"none of the {len(paths)} files in {source} could be read")
        self.files = len(parts)
        self.samples = torch.from_numpy(np.concatenate(parts)).to(device)
        self.seconds = len(self.samples) / sample_rate

    def read(self, places: np.ndarray, length: int) -> Tensor:
        """As `Corpus.read`; crops cross from file to file."""
        starts = torch.from_numpy((places * max(1, len(self.samples) - length)).astype(np.int64))
        index = starts[:, None] + torch.arange(length)
        inside = (index < len(self.samples)).to(self.samples.device)
        picked = self.samples[index.clamp(max=len(self.samples) - 1).to(self.samples.device)]
        return picked * inside / FULL_SCALE


class FileCorpus(Corpus):
    """Files that stay on disk; a crop is read by seeking to it."""

    def __init__(
        self, source: Path, sample_rate: int, device: torch.device | str = "cpu", progress: Progress | None = None
    ) -> None:
        self.sample_rate = sample_rate
        self.device = device
        self.broken = []
        self.paths: list[Path] = []
        seconds: list[float] = []
        paths = find_audio(source)
        for done, path in enumerate(paths):
            if progress:
                progress(done, len(paths))
            try:
                seconds.append(soundfile.info(path).duration)
                self.paths.append(path)
            except (soundfile.LibsndfileError, OSError):
                self.broken.append(path)
        if not self.paths:
            raise UsageError(f"none of the {len(paths)} files in {source} could be read")
        self.files = len(self.paths)
        self.ends = np.cumsum(seconds)
        self.seconds = float(self.ends[-1])

    def read(self, places: np.ndarray, length: int) -> Tensor:
        """As `Corpus.read`; a crop stays within its file."""
        batch = np.zeros((len(places), length), np.float32)
        for row, place in zip(batch, places, strict=True):
            at = place * self.seconds
            number = min(int(np.searchsorted(self.ends, at, side="right")), self.files - 1)
            begin = self.ends[number - 1] if number else 0.0
            try:
                piece = self._read_one(self.paths[number], at - begin, length)
            except (soundfile.LibsndfileError, OSError):
                # Readable when training began; silence now, and named at the end.
                if self.paths[number] not in self.broken:
                    self.broken.append(self.paths[number])
                continue
            row[: len(piece)] = piece
        return torch.from_numpy(batch).to(self.device)

    def _read_one(self, path: Path, at: float, length: int) -> np.ndarray:
        with soundfile.SoundFile(path) as file:
            wanted = int(np.ceil(length * file.samplerate / self.sample_rate)) + 1
            start = min(int(at * file.samplerate), max(0, file.frames - wanted))
            file.seek(start)
            mono = file.read(wanted, dtype="float32", always_2d=True).mean(axis=1)
            return Resampler(file.samplerate, self.sample_rate, 1).push(mono[None], last=True)[0][:length]


def open_corpus(
    source: Path, sample_rate: int, in_memory: bool, device: torch.device | str, progress: Progress | None = None
) -> Corpus:
    """A corpus in memory or on disk."""
    kind = MemoryCorpus if in_memory else FileCorpus
    return kind(source, sample_rate, device, progress)
