"""Configuration of a training run, read from YAML. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from q2d2cli.errors import UsageError
from q2d2cli.evaluation.metrics import check_names
from q2d2cli.files import refuse_device
from q2d2cli.models.config import ModelConfig, Strict

RUN_CONFIG_NAME = "config.yaml"
"""What ran, in its folder: the whole configuration."""
LOG_NAME = "log.jsonl"
"""Log of a run: one JSON object per line."""
AUGMENTATIONS = ("noise", "band", "tilt", "speed", "tones", "room", "coded")
"""Keys of `data` that change what is in a crop."""
PESQ_SECONDS = 0.35
"""PESQ pools over 20 frames, 0.34 s."""

Fraction = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]


def path_to_text(value: object) -> object:
    """A path as its text, anything else as it is."""
    return str(value) if isinstance(value, Path) else value


class DataConfig(Strict):
    """Where the audio is and how crops are drawn from it."""

    train: Annotated[str | tuple[str, ...], Field(min_length=1), BeforeValidator(path_to_text)]
    """Folder of audio files, searched recursively; or a file with one path per line; or tar shards of audio files: a
    folder that holds them, a path or URL, braces for ranges (`shards-{000000..000099}.tar`), or a list of such."""
    valid: Path
    """A folder or a file of paths, of other speakers; chooses the best checkpoint."""
    in_memory: bool = True
    """Hold all audio on the training device as 16-bit samples; if false, read each crop from its file. Tar shards are
    streamed."""
    shuffle_buffer: PositiveInt = 1000
    """Crops of tar shards that wait to be drawn from at random."""
    balance: Fraction = 0.0
    """From 0, every second of audio is drawn as often as any other, to 1, every folder (a speaker, say) is; between
    them, a folder of length `l` is drawn in proportion to `l ** (1 - balance)`. Not with tar shards."""
    crop_seconds: PositiveFloat = 0.9
    level_mean: Annotated[float, Field(le=0)] = -24.0
    """Mean level of a crop after random gain, dB below full scale (RMS)."""
    level_std: Weight = 7.0
    silence: Fraction = 0.02
    """Share of crops scaled down to near silence, so that silence decodes to silence."""
    noise: Fraction = 0.0
    """Share of crops that get coloured noise, 0 to 30 dB below them."""
    band: Fraction = 0.0
    """Share of crops cut to a narrower band, as of telephones and old recordings."""
    tilt: Fraction = 0.0
    """Share of crops with another slope of the spectrum and other bass and treble, as of another microphone."""
    speed: Fraction = 0.0
    """Share of crops played faster or slower (0.8 to 1.25), as of speakers with other voices."""
    tones: Fraction = 0.0
    """Share of crops replaced by notes, so that beeps and music do not vanish."""
    room: Fraction = 0.0
    """Share of crops heard in simulated rooms, near to the microphone or far from it."""
    coded: Fraction = 0.0
    """Share of crops that went through MP3 or Opus at low bit rates."""

    def unaugmented(self) -> DataConfig:
        """The same, but crops stay what was recorded, at random levels: what validations of any run can share."""
        return self.model_copy(update=dict.fromkeys(AUGMENTATIONS, 0.0))


class OptimConfig(Strict):
    """Optimizers and schedule."""

    batch_size: PositiveInt = 12
    """Crops per step and process."""
    lr: PositiveFloat = 1e-3
    """AdamW's peak learning rate."""
    muon_lr: Weight = 2e-3
    """Muon's peak learning rate for the blocks' linear layers; 0 trains them with AdamW too."""
    betas: tuple[Fraction, Fraction] = (0.8, 0.95)
    weight_decay: Weight = 0.0
    warmup_steps: PositiveInt = 100
    schedule: Literal["cosine", "constant"] = "cosine"
    """Of the learning rates after the warm-up: a cosine over the run; or constant until `decay` begins, so that a run
    can go on for as long as one likes and be cooled down at any point (`q2d2 train --resume --cooldown STEPS`)."""
    decay: Fraction = 0.0
    """With `schedule: constant`, the share of the run at its end in which learning rates fall; 0 leaves that to
    cool-downs."""
    final_lr: Fraction = 0.02
    """Learning rate at the end of the run, as a share of the peak."""
    grad_clip: PositiveFloat = 1.0
    """Largest norm of the whole gradient."""
    frame_clip: Weight = 0.0
    """Largest norm of a frame's gradient at the decoder's last layer, in multiples of the median; 0 lets all pass."""
    ema_decay: Fraction = 0.998
    """Of the averaged weights, those that are validated and saved; at step `n` at most `(n + 1) / (n + 10)`, so that
    the average spans about a ninth of the run until that is reached."""


class LossConfig(Strict):
    """Loss weights; a weight of 0 switches a loss off."""

    mel: Weight = 10.0
    stft: Weight = 15.0
    """Complex, magnitude-compressed multi-resolution STFT loss."""
    stft_compression: Annotated[float, Field(gt=0, le=1)] = 0.3
    """Power to which that loss raises magnitudes."""
    stft_phase_only: bool = False
    """That loss gives the estimate's bins the target's magnitudes, so that phase nobody can code does not pull the
    level down."""
    energy: Weight = 0.0
    """Energy in wide bands: holds the level, which uncertain magnitudes lower."""
    level: Weight = 0.0
    """Energy of whole crops in wide bands: holds the level where that of every window is too unsure to."""
    lines: Weight = 0.0
    """Autocorrelation at delays of 2 to 20 ms: takes away lines, which sound metallic."""
    pesq: Weight = 0.0
    """PESQ's disturbance, differentiable: PESQ rises, and then says less about the quality heard."""
    words: Weight = 0.0
    """Hidden layers of a frozen speech recognizer: what makes words, which spectra hardly see."""
    recognizer: str = "tiny.en"
    """That recognizer, for `words` and `discriminator.features`: `tiny.en`, or a folder with a CTranslate2 Whisper."""
    rate: Weight = 0.0
    """Weight, to begin with, of a bit per frame as a density model counts it that learns along: codes become easier to
    guess, so that entropy-coded files are smaller. For grids, lattices and fsq."""
    rate_bits: PositiveFloat | None = None
    """Bits per frame at which the weight of `rate`, following what is measured, holds them; without it the weight stays
    as it is."""
    commitment: Weight = 1.0
    """Of the baselines vq and rvq; the others have none."""
    distillation: Weight = 10.0
    """With a teacher: L1 between the values that student and teacher quantize."""
    distillation_alone: Fraction = 0.0
    """With a teacher: share of the run, at its beginning, in which that is the only loss. The decoder is not run then,
    and a step costs a fraction of one with it."""
    adversarial: Weight = 1.0
    feature_matching: Weight = 2.0


class FamilyConfig(Strict):
    """Discriminators of waveforms that differ in one size."""

    weight: Weight = 0.0
    channels: PositiveInt
    sizes: tuple[PositiveInt, ...]
    """Samples of each one's window or period."""


SIZES = ("sizes", "windows", "periods")
"""Names of that key, the last two of earlier versions."""


class FeatureDiscriminatorConfig(Strict):
    """Heads on the hidden layers of the recognizer `loss.recognizer`, and on log spectra for what it does not hear."""

    weight: Weight = 0.0
    """Of minus the heads' mean score."""
    width: PositiveInt = 128
    lr: PositiveFloat = 1e-3
    updates: PositiveInt = 2
    """Of the heads in each step; twice as many in the first `fade_steps`."""
    fade_steps: PositiveInt = 50
    """Steps in which the weight comes up to its full size."""
    windows: tuple[PositiveInt, ...] = (1024,)
    """Samples of the windows of the log spectra; none for the recognizer's layers alone."""


REMOVED = ("stft", "frame")
"""Discriminators of earlier versions, which no recipe used."""


class DiscriminatorConfig(Strict):
    """Which discriminators, with which weights, and when; a weight of 0 switches one off."""

    features: FeatureDiscriminatorConfig = FeatureDiscriminatorConfig()
    """Works from the first step on, whole crops; what follows is for the discriminators of waveforms."""
    start: Fraction = 1.0
    """Share of the run after which they start; 1 trains without them."""
    crop_seconds: PositiveFloat = 0.45
    """They look at a random part of each training crop, this long."""
    lr: PositiveFloat = 3e-4
    period: FamilyConfig = FamilyConfig(channels=32, sizes=(2, 3, 5, 7, 11))
    """HiFi-GAN's multi-period discriminator."""
    resolution: FamilyConfig = FamilyConfig(channels=64, sizes=(2048, 1024, 512))
    """Vocos's multi-resolution discriminator."""
    band: FamilyConfig = FamilyConfig(channels=32, sizes=(2048, 1024, 512))
    """DAC's multi-band complex STFT discriminator."""

    @model_validator(mode="before")
    @classmethod
    def _old(cls, data: Any) -> Any:
        """Configurations of earlier versions, as far as they did not train with what is gone."""
        if not isinstance(data, Mapping):
            return data
        for name, family in cls.model_fields.items():
            given = data.get(name)
            if isinstance(family.default, FamilyConfig) and isinstance(given, Mapping):
                sizes = next((given[key] for key in SIZES if key in given), family.default.sizes)
                rest = {key: value for key, value in given.items() if key not in SIZES}
                data = {**data, name: {**family.default.model_dump(), **rest, "sizes": sizes}}
        gone = {name: data[name] for name in REMOVED if name in data}
        if data.get("start", 1.0) < 1 and any(dict(family or {}).get("weight") for family in gone.values()):
            raise ValueError("the stft and frame discriminators are gone: give another a weight, or set start to 1")
        return {key: value for key, value in data.items() if key not in gone}

    @model_validator(mode="after")
    def _valid(self) -> DiscriminatorConfig:
        families = (self.period, self.resolution, self.band)
        if self.start < 1 and not any(family.weight for family in families):
            raise ValueError("every discriminator has weight 0: give one a weight, or set start to 1")
        return self


class TrainConfig(Strict):
    """A whole run."""

    model: ModelConfig
    data: DataConfig
    freeze: tuple[Literal["encoder", "quantizer", "decoder"], ...] = ()
    """Parts that keep their weights; with a start from another model, fine-tunes the rest."""
    teacher: str | None = None
    """Model (name, folder or Hub id) whose quantizer and decoder are taken, frozen, and whose encoder the new one
    learns to agree with; sample_rate, hop, feature_dim, quantizer and decoder must be its own."""
    optim: OptimConfig = OptimConfig()
    loss: LossConfig = LossConfig()
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    steps: PositiveInt | None = None
    """Length of the run; or, instead:"""
    minutes: PositiveFloat | None = None
    """Time of the run; the schedules follow it, so that it ends annealed on any machine."""
    validate_every: PositiveInt = 500
    """Steps between validations (and perhaps a new best checkpoint)."""
    validate_metrics: tuple[str, ...] = ()
    """Also measured at each validation, on the same crops or on recordings; names of `q2d2 eval --metrics`. What a loss
    trains on says little: `distillmos`, `wer` and `stoi` judge."""
    validate_clips: NonNegativeInt = 0
    """Recordings of `data.valid`, evenly spaced, the first 10 s of each, on which those metrics are measured instead of
    on crops, which cut words and are short for listeners."""
    validate_texts: Path | None = None
    """What is said in those recordings, for `wer`, as `q2d2 eval --texts` takes it; of recordings up to 10 s."""
    save_every: PositiveInt = 250
    """Steps between saves of the whole state."""
    keep_states: PositiveInt = 2
    """How many saved states stay: `state.pt` and, of earlier steps, `state-STEP.pt`."""
    log_every: PositiveInt = 25
    tensorboard: bool = True
    """Write losses, validation numbers, spectrograms and audio to `tensorboard/` in the run's folder."""
    bf16: bool = True
    """Automatic mixed precision with bfloat16, where the device has instructions for it."""
    compile: bool = False
    """Compile the model with torch.compile."""
    seed: int = 0

    @field_validator("validate_metrics")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        try:
            check_names(names)
        except UsageError as error:
            raise ValueError(str(error)) from error
        return names

    @model_validator(mode="after")
    def _valid(self) -> TrainConfig:
        if (self.steps is None) == (self.minutes is None):
            raise ValueError("give either steps or minutes as the length of the run")
        if self.loss.pesq and self.data.crop_seconds < PESQ_SECONDS:
            raise ValueError(f"loss.pesq needs data.crop_seconds of at least {PESQ_SECONDS}")
        spec = self.model.quantizer.spec()
        if self.loss.rate and not (spec.snaps or spec.kind == "fsq"):
            raise ValueError(f"loss.rate needs a grid, a lattice or fsq: entries of {spec.kind} have no neighbours")
        if self.loss.rate_bits is not None and not self.loss.rate:
            raise ValueError("loss.rate_bits needs loss.rate, the weight to begin with")
        if self.loss.rate_bits is not None and self.loss.rate_bits >= spec.bits_per_frame:
            raise ValueError(f"loss.rate_bits must be below the quantizer's {spec.bits_per_frame:.2f} bits per frame")
        if set(self.freeze) == {"encoder", "quantizer", "decoder"}:
            raise ValueError("freeze names every part: leave one to train")
        if self.validate_texts is not None and not self.validate_clips:
            raise ValueError("validate_texts is for recordings: set validate_clips to how many")
        if self.teacher is not None and self.freeze:
            raise ValueError("with a teacher only the encoder trains: leave freeze out")
        return self


def read_yaml(path: Path) -> Any:
    """What a YAML file holds.

    Raises:
        UsageError: if it cannot be read or is no YAML.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error


def read_config(path: Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read and check a YAML file.

    Args:
        path: the file.
        overrides: `dotted.path=value`, the value in YAML, put over the file's.

    Raises:
        UsageError: if the file cannot be read or anything in it is unknown or impossible.
    """
    refuse_device(path)
    data = read_yaml(path)
    if not isinstance(data, dict):
        raise UsageError(f"{path} is not a configuration: expected keys and values")
    for override in overrides:
        apply(data, override)
    try:
        return TrainConfig.model_validate(data)
    except ValidationError as error:
        raise UsageError(f"{path}: {first_problem(error)}") from error


def apply(data: dict[str, Any], override: str) -> None:
    """Put one `dotted.path=value` into nested dictionaries.

    Raises:
        UsageError: if it has not that form.
    """
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise UsageError(f"cannot understand --set {override!r}: write path.to.key=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"the value in --set {override!r} is not valid YAML") from error
    for part in parts[:-1]:
        data = data.setdefault(part, {})
        if not isinstance(data, dict):
            raise UsageError(f"cannot understand --set {override!r}: {part} has no keys of its own")
    data[parts[-1]] = value


def to_yaml(config: TrainConfig) -> str:
    """The whole configuration, defaults included."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def first_problem(error: ValidationError) -> str:
    """The first problem of a failed validation, with the path of its key, on one line."""
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"]) or "configuration"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{where}: {problem['msg']}{more}"


def difference(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """The first dotted key at which nested dictionaries differ, and both values; None if they are equal."""
    for key in {**a, **b}:
        first, second = a.get(key), b.get(key)
        if first == second:
            continue
        if isinstance(first, Mapping) and isinstance(second, Mapping):
            inner = difference(first, second)
            assert inner is not None
            return f"{key}.{inner[0]}", inner[1], inner[2]
        return key, first, second
    return None
