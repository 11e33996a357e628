"""Files of context models: written, read, and found by the fingerprint that a .q2d's header carries."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np

from q2d2cli.checkpoints import CONTEXT_NAME, CONTEXTS, FINGERPRINT_BYTES, Checkpoint, model_folders
from q2d2cli.container.coding.context import ContextModel
from q2d2cli.container.coding.recurrent import RecurrentModel
from q2d2cli.container.coding.tables import TableModel
from q2d2cli.container.header import FormatError
from q2d2cli.errors import Q2D2Error
from q2d2cli.files import atomic_output

FORMAT = "q2d2 context model 1"
"""Another arithmetic gets another number."""
Kind = Literal["static", "adaptive", "recurrent"]

KINDS: dict[Kind, Callable[[dict[str, np.ndarray]], ContextModel]] = {
    "static": TableModel,
    "adaptive": TableModel,
    "recurrent": RecurrentModel,
}

_folders: list[Path] = []


def save(path: Path, kind: Kind, tensors: dict[str, np.ndarray], weights: bytes) -> None:
    """Write a context model, atomically.

    Args:
        path: of the file.
        kind: of model.
        tensors: what the model takes.
        weights: fingerprint of the codec model whose tokens it expects.
    """
    from safetensors.numpy import save as to_bytes

    metadata = {"format": FORMAT, "kind": kind, "weights": weights.hex()}
    with atomic_output(path) as file:
        file.write(to_bytes(dict(sorted(tensors.items())), metadata))


def load(path: Path) -> ContextModel:
    """Read a context model.

    Raises:
        Q2D2Error: if it cannot be read, is damaged or is for a newer q2d2.
    """
    try:
        status = path.stat()
        return _load(path, status.st_mtime_ns, status.st_size)
    except OSError as error:
        raise Q2D2Error(f"cannot read {path}: {error.strerror}") from error


@lru_cache(maxsize=16)
def _load(path: Path, changed: int, size: int) -> ContextModel:
    """`load`, once for each version of a file."""
    from safetensors import SafetensorError
    from safetensors.numpy import load as from_bytes

    data = path.read_bytes()
    try:
        tensors = from_bytes(data)
        metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        if metadata["format"] != FORMAT:
            raise Q2D2Error(f"{path} holds a {metadata['format']!r}, and this q2d2 reads {FORMAT!r}: upgrade q2d2")
        model = KINDS[metadata["kind"]](tensors)
        model.weights = bytes.fromhex(metadata["weights"])
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise Q2D2Error(f"{path} is damaged or no context model ({reason}): fetch it again") from error
    model.fingerprint = hashlib.sha256(data).digest()[:FINGERPRINT_BYTES]
    return model


def open_folder(folder: Path, weights: bytes) -> ContextModel | None:
    """The context model in a model's folder, None if there is none or it is for other weights.

    From now on `find` and `find_for` look in that folder, too, wherever it is.

    Args:
        folder: of the model.
        weights: fingerprint of the model.

    Raises:
        Q2D2Error: if it is damaged.
    """
    path = folder / CONTEXT_NAME
    if not path.exists():
        return None
    model = load(path)
    if folder not in _folders:
        _folders.append(folder)
    return model if model.weights == weights else None


def open_for(checkpoint: Checkpoint) -> ContextModel | None:
    """The context model for a model's tokens: the one in its folder, or a student's lender's; None if there is none.

    Raises:
        Q2D2Error: if it is damaged.
    """
    if checkpoint.lender is None:
        return open_folder(checkpoint.folder, checkpoint.fingerprint())
    return find_for(checkpoint.lender.fingerprint)


def find(fingerprint: bytes, name: str) -> ContextModel:
    """The context model that a file names.

    Args:
        fingerprint: of the context model.
        name: of the model that the file was encoded with; for the message.

    Raises:
        FormatError: if it is not here.
    """
    for model in here():
        if model.fingerprint == fingerprint:
            return model
    raise FormatError(
        f"needs the context model {fingerprint.hex()} of model {name!r}, which is not here: put the {CONTEXT_NAME} "
        "that it was encoded with into the model's folder, or name a folder that has it with --model"
    )


def find_for(weights: bytes) -> ContextModel | None:
    """The context model made for a codec model's tokens, None if it is not here.

    Args:
        weights: fingerprint of the codec model.
    """
    return next((model for model in here() if model.weights == weights), None)


def here() -> Iterator[ContextModel]:
    """All context models in models' folders; damaged ones are passed over, as somebody else's business."""
    paths = [path for folder in _folders for path in sorted(folder.glob(CONTEXTS))]
    paths += [path for root in model_folders() for path in sorted(root.glob(f"*/{CONTEXTS}"))]
    for path in paths:
        with contextlib.suppress(Q2D2Error):
            yield load(path)
