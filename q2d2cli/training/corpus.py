"""What training draws its crops from, wherever the audio is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from q2d2cli.training.augment import augment, change_speed, length_before
from q2d2cli.training.config import DataConfig

VALID_SECONDS = 3.0
VALID_CROPS = 32


class Corpus(ABC):
    """Audio to draw crops from.

    Attributes:
        sample_rate: of the crops, Hz; files have any rate and are resampled.
        broken: why audio could not be read, by its path; more may come as training goes on.
        position: where a stream stands (pass, crops taken in it) and can be put; None where crops come from anywhere.
    """

    sample_rate: int
    broken: dict[Path | str, str]
    position: tuple[int, int] | None = None

    @property
    @abstractmethod
    def summary(self) -> str:
        """How much audio there is, in words."""

    @abstractmethod
    def read(self, places: np.ndarray, length: int) -> Tensor:
        """Samples at `places` (`(count,)` in [0, 1) of the whole): `(count, length)` float32, zeros beyond the end."""

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Random places for `read`: every sample is as likely as any other."""
        return rng.random(count)

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
        places = self.draw(rng, count)
        target = 10 ** (rng.normal(config.level_mean, config.level_std, count) / 20)
        fade = np.where(rng.random(count) < config.silence, 10 ** rng.uniform(-4.5, -2.0, count), 1.0)
        seeds = rng.integers(2**63, size=count)
        batch = self.read(places[part], length_before(length) if config.speed else length)
        if config.speed:
            batch = change_speed(batch, length, config.speed, seeds[part])
        batch = augment(batch, config, self.sample_rate, seeds[part])
        wanted, quiet = (torch.from_numpy(x[part]).float().to(batch.device) for x in (target, fade))
        rms = batch.square().mean(1).sqrt() + 1e-9
        peak = batch.abs().amax(1) + 1e-9
        # Pauses keep their level, loud peaks stay below full scale.
        gain = torch.where(rms > 1e-3, torch.minimum(wanted / rms, 0.99 / peak), 1.0)
        return batch * (gain * quiet)[:, None]


def validation_crops(corpus: Corpus, config: DataConfig) -> Tensor:
    """`(VALID_CROPS, samples)` to validate on: the same in every run whose levels are the same."""
    length = int(VALID_SECONDS * corpus.sample_rate)
    return corpus.crops(VALID_CROPS, length, config.unaugmented(), np.random.default_rng(0))
