"""Reconstruction losses: what training minimizes, and the search for tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
import torchaudio
from torch import Tensor, nn

LOG_FLOOR = 1e-5
EDGE = 1024
"""Samples."""
AUDIBLE_RMS = 1e-3
"""PESQ brings every signal to the same level; quieter ones than this have none to bring."""


def stft(audio: Tensor, window: Tensor) -> Tensor:
    """`(batch, samples)` to `(batch, frames, bins)` complex spectrum at a hop of a quarter window.

    Beyond its ends the signal is mirrored. Zeros there would be a step, and a model could learn to answer with a click.
    """
    n_fft = len(window)
    audio = F.pad(audio.unsqueeze(1), (n_fft // 2, n_fft // 2), mode="reflect").squeeze(1)
    return torch.fft.rfft(audio.unfold(-1, n_fft, n_fft // 4) * window)


def wide_bands(sample_rate: int) -> Tensor:
    """`(1025, 8)` weights of eight mel bands over the bins of windows of 2048 samples, for levels."""
    return torchaudio.functional.melscale_fbanks(1025, 0.0, sample_rate / 2, 8, sample_rate)


class BandLoss(nn.Module):
    """L1 between natural-log spectrograms in bands, at several resolutions, averaged.

    Args:
        banks: `(bins, bands)` weights of the bands, one per resolution; the window has twice as many samples as bins,
            less two.
        exponent: of the magnitudes that a band adds up; its logarithm is divided by it again.
    """

    def __init__(self, banks: Sequence[Tensor], exponent: int = 1) -> None:
        super().__init__()
        self.count, self.exponent = len(banks), exponent
        for i, bank in enumerate(banks):
            self.register_buffer(f"bank_{i}", bank, persistent=False)
            self.register_buffer(f"window_{i}", torch.hann_window(2 * len(bank) - 2), persistent=False)

    def forward(self, estimate: Tensor, target: Tensor) -> Tensor:
        """Two `(batch, samples)` signals to a scalar."""
        total = estimate.new_zeros(())
        for i in range(self.count):
            window, bank = getattr(self, f"window_{i}"), getattr(self, f"bank_{i}")
            bands = []
            for audio in (estimate, target):
                spectrum = stft(audio, window)
                power = (spectrum.real.square() + spectrum.imag.square() + 1e-12) ** (self.exponent / 2)
                bands.append((power @ bank).clamp(min=LOG_FLOOR**self.exponent).log() / self.exponent)
            total = total + F.l1_loss(bands[0], bands[1])
        return total / self.count


class MelLoss(BandLoss):
    """In mel bands, at four resolutions from 2048 samples and 128 bands to 256 and 24."""

    def __init__(self, sample_rate: int) -> None:
        top = sample_rate / 2
        super().__init__(
            [
                torchaudio.functional.melscale_fbanks(n_fft // 2 + 1, 0.0, top, bands, sample_rate)
                for n_fft, bands in ((2048, 128), (1024, 80), (512, 48), (256, 24))
            ]
        )


class EnergyLoss(BandLoss):
    """Of the energy in eight wide mel bands, windows of 2048 samples.

    A decoder that is right about log magnitudes in the middle flattens what it is not sure of, peaks above all, and
    so loses level: half a neper of doubt costs 2 dB. The energy of many bins together is sure enough to hold it.
    """

    def __init__(self, sample_rate: int) -> None:
        super().__init__([wide_bands(sample_rate)], exponent=2)


class LevelLoss(nn.Module):
    """Of the energy of a whole signal in eight wide mel bands.

    What is unsure window by window settles below the mean, and `EnergyLoss` hardly minds: half a decibel too few in all
    of them adds little to errors that are there anyway. Over a second the energy of a band is sure, and nothing but
    a wrong level is left to see. Bands too faint to matter beside the others do not count.
    """

    bank: Tensor
    window: Tensor
    FAINT = 1e-4
    """Share of the signal's energy."""

    def __init__(self, sample_rate: int) -> None:
        super().__init__()
        self.register_buffer("bank", wide_bands(sample_rate), persistent=False)
        self.register_buffer("window", torch.hann_window(2048), persistent=False)

    def forward(self, estimate: Tensor, target: Tensor) -> Tensor:
        """Two `(batch, samples)` signals to a scalar, nepers."""
        spectra = [stft(audio, self.window) for audio in (estimate, target)]
        energies = [(s.real.square() + s.imag.square()).mean(1) @ self.bank for s in spectra]
        floor = self.FAINT * energies[1].sum(-1, keepdim=True) + LOG_FLOOR
        return F.l1_loss((energies[0] + floor).log(), (energies[1] + floor).log()) / 2


class LinesLoss(nn.Module):
    """Squared difference of autocorrelations at the worst delay from 2 to 20 ms, in three bands above 2 kHz.

    Where a decoder does not know the phase it tends to repeat one, which makes lines: breath and hiss turn metallic.
    Losses of spectra prefer that to noise, which is never the noise of the recording, and above 4 kHz mel bands are
    wider than the lines' distance. The autocorrelation of long windows sees nothing else: near 1 with lines, near 0 in
    any noise. Before the square it is averaged over windows (a quarter of a second) and over bands, each
    1 kHz whitened, so that what noise has of it by chance is small. Counted is the delay where the signals differ
    most: the mean over all would hide one among hundreds.

    Args:
        sample_rate: Hz.
    """

    bands: Tensor
    basis: Tensor
    window: Tensor
    WINDOW, WINDOWS = 2048, 10
    GROUPS = ((2, 5), (5, 8), (8, 12))
    """Bands that count together, kHz."""

    def __init__(self, sample_rate: int) -> None:
        super().__init__()
        bins = torch.arange(self.WINDOW // 2 + 1)
        kilohertz = bins * sample_rate / self.WINDOW // 1000
        delays = torch.arange(sample_rate // 500, sample_rate // 50 + 1)
        waves = torch.cos(2 * torch.pi * bins[:, None] * delays / self.WINDOW)
        groups = [(kilohertz >= low) & (kilohertz < high) for low, high in self.GROUPS]
        shares = [group[:, None] / (high - low) for group, (low, high) in zip(groups, self.GROUPS, strict=True)]
        self.register_buffer("bands", F.one_hot(kilohertz.long()).float(), persistent=False)
        self.register_buffer("basis", torch.cat([waves * share for share in shares], dim=1), persistent=False)
        self.register_buffer("window", torch.hann_window(self.WINDOW), persistent=False)

    def correlations(self, audio: Tensor) -> Tensor:
        """`(batch, samples)` to `(batch, times, groups, delays)` in [-1, 1]."""
        spectrum = stft(audio, self.window)
        power = spectrum.real.square() + spectrum.imag.square() + LOG_FLOOR
        white = power / (power @ self.bands @ self.bands.T)
        count = min(self.WINDOWS, white.shape[1])
        averaged = F.avg_pool1d(white.transpose(1, 2), count, max(1, count // 2)).transpose(1, 2)
        return (averaged @ self.basis).unflatten(-1, (len(self.GROUPS), -1))

    def forward(self, estimate: Tensor, target: Tensor) -> Tensor:
        """Two `(batch, samples)` signals to a scalar."""
        return (self.correlations(estimate) - self.correlations(target)).square().amax(-1).mean()


class ComplexStftLoss(nn.Module):
    """L1 between complex spectra whose magnitudes are raised to a power; sees phase from the first step.

    A low power (0.3) makes quiet bins count. Where phase cannot be coded it also pulls the level
    down, since nothing is nearer than a wrong phase; a higher one (0.6) does so much less, and with `phase_only`
    nothing does: then the estimate's bins get the target's magnitudes, and only their phase counts.
    """

    def __init__(
        self, compression: float = 0.3, phase_only: bool = False, windows: Sequence[int] = (1024, 512, 256)
    ) -> None:
        super().__init__()
        self.compression, self.phase_only = compression, phase_only
        self.count = len(windows)
        for i, n_fft in enumerate(windows):
            window = torch.hann_window(n_fft)
            self.register_buffer(f"window_{i}", window / window.square().sum().sqrt(), persistent=False)

    def forward(self, estimate: Tensor, target: Tensor) -> Tensor:
        """Two `(batch, samples)` signals to a scalar."""
        total = estimate.new_zeros(())
        for i in range(self.count):
            spectra = [stft(audio, getattr(self, f"window_{i}")) for audio in (estimate, target)]
            powers = [spectrum.real.square() + spectrum.imag.square() + 1e-7 for spectrum in spectra]
            factors = [power ** ((self.compression - 1) / 2) for power in powers]
            if self.phase_only:
                factors[0] = powers[0] ** -0.5 * powers[1] ** (self.compression / 2)
            parts = [
                torch.stack([spectrum.real * factor, spectrum.imag * factor])
                for spectrum, factor in zip(spectra, factors, strict=True)
            ]
            total = total + F.l1_loss(parts[0], parts[1])
        return total / self.count


class PesqLoss(nn.Module):
    """Disturbance of wide-band PESQ (ITU-T P.862.2), symmetric and asymmetric, made differentiable by torch-pesq.

    Compares loudness in critical bands, after masking, and tells what is missing from what was added. It sees neither
    phase, nor level, nor anything above 8 kHz, so it needs the other losses beside it.
    """

    def __init__(self, sample_rate: int) -> None:
        super().__init__()
        from torch_pesq import PesqLoss as Disturbance  # slow to import

        self.disturbance = Disturbance(1.0, sample_rate)

    def forward(self, estimate: Tensor, target: Tensor) -> Tensor:
        """Two `(batch, samples)` signals to a scalar, about 4.5 less raw PESQ; near-silent ones count as equal."""
        estimate, target = estimate.float(), target.float()
        audible = [audio.detach().square().mean(-1, keepdim=True) > AUDIBLE_RMS**2 for audio in (estimate, target)]
        both = audible[0] & audible[1]
        # Any equal pair gives 0; a tone has the level that silence lacks.
        tone = torch.sin(torch.arange(target.shape[-1], device=target.device) * 0.25)
        # Its windows leave the ends out, and a model would learn to hide energy there: 43 ms of silence bring them in.
        pair = (F.pad(torch.where(both, audio, tone), (EDGE, EDGE)) for audio in (target, estimate))
        loss: Tensor = self.disturbance(*pair)
        return loss.mean().float()
