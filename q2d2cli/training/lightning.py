"""From the Lightning checkpoints of Q2D2's and WavTokenizer's authors to model folders."""

from __future__ import annotations

import hashlib
import pickle
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AliasChoices, Field, PositiveInt, ValidationError

from q2d2cli import checkpoints
from q2d2cli.errors import Q2D2Error, UsageError
from q2d2cli.files import atomic_output, check_input
from q2d2cli.models.config import ModelConfig, SeanetEncoderConfig, Strict
from q2d2cli.training.config import DataConfig, TrainConfig, first_problem, read_yaml, to_yaml
from q2d2cli.training.export import RECIPE_NAME

if TYPE_CHECKING:
    import torch

    State = dict[str, torch.Tensor]

ENCODER = "feature_extractor.encodec.encoder.model"
GRIDS = "feature_extractor.encodec.quantizer.quantizer.vq"
CODEBOOK = "feature_extractor.encodec.quantizer.vq.layers.0._codebook"
UNUSED = (
    "feature_extractor.encodec.decoder.",  # EnCodec's, which Vocos stands in for
    "feature_extractor.encodec.quantizer.quantizer.project_",  # beside the quantizer, which has its own
    "head.istft.window",
    "multiperioddisc.",
    "multiresddisc.",
    "dac.",
    "dacdiscriminator.",
    "disc_loss.",
    "gen_loss.",
    "feat_matching_loss.",
    "melspec_loss.",
)
"""Beginnings of keys that a checkpoint has and a codec does not need: training's networks and what is never called."""
KINDS = {"hexagon": "hexagonal", "rectangle": "rectangular", "rhombic": "rhombic"}
"""The authors' names of the grids, and ours."""
LEVELS = {4: (7, 7, 7, 7), 6: (7, 7, 7, 7, 7, 7)}
"""What a number in place of the list of levels stands for in the authors' code."""


class Features(Strict):
    """Arguments of the authors' `EncodecFeatures`, their spelling and defaults included."""

    encodec_model: Literal["encodec_24khz"] = "encodec_24khz"
    bandwidths: Any = None
    train_codebooks: Any = None
    num_quantizers: Literal[1] = 1
    strides: Annotated[
        tuple[PositiveInt, ...],
        Field(min_length=1, validation_alias=AliasChoices("dowmsamples", "downsamples", "strides")),
    ] = (6, 5, 5, 4)
    vq_bins: PositiveInt = 16384
    vq_kmeans: Any = None
    vq_type: Literal["hexagon", "rectangle", "rhombic"] = "hexagon"
    codebook_dim: Literal[4, 6] | tuple[int, ...] | None = None

    @property
    def levels(self) -> tuple[int, ...]:
        """Levels of the grids."""
        return LEVELS[self.codebook_dim or 6] if not isinstance(self.codebook_dim, tuple) else self.codebook_dim


class Backbone(Strict):
    """Arguments of the authors' `VocosBackbone`."""

    input_channels: Literal[512]
    dim: PositiveInt
    intermediate_dim: PositiveInt
    num_layers: PositiveInt
    layer_scale_init_value: Any = None
    adanorm_num_embeddings: PositiveInt | None = None


class HeadArguments(Strict):
    """Arguments of the authors' `ISTFTHead`."""

    dim: PositiveInt
    n_fft: PositiveInt
    hop_length: PositiveInt
    padding: Literal["same"] = "same"


PARTS: dict[str, tuple[str, type[Strict]]] = {
    "feature_extractor": ("EncodecFeatures", Features),
    "backbone": ("VocosBackbone", Backbone),
    "head": ("ISTFTHead", HeadArguments),
}
"""The parts of their models: the class of each, and its arguments."""


def import_checkpoint(checkpoint: Path, config: Path, folder: Path) -> checkpoints.Checkpoint:
    """Make a model folder of a Lightning checkpoint.

    It has weights in 32 bits, as they are, so that tokens and audio are those of the authors' code, a card, and a
    training configuration to go on with.

    Args:
        checkpoint: `.ckpt` of Q2D2's or WavTokenizer's training, or its weights as `.safetensors`.
        config: the Lightning YAML that it was trained with.
        folder: to write; its name is the model's.

    Returns:
        What was written.

    Raises:
        UsageError: if a file cannot be read, or the YAML does not describe such a model.
        Q2D2Error: if the checkpoint holds more than weights, is damaged, or does not fit the YAML.
    """
    parts = read_parts(config)
    state = read_state(checkpoint)
    try:
        model = model_config(folder.name, parts, any(key.startswith(CODEBOOK) for key in state))
    except ValidationError as error:
        raise UsageError(f"{config} describes a model that is impossible here: {first_problem(error)}") from error
    converted = convert(state, model, checkpoint)
    checkpoints.save(folder, model, converted, half=False)
    recipe = TrainConfig(
        model=model, data=DataConfig(train="data/train", valid=Path("data/valid"), crop_seconds=3.0), steps=10_000
    )
    with atomic_output(folder / RECIPE_NAME) as file:
        file.write(to_yaml(recipe).encode())
    with atomic_output(folder / checkpoints.CARD_NAME) as file:
        file.write(card(folder, model, checkpoint).encode())
    return checkpoints.open_checkpoint(folder)


def read_parts(path: Path) -> dict[str, Any]:
    """The arguments of each part of a model, from a Lightning YAML.

    Raises:
        UsageError: if it cannot be read, or describes something else.
    """
    check_input(path)
    data = read_yaml(path)
    try:
        model = data["model"]["init_args"] if "model" in data else data
        found = {}
        for part, (name, arguments) in PARTS.items():
            if model[part]["class_path"].rpartition(".")[2] != name:
                raise UsageError(f"{path}: {part} is {model[part]['class_path']}, but only {name} can be imported")
            found[part] = arguments.model_validate(model[part].get("init_args", {}))
    except ValidationError as error:
        raise UsageError(f"{path}: {part}.{first_problem(error)}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{path} is no configuration of Q2D2 or WavTokenizer: expected model.init_args with feature_extractor, "
            "backbone and head"
        ) from error
    return found


def model_config(name: str, parts: Mapping[str, Any], codebook: bool) -> ModelConfig:
    """Our configuration of their model.

    Args:
        name: of the model.
        parts: as `read_parts` gives them.
        codebook: whether it has a codebook (WavTokenizer), not grids (Q2D2).

    Raises:
        ValidationError: if the parts do not fit together.
    """
    features, backbone, head = parts["feature_extractor"], parts["backbone"], parts["head"]
    kind, levels = ("vq", (features.vq_bins,)) if codebook else (KINDS[features.vq_type], features.levels)
    return ModelConfig.model_validate(
        {
            "name": name,
            "sample_rate": 24_000,
            "hop": head.hop_length,
            "feature_dim": backbone.input_channels,
            "encoder": {"type": "seanet", "strides": features.strides},
            "quantizer": {"kind": kind, "levels": levels},
            "decoder": {
                "dim": backbone.dim,
                "hidden": backbone.intermediate_dim,
                "layers": backbone.num_layers,
                "attention": True,
                "norm_embeddings": backbone.adanorm_num_embeddings or 0,
                "window": None if head.n_fft == 4 * head.hop_length else head.n_fft,
            },
        }
    )


def read_state(path: Path) -> State:
    """The weights in a checkpoint; nothing in it is run.

    Raises:
        UsageError: if the file cannot be read.
        Q2D2Error: if it holds more than weights, or is damaged.
    """
    import torch

    check_input(path)
    if path.suffix == ".safetensors":
        return checkpoints.read_safetensors(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles that are no checkpoints
            data = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found is None:
            raise Q2D2Error(f"{path} is damaged or no PyTorch checkpoint") from error
        raise Q2D2Error(
            f"{path} is refused: it holds more than weights ({found[1]}), and to load that could run anything; "
            "ask for its state_dict as safetensors"
        ) from error
    except Exception as error:  # whatever the reader of a damaged archive stumbles over
        raise Q2D2Error(f"{path} is damaged or no PyTorch checkpoint") from error
    state = data.get("state_dict") if isinstance(data, dict) else None
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise Q2D2Error(f"{path} is no Lightning checkpoint: it has no state_dict")
    return state


def convert(state: State, config: ModelConfig, path: Path) -> State:
    """Their weights under our names, in float32.

    Args:
        state: their weights.
        config: of the model.
        path: where they come from.

    Raises:
        Q2D2Error: if a weight is missing, unknown or of another shape; names it.
    """
    import torch

    from q2d2cli.models.model import CodecModel

    with torch.device("meta"):
        target = CodecModel(config).state_dict()
    names = dict(pairs(config, list(target)))
    converted = {}
    for key, tensor in state.items():
        if key.startswith(UNUSED):
            continue
        name = names.pop(modern(key), None)
        if name is None:
            raise Q2D2Error(f"{path} has a weight that no Q2D2 or WavTokenizer of this configuration has: {key}")
        shape = target[name].shape
        if tensor.numel() != shape.numel() or [n for n in tensor.shape if n > 1] != [n for n in shape if n > 1]:
            raise Q2D2Error(
                f"{path} does not fit its configuration: {key} has shape {tuple(tensor.shape)}, expected {tuple(shape)}"
            )
        converted[name] = tensor.reshape(shape).to(target[name].dtype)
    if names:
        raise Q2D2Error(f"{path} does not fit its configuration: it has no {next(iter(names))}")
    return converted


def modern(key: str) -> str:
    """The name of a weight under PyTorch's present weight norm, from that or the old one."""
    return re.sub(r"\.weight_([gv])$", lambda end: f".parametrizations.weight.original{'gv'.index(end[1])}", key)


def pairs(config: ModelConfig, targets: list[str]) -> Iterator[tuple[str, str]]:
    """Their name and ours of every weight."""
    assert isinstance(config.encoder, SeanetEncoderConfig)
    modules = {"decoder.head.out": "head.out", "decoder.final_norm": "backbone.final_layer_norm"}
    modules |= {f"decoder.{name}": f"backbone.{name}" for name in ("embed", "pos_net", "norm")}
    modules["decoder.blocks"] = "backbone.convnext"
    modules["quantizer.project_in"], modules["quantizer.project_out"] = f"{GRIDS}.project_in.0", f"{GRIDS}.project_out"
    modules["quantizer.rvq.layers.0._codebook"] = CODEBOOK
    modules["encoder.first"] = f"{ENCODER}.0.conv"
    # Each stage is a residual unit, an ELU and a strided convolution; then come LSTM, ELU and the last convolution.
    stages = len(config.encoder.strides)
    for stage in range(stages):
        unit = f"{ENCODER}.{3 * stage + 1}"
        modules[f"encoder.units.{stage}.conv1"] = f"{unit}.block.1.conv"
        modules[f"encoder.units.{stage}.conv2"] = f"{unit}.block.3.conv"
        modules[f"encoder.units.{stage}.shortcut"] = f"{unit}.shortcut.conv"
        modules[f"encoder.downs.{stage}"] = f"{ENCODER}.{3 * stage + 3}.conv"
    modules["encoder.lstm"], modules["encoder.last"] = (
        f"{ENCODER}.{3 * stages + 1}.lstm",
        f"{ENCODER}.{3 * stages + 3}.conv",
    )
    for target in targets:
        ours = next(name for name in modules if target.startswith(f"{name}."))
        theirs = modules[ours] + target.removeprefix(ours)
        yield theirs.replace(f"{CODEBOOK}.initted", f"{CODEBOOK}.inited"), target


def card(folder: Path, config: ModelConfig, checkpoint: Path) -> str:
    """The card of an imported model."""
    with checkpoint.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    spec = config.quantizer.spec()
    return f"""# {config.name}

| | |
|---|---|
| bit rate | {config.bit_rate / 1000:.2f} kbit/s payload |
| tokens | {config.frame_rate:.1f} per second, codebook of {spec.codebook_size} |
| quantizer | {spec.kind}, levels {",".join(map(str, spec.levels))} |
| audio | {config.sample_rate} Hz inside, one frame per {config.hop} samples; any rate in and out |
| imported from | `{checkpoint.name}`, SHA-256 `{digest}` |

Weights as they were, in 32 bits. Not measured here.

Go on training from here, on your own data, with

    q2d2 train --config {folder}/{RECIPE_NAME} --out runs/{config.name} --init {folder}
"""
