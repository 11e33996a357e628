"""Analysis by synthesis: better or cheaper tokens for a signal than the encoder gives, searched through the decoder."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from q2d2cli.container.coding.context import ContextModel
from q2d2cli.errors import Q2D2Error, UsageError
from q2d2cli.models.model import CodecModel
from q2d2cli.models.precision import full_precision
from q2d2cli.passes import Rate
from q2d2cli.quantizers.q2d2 import Q2D2

if TYPE_CHECKING:
    from q2d2cli.losses import Spectra

STEP = 0.05
"""Largest change of a projection per round, before tanh; falls to nothing over the rounds."""
MOMENTA = (0.8, 0.95)
WEIGHTS = {"mel": 10.0, "stft": 50.0, "energy": 6.0, "lines": 10.0, "pesq": 2.0}
SHIFTS = (0.0, 0.5)
"""Hops by which PESQ's frames are moved, in turn: in one place alone, tokens would fit these frames and no others."""
STFT_COMPRESSION = 0.6
REACH = 1024
"""Samples that the losses see on either side of one."""
SHORTEST = 0.5
"""Seconds; the losses need that much, and shorter signals are repeated."""
NEAR = 0.5
"""Deviation, in steps of the grid, of the points that a projection may still become as the rate term sees it."""


class Search:
    """Moves the projections that are snapped to the grids along the gradient of the losses training uses.

    The encoder cannot know what the decoder makes of its tokens, nor undo the error of one with the next. Descent
    through the frozen decoder can. Each channel is searched alone, the size of a step being its own everywhere.

    With a rate term it is rate-distortion optimization (Sullivan and Wiegand 1998): what the tokens take when they are
    entropy coded counts, too. The context model says what each point of a grid would cost, after the tokens as they
    are in this round; a projection is drawn to the cheap ones among the points near it.

    Args:
        model: with a two-dimensional quantizer.
        rounds: steps of Adam; each costs a pass through the decoder and back.
        on_round: called after each with the share of them that is done.
        rate: the rate term; None for the best tokens, whatever they cost.

    Raises:
        UsageError: if the quantizer has no grids, or PyTorch's default type is not float32.
        Q2D2Error: if the packages that the losses need are not installed.
    """

    def __init__(
        self,
        model: CodecModel,
        rounds: int,
        on_round: Callable[[float], None] = lambda share: None,
        rate: Rate | None = None,
    ) -> None:
        if not isinstance(model.quantizer, Q2D2):
            raise UsageError(f"no search with the quantizer {model.quantizer.spec.kind}: it needs grids, use effort 0")
        if torch.get_default_dtype() != torch.float32:
            raise UsageError(f"no search while PyTorch's default type is {torch.get_default_dtype()}: set float32")
        sample_rate, device = model.config.sample_rate, next(model.parameters()).device
        # Tensors made inside inference_mode could not take part in a gradient.
        with torch.inference_mode(False):
            try:
                from q2d2cli.losses import ComplexStftLoss, EnergyLoss, LinesLoss, MelLoss, PesqLoss, Spectra

                losses = {
                    "mel": MelLoss(sample_rate),
                    "stft": ComplexStftLoss(STFT_COMPRESSION, phase_only=True),
                    "energy": EnergyLoss(sample_rate),
                    "lines": LinesLoss(sample_rate),
                }
                pesq = PesqLoss(sample_rate)
            except ImportError as error:
                raise Q2D2Error(f"an effort above 0 needs {error.name}: pip install 'q2d2[search]'") from error
            self.spectra = Spectra
            self.losses = {name: loss.to(device) for name, loss in losses.items()}
            self.pesq = pesq.to(device)
        self.model, self.quantizer, self.rounds, self.on_round = model, model.quantizer, rounds, on_round
        self.rate = rate

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

    def loss(self, estimate: Spectra, target: Spectra, done: int) -> Tensor:
        """Weighted sum of the losses, in the round after so many."""
        total = WEIGHTS["pesq"] * self.pesq(estimate, target, SHIFTS[done % len(SHIFTS)])
        for name, loss in self.losses.items():
            total = total + WEIGHTS[name] * loss(estimate, target)
        return total

    def bits(self, values: Tensor, indices: Tensor, context: ContextModel) -> Tensor:
        """Mean bits per frame, with each pair taken as the points around it, the nearer the more likely.

        Args:
            values: `(batch, frames, d)` in steps of the grid, with a gradient; the last of the frames.
            indices: `(batch, all frames, pairs)`, what the context model sees.
            context: the context model.
        """
        total = values.new_zeros(())
        places = values.unflatten(-1, (self.quantizer.spec.num_indices, -1))
        for pair, costs in enumerate(context.bits(indices.cpu().numpy())):
            points = self.quantizer.grids[pair].points.to(values.device)
            known = torch.from_numpy(costs[:, costs.shape[1] - values.shape[1] :]).to(values.device)
            away = torch.cdist(places[..., pair, :].contiguous(), points).square()
            total = total + ((-away / (2 * NEAR**2)).softmax(dim=-1) * known).sum(dim=-1).mean()
        return total

    def on_arrays(self, audio: np.ndarray, known: np.ndarray) -> np.ndarray:
        """Search; everything as arrays."""
        device = next(self.model.parameters()).device
        return self(torch.from_numpy(audio).to(device), torch.from_numpy(known).to(device)).cpu().numpy()

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
                snapped = self.quantizer.snap(projections)
                estimate = self.model.decoder(torch.cat([begin, snapped.features[:, known.shape[1] :]], dim=1))
                loss = self.loss(self.signal(estimate), target, done)
                if self.rate is not None:
                    indices = torch.cat([known, snapped.indices[:, known.shape[1] :]], dim=1)
                    values = snapped.values[:, known.shape[1] :]
                    loss = loss + self.rate.weight * self.bits(values, indices, self.rate.context)
                (gradient,) = torch.autograd.grad(loss, projections)
                projections.grad = gradient.nan_to_num(0, 0, 0)
                optimizer.step()
                self.on_round((done + 1) / self.rounds)
            with torch.no_grad():
                indices = self.quantizer.snap(projections).indices
        return torch.cat([known, indices[:, known.shape[1] :]], dim=1)
