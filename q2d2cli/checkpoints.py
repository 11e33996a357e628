"""Find, load, verify and save model checkpoints: a folder with `config.json` and `model.safetensors`."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from q2d2cli import hub
from q2d2cli.errors import Q2D2Error, UsageError, report
from q2d2cli.files import atomic_output, make_folder

if TYPE_CHECKING:
    import torch

    from q2d2cli.models.config import ModelConfig
    from q2d2cli.models.model import CodecModel

T = TypeVar("T")

DEFAULT_MODEL = "speech-3k"
"""The model used where none is named."""
CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
CARD_NAME = "README.md"
CONTEXT_NAME = "context.safetensors"
"""The context model for entropy coding; a model need not have it."""
CONTEXTS = "context*.safetensors"
"""That one and, beside it, those of the weights whose files the model decodes, too."""
DISCRIMINATORS_NAME = "discriminators.safetensors"
"""For fine-tuning; a model need not have it."""
EARLIER_NAME = "earlier.json"
"""Among the models: the fingerprints of earlier weights, and where in the project's history they lie."""
FINGERPRINT_BYTES = 8
VERSION = re.compile(r"(.+)-v(\d+)")
"""A model's name with its version; one without is version 1, and also stands for the newest that is here."""
ENCODING = ("encoder.", "quantizer.project_in.", "quantizer.norm.")
"""What the names of the weights that tokens depend on begin with: all that a student's file holds."""
LENT_KEYS = ("sample_rate", "hop", "feature_dim", "quantizer", "decoder")
"""Keys of a model's configuration that are a student's lender's."""
FILES = ("config.json", "*.safetensors", "*.md", "*.yaml", "*.svg")
"""What a model on the Hub consists of; nothing else is fetched or pushed, pickles least of all."""
CARD_HEAD = """---
library_name: q2d2
pipeline_tag: audio-to-audio
tags: [audio, speech, codec, tokenizer]
---

"""
"""What the Hub's search reads, put before a card that has nothing of the kind."""


@dataclass(frozen=True)
class Lender:
    """The model whose quantizer and decoder a student has: its tokens and files are that model's."""

    model: str
    fingerprint: bytes
    """Of its weights file."""


@dataclass(frozen=True)
class Sharpened:
    """What `q2d2 export --sharpen` did to a decoder (training/sharpen.py)."""

    amount: float
    """By what part of its distance from the mean around it a log magnitude was moved."""
    gain: float
    """What was then taken from all log magnitudes."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder that has been found and whose configuration has been read."""

    folder: Path
    config: ModelConfig
    metrics: dict[str, Any]
    """Measured quality, as `q2d2 eval --json` gave it; empty if never measured."""
    lender: Lender | None = None
    """Of a student; its weights file may then hold an encoder alone."""
    decodes: dict[str, bytes] = field(default_factory=dict)
    """Other weights whose files it decodes, too: earlier ones, from which it went on. Their models' names, and their
    fingerprints."""
    coded_rate: float | None = None
    """Bits per second that its context model made of the audio that `metrics` were measured on, mean; None if never
    measured."""
    sharpened: Sharpened | None = None
    """What training on from here has to undo."""

    @property
    def weights(self) -> Path:
        """The safetensors file."""
        return self.folder / WEIGHTS_NAME

    def fingerprint(self) -> bytes:
        """First 8 bytes of the SHA-256 of the weights file; ties a .q2d file to the weights it needs."""
        return fingerprint(self.weights)

    def understands(self, wanted: bytes) -> bool:
        """Whether it decodes files that name weights with this fingerprint."""
        return self.fingerprint() == wanted or wanted in self.decodes.values()

    def whole(self) -> Checkpoint:
        """The checkpoint with the decoder, which files name: this one, or a student's lender.

        Raises:
            UsageError: if a student's lender is not here.
            Q2D2Error: if it is not what the student was made for.
        """
        if self.lender is None:
            return self
        name, wanted = self.lender.model, self.lender.fingerprint
        try:
            found = find_weights(name, wanted)
        except UsageError as error:
            raise UsageError(f"model {self.config.name!r} has the decoder of another: {error}") from error
        if not found.understands(wanted):
            how = whereabouts(wanted)
            raise UsageError(
                f"model {self.config.name!r} has the decoder of {name!r}, weights {wanted.hex()}, but those here are "
                f"{found.fingerprint().hex()}: get those weights{f' ({how})' if how else ''}"
            )
        mine, theirs = (checkpoint.config.model_dump(include=set(LENT_KEYS)) for checkpoint in (self, found))
        if mine != theirs:
            raise Q2D2Error(f"{self.folder / CONFIG_NAME} contradicts that of {name!r}, whose decoder it has")
        return found


def fingerprint(weights: Path) -> bytes:
    """First 8 bytes of the SHA-256 of a file; read once in a process as long as the file stays as it is."""
    try:
        state = weights.stat()
        return digest(weights.absolute(), state.st_ino, state.st_size, state.st_mtime_ns)
    except OSError as error:
        raise Q2D2Error(f"cannot read {weights}: {error.strerror}") from error


@lru_cache(maxsize=256)
def digest(path: Path, *_state: int) -> bytes:
    """First 8 bytes of the SHA-256 of the file at `path` in the state that was found."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()[:FINGERPRINT_BYTES]


def own_folder() -> Path:
    """Where a user's own models lie: `$Q2D2_MODELS`, else `q2d2/models` in the user's data folder."""
    data = os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")
    return Path(os.environ.get("Q2D2_MODELS") or os.path.join(data, "q2d2", "models"))


def model_folders() -> list[Path]:
    """Folders searched for models by name: the user's own, the checkout's or the wheel's."""
    package = Path(__file__).resolve().parent
    candidates = [own_folder(), package / "checkpoints", package.parent / "checkpoints"]
    return [folder for folder in candidates if folder.is_dir()]


def installed() -> Iterator[Checkpoint]:
    """Every readable checkpoint in the model folders, the first folder's first.

    A folder that holds something else, or half of a model, is named on standard error, once, and passed over.
    """
    for root in model_folders():
        for folder in sorted(path.parent for path in root.glob(f"*/{CONFIG_NAME}")):
            try:
                yield open_checkpoint(folder)
            except Q2D2Error as error:
                pass_over(str(error))


@cache
def pass_over(reason: str) -> None:
    """Say, once, why a folder of models is not used."""
    report(f"passed over: {reason}")


def available() -> list[Checkpoint]:
    """Every readable checkpoint in the model folders, by name; of two with the same name the first."""
    found: dict[str, Checkpoint] = {}
    for checkpoint in installed():
        found.setdefault(checkpoint.folder.name, checkpoint)
    return [found[name] for name in sorted(found)]


def names() -> list[str]:
    """Names of the models in the model folders, with and without their version; none is opened, so it is quick."""
    folders = {path.parent.name for root in model_folders() for path in root.glob(f"*/{CONFIG_NAME}")}
    return sorted(folders | {version(name)[0] for name in folders})


def version(name: str) -> tuple[str, int]:
    """A model's name without its version, and that: `speech-3k-v2` gives `("speech-3k", 2)`."""
    match = VERSION.fullmatch(name)
    return (match[1], int(match[2])) if match else (name, 1)


def newest(name: str) -> Checkpoint | None:
    """The newest version that is here of a model named without one; None if there is none."""
    here = [checkpoint for checkpoint in available() if version(checkpoint.folder.name)[0] == name]
    return max(here, key=lambda checkpoint: version(checkpoint.folder.name)[1], default=None)


def whereabouts(weights: bytes) -> str:
    """How to come by earlier weights of this project with that fingerprint, in words; "" if they are none of its."""
    for root in model_folders():
        if (root / EARLIER_NAME).is_file():
            entry = json.loads((root / EARLIER_NAME).read_text(encoding="utf-8")).get(weights.hex())
            if entry is not None:
                revision, folder = entry["revision"], entry["folder"]
                return (
                    f"in a clone of q2d2, git fetch --depth 1 origin {revision} && git archive {revision} {folder} | "
                    "tar x -C DIR, and set Q2D2_MODELS to DIR/checkpoints"
                )
    return ""


def find(name: str) -> Checkpoint:
    """A checkpoint by model name, by folder, or by Hugging Face Hub id (`owner/name`, `owner/name@revision`).

    A name without a version stands for the newest version that is here.

    Raises:
        UsageError: if there is none; the message says what is here and how to get more.
        Q2D2Error: if it is there but broken.
    """
    folder = Path(name)
    if (folder / CONFIG_NAME).is_file():
        return open_checkpoint(folder)
    broken: Q2D2Error | None = None
    for root in model_folders():
        if (root / name / CONFIG_NAME).is_file():
            try:
                checkpoint = open_checkpoint(root / name)
            except Q2D2Error as error:
                broken = broken or error
                continue
            if broken:
                pass_over(str(broken))
            return checkpoint
    if (latest := newest(name)) is not None:
        if broken:
            pass_over(str(broken))
        return latest
    if broken:
        raise broken
    if hub.is_id(name) and not folder.exists():
        return fetch(name)
    here = ", ".join(checkpoint.config.name for checkpoint in available()) or "none"
    raise UsageError(
        f"no model {name!r} here (available: {here}): name one of these, a folder with {CONFIG_NAME} and "
        f"{WEIGHTS_NAME}, or a Hub id such as owner/name"
    )


def find_weights(name: str, wanted: bytes) -> Checkpoint:
    """The checkpoint with this fingerprint, in any model folder or the Hub's cache, or else one that decodes its files.

    Returns:
        The model of that name if there is neither.

    Raises:
        UsageError: if there is neither.
    """
    here = sorted(installed(), key=lambda checkpoint: checkpoint.folder.name != name)
    for checkpoint in here:
        if checkpoint.fingerprint() == wanted:
            return checkpoint
    fetched = [checkpoint for _, checkpoint in from_hub()]
    for checkpoint in fetched:
        if checkpoint.config.name == name and checkpoint.fingerprint() == wanted:
            return checkpoint
    heirs = [checkpoint for checkpoint in here + fetched if checkpoint.understands(wanted)]
    if heirs:
        return max(heirs, key=lambda checkpoint: version(checkpoint.config.name)[1])
    if here and here[0].folder.name == name:
        return here[0]
    try:
        return find(name)
    except UsageError as error:
        raise UsageError(f"{error}; {where}" if (where := whereabouts(wanted)) else str(error)) from error


def fetch(name: str, *, quiet: bool = False) -> Checkpoint:
    """A model of the Hugging Face Hub, by way of its cache; only the files of a model are fetched.

    Args:
        name: `owner/name`, or `owner/name@revision`.
        quiet: no progress bar.

    Raises:
        UsageError: if it cannot be had.
        Q2D2Error: if it does not come whole, or is no model of this project.
    """
    folder = hub.fetch(name, FILES, quiet=quiet)
    if not (folder / CONFIG_NAME).is_file():
        raise Q2D2Error(f"{name!r} on the Hub is no q2d2 model: it has no {CONFIG_NAME}")
    if not (folder / WEIGHTS_NAME).is_file():
        raise Q2D2Error(f"{name!r} on the Hub is no q2d2 model: it has no {WEIGHTS_NAME}, and nothing else is read")
    return open_checkpoint(folder)


def from_hub() -> Iterator[tuple[str, Checkpoint]]:
    """The models in the Hub's cache, with the names that `find` takes."""
    for name, folder in hub.snapshots():
        with contextlib.suppress(Q2D2Error):  # most that is there is no model of this project
            if (folder / CONFIG_NAME).is_file() and (folder / WEIGHTS_NAME).is_file():
                yield name, open_checkpoint(folder)


def push(checkpoint: Checkpoint, name: str, *, private: bool = False) -> str:
    """Upload a model to the Hugging Face Hub, in one commit.

    Args:
        checkpoint: with everything that belongs to it.
        name: `owner/name`; made if it is not there.
        private: whether it is then private.

    Returns:
        Hash of the commit.

    Raises:
        UsageError: if one may not write there.
        Q2D2Error: if a file cannot be read, or the upload fails.
    """
    files: dict[str, bytes | Path] = {}
    for path in sorted(checkpoint.folder.iterdir()):
        if any(path.match(pattern) for pattern in FILES):
            files[path.name] = path
    try:
        text = (checkpoint.folder / CARD_NAME).read_text(encoding="utf-8")
    except FileNotFoundError:
        text = f"# {checkpoint.config.name}\n"
    except (OSError, UnicodeDecodeError) as error:
        raise Q2D2Error(f"cannot read {checkpoint.folder / CARD_NAME}: {error}") from error
    files[CARD_NAME] = (text if text.startswith("---\n") else CARD_HEAD + text).encode()
    return hub.push(files, name, f"{checkpoint.config.name} {checkpoint.fingerprint().hex()}", private=private)


def open_checkpoint(folder: Path) -> Checkpoint:
    """Read and check `config.json`; the weights are not read yet."""
    from pydantic import ValidationError  # slow to import, and the command line asks this module for a name

    from q2d2cli.models.config import ModelConfig

    path = folder / CONFIG_NAME
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        lent = data.get("decoder_of")
        lender = None if lent is None else Lender(str(lent["model"]), bytes.fromhex(lent["fingerprint"]))
        decodes = {str(name): bytes.fromhex(mark) for name, mark in data.get("decodes", {}).items()}
        config = ModelConfig.model_validate(data["model"])
        coded_rate = None if (rate := data.get("coded_bit_rate")) is None else float(rate)
        done = data.get("sharpened")
        sharpened = None if done is None else Sharpened(float(done["amount"]), float(done["gain"]))
        checkpoint = Checkpoint(folder, config, data.get("metrics", {}), lender, decodes, coded_rate, sharpened)
    except OSError as error:
        raise Q2D2Error(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, ValidationError) as error:
        raise Q2D2Error(f"{path} does not describe a q2d2 model: {' '.join(str(error).split())[:200]}") from error
    if not checkpoint.weights.is_file():
        raise Q2D2Error(f"{folder} has no {WEIGHTS_NAME}: the model is incomplete, fetch it again")
    check_whole(checkpoint.weights)
    return checkpoint


def check_whole(weights: Path) -> None:
    """Raise Q2D2Error unless a safetensors file has the size that its header says; the tensors are not read."""
    try:
        size = weights.stat().st_size
        with weights.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if length < size else {}
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    except OSError as error:
        raise Q2D2Error(f"cannot read {weights}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise Q2D2Error(f"{weights} is damaged or not safetensors: fetch it again") from error
    if not ends or size != 8 + length + max(ends):
        raise Q2D2Error(f"{weights} is damaged or cut short: fetch it again")


def load(checkpoint: Checkpoint, device: torch.device | str = "cpu") -> CodecModel:
    """Build the model and load its weights (stored in 16 bits, computed in 32).

    Raises:
        UsageError: if a student's lender is not here.
        Q2D2Error: if the weights file is damaged or belongs to another architecture.
    """
    from q2d2cli.models.model import CodecModel
    from q2d2cli.models.precision import full_precision

    with full_precision():
        model = CodecModel(checkpoint.config).float()
    state = joined(checkpoint, read_safetensors)
    try:
        model.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    except RuntimeError as error:
        raise Q2D2Error(
            f"{checkpoint.weights} does not fit {CONFIG_NAME} beside it: {str(error).splitlines()[-1].strip()}"
        ) from error
    return model.to(device).eval()


def joined(checkpoint: Checkpoint, read: Callable[[Path], dict[str, T]]) -> dict[str, T]:
    """All weights of a model by name, those of an encoder alone with what its lender has.

    Args:
        checkpoint: the model.
        read: gives what a weights file holds.

    Raises:
        UsageError: if a student's lender is not here.
    """
    own = read(checkpoint.weights)
    if checkpoint.lender is None or not encoder_alone(own):
        return own
    # Of the lender's encoder nothing: it may have more layers.
    lent = read(checkpoint.whole().weights).items()
    return {name: value for name, value in lent if not name.startswith(ENCODING[0])} | own


def encoder_alone(names: Iterable[str]) -> bool:
    """Whether weights of these names are those that encode, to which a lender has the rest."""
    return all(name.startswith(ENCODING) for name in names)


def decoding_part(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint that a model's decoder is read from: itself, or a student's lender's; no weights are read.

    Raises:
        UsageError: if a student's lender is not here.
        Q2D2Error: if that is not what the student was made for, or the student's weights are damaged.
    """
    from safetensors import SafetensorError, safe_open

    if checkpoint.lender is None:
        return checkpoint
    try:
        with safe_open(checkpoint.weights, "np") as file:
            return checkpoint.whole() if encoder_alone(file.keys()) else checkpoint
    except (SafetensorError, OSError) as error:
        raise Q2D2Error(f"{checkpoint.weights} is damaged or not safetensors ({error}): fetch it again") from error


def save(
    folder: Path,
    config: ModelConfig,
    state: dict[str, torch.Tensor],
    *,
    half: bool = True,
    lender: Lender | None = None,
    decodes: dict[str, bytes] | None = None,
    sharpened: Sharpened | None = None,
) -> None:
    """Write `config.json` (without metrics) and `model.safetensors`, each atomically.

    Args:
        folder: to write to; made if missing.
        config: of the model.
        state: its weights; of a student, perhaps those of its encoder alone.
        half: whether parameters become 16-bit floats; buffers (a vector quantizer's statistics) stay as they are.
        lender: the model that quantizer and decoder are from, unchanged.
        decodes: other weights whose files the model decodes, as `Checkpoint.decodes`.
        sharpened: what was done to its decoder.

    Raises:
        Q2D2Error: if a weight is not finite in 16 bits, or the folder cannot be written to.
    """
    import torch
    from safetensors.torch import save as to_bytes

    from q2d2cli.models.model import CodecModel

    with torch.device("meta"):
        halved = {name for name, _ in CodecModel(config).named_parameters()} if half else set()
    stored = {}
    for name, tensor in state.items():
        stored[name] = to_store(tensor, half=name in halved)
        if not torch.isfinite(stored[name]).all():
            width = " in 16 bits" if half else ""
            raise Q2D2Error(f"weights {name} are not finite{width}: the model cannot be exported")
    make_folder(folder)
    with atomic_output(folder / WEIGHTS_NAME) as file:
        file.write(to_bytes(stored))
    write_config(Checkpoint(folder, config, {}, lender, decodes or {}, sharpened=sharpened))


def to_store(tensor: torch.Tensor, *, half: bool) -> torch.Tensor:
    """A tensor as a weights file holds it: on the CPU, contiguous, in 16 bits if `half`."""
    import torch

    return tensor.detach().to("cpu", torch.float16 if half else None).contiguous()


def save_discriminators(folder: Path, state: dict[str, torch.Tensor]) -> None:
    """Write the discriminators' weights beside a model, atomically, in 16 bits: they are there to be trained on."""
    from safetensors.torch import save as to_bytes

    stored = {}
    for name, tensor in state.items():
        half = to_store(tensor, half=tensor.is_floating_point())
        stored[name] = half if half.isfinite().all() else to_store(tensor, half=False)
    with atomic_output(folder / DISCRIMINATORS_NAME) as file:
        file.write(to_bytes(stored))


def load_discriminators(folder: Path) -> dict[str, torch.Tensor] | None:
    """The discriminators' weights beside a model, None if it has none.

    Raises:
        Q2D2Error: if the file is damaged.
    """
    path = folder / DISCRIMINATORS_NAME
    return read_safetensors(path) if path.is_file() else None


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file.

    Raises:
        Q2D2Error: if it cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise Q2D2Error(f"{path} is damaged or not safetensors ({error}): fetch it again") from error


def write_config(checkpoint: Checkpoint) -> None:
    """Write the `config.json` of `checkpoint.folder` atomically."""
    data: dict[str, Any] = {"model": checkpoint.config.model_dump(mode="json"), "metrics": checkpoint.metrics}
    if checkpoint.coded_rate is not None:
        data["coded_bit_rate"] = round(checkpoint.coded_rate, 1)
    if checkpoint.lender is not None:
        data["decoder_of"] = {"model": checkpoint.lender.model, "fingerprint": checkpoint.lender.fingerprint.hex()}
    if checkpoint.decodes:
        data["decodes"] = {name: mark.hex() for name, mark in checkpoint.decodes.items()}
    if checkpoint.sharpened is not None:
        data["sharpened"] = asdict(checkpoint.sharpened)
    with atomic_output(checkpoint.folder / CONFIG_NAME) as file:
        file.write((json.dumps(data, indent=2) + "\n").encode())
