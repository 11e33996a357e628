"""Encoder distillation: a new encoder learns to give the codes of a trained model, under its quantizer and decoder."""

from __future__ import annotations

import torch
from torch import Tensor

from q2d2cli import checkpoints
from q2d2cli.checkpoints import LENT_KEYS, Lender
from q2d2cli.errors import UsageError
from q2d2cli.models.config import ModelConfig
from q2d2cli.models.model import CodecModel
from q2d2cli.quantizers.base import Quantized
from q2d2cli.training.config import difference

LENT = ("quantizer", "decoder")
"""Parts of the student that are the teacher's, frozen."""


class Teacher:
    """A trained model whose encoder is learnt from (after NeuCodec, Julian et al. 2025, section on distillation).

    Attributes:
        model: the network.
        lender: what the student's files name; a student's own lender if the teacher is one.

    Args:
        name: model name, folder or Hub id.
        config: the student's.
        device: where it runs.

    Raises:
        UsageError: if there is no such model, or the two differ in more than the encoder.
    """

    def __init__(self, name: str, config: ModelConfig, device: torch.device) -> None:
        checkpoint = checkpoints.find(name)
        theirs, mine = (c.model_dump(mode="json", include=set(LENT_KEYS)) for c in (checkpoint.config, config))
        if (change := difference(theirs, mine)) is not None:
            key, there, here = change
            raise UsageError(f"model.{key} is {here}, but {there} in teacher {name!r}: only the encoder may differ")
        self.model = checkpoints.load(checkpoint, device).requires_grad_(False)
        whole = checkpoint.whole()
        self.lender = Lender(whole.config.name, whole.fingerprint())

    def lend(self, student: CodecModel) -> None:
        """Copy the quantizer's and the decoder's weights to the student."""
        for part in LENT:
            getattr(student, part).load_state_dict(getattr(self.model, part).state_dict())

    @torch.no_grad()
    def quantize(self, audio: Tensor) -> Quantized:
        """What the teacher's quantizer gives for `(batch, samples)` audio."""
        return self.model.quantizer(self.model.encoder(self.model.pad(audio)))


def agreement(student: Tensor, teacher: Tensor) -> tuple[float, list[float]]:
    """How often two encoders give the same codes.

    Args:
        student: `(..., pairs)` indices.
        teacher: the other's, of the same shape.

    Returns:
        Share of frames in which all indices (so the token) are equal, and that of each pair, in [0, 1].
    """
    same = (student == teacher).flatten(0, -2)
    return same.all(-1).double().mean().item(), same.double().mean(0).tolist()
