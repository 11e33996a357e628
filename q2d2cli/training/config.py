"""Configuration of a training run, read from YAML. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import yaml
from pydantic import Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from q2d2cli.errors import UsageError
from q2d2cli.models.config import ModelConfig, Strict

LOG_NAME = "log.jsonl"
"""Log of a run: one JSON object per line."""

Fraction = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]


class DataConfig(Strict):
    """Where the audio is and how crops are drawn from it."""

    train: Path
    """Folder of audio files, searched recursively."""
    valid: Path
    """Folder of audio files of other speakers; chooses the best checkpoint."""
    crop_seconds: PositiveFloat = 0.9
    level_mean: Annotated[float, Field(le=0)] = -24.0
    """Mean level of a crop after random gain, dB below full scale (RMS)."""
    level_std: Weight = 7.0
    silence: Fraction = 0.02
    """Share of crops scaled down to near silence, so that silence decodes to silence."""


class OptimConfig(Strict):
    """Optimizers and schedule."""

    batch_size: PositiveInt = 12
    lr: PositiveFloat = 1e-3
    """AdamW's peak learning rate."""
    muon_lr: Weight = 2e-3
    """Muon's peak learning rate for the blocks' linear layers; 0 trains them with AdamW too."""
    betas: tuple[Fraction, Fraction] = (0.8, 0.95)
    weight_decay: Weight = 0.0
    warmup_steps: PositiveInt = 100
    final_lr: Fraction = 0.02
    """Learning rate at the end of the cosine, as a share of the peak."""
    grad_clip: PositiveFloat = 1.0
    ema_decay: Fraction = 0.998


class LossConfig(Strict):
    """Loss weights; a weight of 0 switches a loss off."""

    mel: Weight = 10.0
    stft: Weight = 15.0
    """Complex, magnitude-compressed multi-resolution STFT loss."""
    stft_compression: Annotated[float, Field(gt=0, le=1)] = 0.3
    """Power to which that loss raises magnitudes."""
    commitment: Weight = 1.0
    """Of the baselines vq and rvq; the others have none."""
    adversarial: Weight = 1.0
    feature_matching: Weight = 2.0


class DiscriminatorConfig(Strict):
    """Multi-scale complex STFT discriminator."""

    start: Fraction = 0.4
    """Share of the run after which the discriminator starts; 1 trains without one."""
    channels: PositiveInt = 16
    windows: tuple[PositiveInt, ...] = (2048, 1024, 512, 256)
    crop_seconds: PositiveFloat = 0.45
    """It looks at a random part of each training crop, this long."""
    lr: PositiveFloat = 3e-4


class TrainConfig(Strict):
    """A whole run."""

    model: ModelConfig
    data: DataConfig
    optim: OptimConfig = OptimConfig()
    loss: LossConfig = LossConfig()
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    steps: PositiveInt | None = None
    """Length of the run; or, instead:"""
    minutes: PositiveFloat | None = None
    """Time of the run; the schedules follow it, so that it ends annealed on any machine."""
    validate_every: PositiveInt = 500
    """Steps between validations (and perhaps a new best checkpoint)."""
    save_every: PositiveInt = 250
    """Steps between saves of the whole state."""
    log_every: PositiveInt = 25
    bf16: bool = True
    seed: int = 0

    @model_validator(mode="after")
    def _valid(self) -> TrainConfig:
        if (self.steps is None) == (self.minutes is None):
            raise ValueError("give either steps or minutes as the length of the run")
        return self


def read_config(path: Path) -> TrainConfig:
    """Read and check a YAML file.

    Raises:
        UsageError: if the file cannot be read or anything in it is unknown or impossible.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    try:
        return TrainConfig.model_validate(data)
    except ValidationError as error:
        raise UsageError(f"{path}: {describe(error)}") from error


def describe(error: ValidationError) -> str:
    """The first problem of a failed validation, with the path of its key, on one line."""
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"]) or "configuration"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{where}: {problem['msg']}{more}"
