"""Analysis by synthesis: better tokens for a signal than the encoder gives at once, searched through the decoder."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from q2d2cli.errors import Q2D2Error, UsageError
from q2d2cli.models.model import CodecModel
from q2d2cli.models.precision import full_precision
from q2d2cli.quantizers.q2d2 import Q2D2

if TYPE_CHECKING:
    from q2d2cli.losses import Spectra

STEP = 0.05
"""Largest change of a projection per round, before tanh; falls to nothing over the rounds."""
MOMENTA = (0.8, 0.95)
WEIGHTS = {"mel": 10.0, "stft": 150.0, "energy": 6.0, "lines": 10.0, "pesq": 1.0}
STFT_COMPRESSION = 0.6
REACH = 1024
"""Samples that the losses see on either side of one."""
SHORTEST = 0.5
"""Seconds; the losses need that much, and shorter signals are repeated."""


class Search:
    """Moves the projections that are snapped to the grids along the gradient of the losses training uses.

    The encoder cannot know what the decoder makes of its tokens, nor undo the error of one with the next. Descent
    through the frozen decoder can. Each channel is searched alone, the size of a step being its own everywhere.

    Args:
        model: with a two-dimensional quantizer.
        rounds: steps of Adam; each costs a pass through the decoder and back.
        on_round: called after each with the share of them that is done.

    Raises:
        UsageError: if the quantizer has no grids, or PyTorch's default type is not float32.
        Q2D2Error: if the packages that the losses need are not installed.
    """

    def __init__(self, model: CodecModel, rounds: int, on_round: Callable[[float], None] = lambda share: None) -> None:
        if not isinstance(model.quantizer, Q2D2):
            raise UsageError(f"no search with the quantizer {model.quantizer.spec.kind}: it needs grids, use effort 0")
        if torch.get_default_dtype() != torch.float32:
            raise UsageError(f"no search while PyTorch's default type is {torch.get_default_dtype()}: set float32")
        rate, device = model.config.sample_rate, next(model.parameters()).device
        # Tensors made inside inference_mode could not take part in a gradient.
        with torch.inference_mode(False):
            try:
                from q2d2cli.losses import ComplexStftLoss, EnergyLoss, LinesLoss, MelLoss, PesqLoss, Spectra

                losses = {
                    "mel": MelLoss(rate),
                    "stft": ComplexStftLoss(STFT_COMPRESSION, phase_only=True),
                    "energy": EnergyLoss(rate),
                    "lines": LinesLoss(rate),
                    "pesq": PesqLoss(rate),
                }
            except ImportError as error:
                raise Q2D2Error(f"an effort above 0 needs {error.name}: pip install 'q2d2[search]'") from error
            self.spectra = Spectra
            self.losses = {name: loss.to(device) for name, loss in losses.items()}
        self.model, self.quantizer, self.rounds, self.on_round = model, model.quantizer, rounds, on_round

    @property
    def context(self) -> int | None:
        """Frames on either side that the best token of one depends on, directly; None if unbounded."""
        encoder, decoder = self.model.encoder_context, self.model.decoder_context
        if encoder is None or decoder is None:
            return None
        return max(encoder, decoder + math.ceil(REACH / self.model.config.hop))

    def signal(self, audio: Tensor) -> Spectra:
        """`(batch, samples)` as the losses take it."""
        # Not filled with zeros: where both signals are 0, PESQ's disturbance has no finite gradient.
        times = math.ceil(SHORTEST * self.model.config.sample_rate / audio.shape[-1])
        return self.spectra(audio.repeat(1, times))

    def loss(self, estimate: Spectra, target: Spectra) -> Tensor:
        """Weighted sum of the losses."""
        return torch.stack([WEIGHTS[name] * loss(estimate, target) for name, loss in self.losses.items()]).sum()

    @full_precision()
    def __call__(self, audio: Tensor, known: Tensor) -> Tensor:
        """Search.

        Args:
            audio: `(batch, samples)` at the model's rate, whole frames.
            known: `(batch, n, pairs)` int64 indices of the first `n` frames, which stay.

        Returns:
            `(batch, frames, pairs)` int64 indices.
        """
        with torch.inference_mode(False), torch.enable_grad():
            audio = audio.clone()
            target = self.signal(audio)
            with torch.no_grad():
                projections = self.quantizer.project(self.model.encoder(audio))
                begin = self.quantizer.decode(known)
            projections.requires_grad_(True)
            optimizer = torch.optim.Adam([projections], betas=MOMENTA)
            for done in range(self.rounds):
                optimizer.param_groups[0]["lr"] = STEP * (1 - done / self.rounds)
                features = self.quantizer.snap(projections).features
                estimate = self.model.decoder(torch.cat([begin, features[:, known.shape[1] :]], dim=1))
                (gradient,) = torch.autograd.grad(self.loss(self.signal(estimate), target), projections)
                projections.grad = gradient.nan_to_num(0, 0, 0)
                optimizer.step()
                self.on_round((done + 1) / self.rounds)
            with torch.no_grad():
                indices = self.quantizer.snap(projections).indices
        return torch.cat([known, indices[:, known.shape[1] :]], dim=1)
