"""Reconstruction losses: what training minimizes, and the search for tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
import torchaudio
from torch import Tensor, nn

from q2d2cli.hearing import Hearing

LOG_FLOOR = 1e-5
PESQ_HOP = 0.016
"""Seconds from one of PESQ's frames to the next; each is two hops long."""
AUDIBLE_RMS = 1e-3
"""PESQ brings every signal to the same level; quieter ones than this have none to bring."""


def stft(audio: Tensor, window: Tensor) -> Tensor:
    """`(batch, samples)` to `(batch, frames, bins)` complex spectrum at a hop of a quarter window.

    Beyond its ends the signal is mirrored. Zeros there would be a step, and a model could learn to answer with a click.
    """
    n_fft = len(window)
    hop = n_fft // 4
    audio = F.pad(audio.unsqueeze(1), (n_fft // 2, n_fft // 2), mode="reflect").squeeze(1)
    count = (audio.shape[-1] - n_fft) // hop + 1
    # Four shifted copies of the hops: the gradient of `unfold` would add up sample by sample.
    hops = audio[:, : (count + 3) * hop].unflatten(-1, (-1, hop))
    return torch.fft.rfft(torch.cat([hops[:, i : i + count] for i in range(4)], dim=-1) * window)


class Spectra:
    """A signal and its spectra through Hann windows, each computed once however many losses look at it.

    Args:
        audio: `(batch, samples)`.
    """

    def __init__(self, audio: Tensor) -> None:
        self.audio = audio.float()
        self._complex: dict[int, Tensor] = {}
        self._power: dict[int, Tensor] = {}

    def complex(self, n_fft: int) -> Tensor:
        """`(batch, frames, bins)` through windows of `n_fft` samples, as `stft` gives it."""
        if n_fft not in self._complex:
            self._complex[n_fft] = stft(self.audio, torch.hann_window(n_fft, device=self.audio.device))
        return self._complex[n_fft]

    def power(self, n_fft: int) -> Tensor:
        """`(batch, frames, bins)`: the squared magnitudes."""
        if n_fft not in self._power:
            spectrum = self.complex(n_fft)
            self._power[n_fft] = spectrum.real.square() + spectrum.imag.square()
        return self._power[n_fft]


Signal = Tensor | Spectra
"""What losses compare: `(batch, samples)`, alone or with spectra that other losses have looked at."""


def spectra(signal: Signal) -> Spectra:
    """The spectra of a signal that may have none yet."""
    return signal if isinstance(signal, Spectra) else Spectra(signal)


def wide_bands(sample_rate: int) -> Tensor:
    """`(1025, 8)` weights of eight mel bands over the bins of windows of 2048 samples, for levels."""
    return torchaudio.functional.melscale_fbanks(1025, 0.0, sample_rate / 2, 8, sample_rate)


class BandLoss(nn.Module):
    """L1 between natural-log spectrograms in bands, at several resolutions, averaged.

    Args:
        banks: `(bins, bands)` weights of the bands, one per resolution; the window has twice as many samples as bins,
            less two.
        exponent: of the magnitudes that a band adds up, 1 or 2; its logarithm is divided by it again.
    """

    def __init__(self, banks: Sequence[Tensor], exponent: int = 1) -> None:
        super().__init__()
        self.count, self.exponent = len(banks), exponent
        for i, bank in enumerate(banks):
            self.register_buffer(f"bank_{i}", bank, persistent=False)

    def forward(self, estimate: Signal, target: Signal) -> Tensor:
        """Two `(batch, samples)` signals to a scalar."""
        losses = []
        for i in range(self.count):
            bank: Tensor = getattr(self, f"bank_{i}")
            bands = []
            for signal in (spectra(estimate), spectra(target)):
                power = signal.power(2 * len(bank) - 2)
                power = (power + 1e-12).sqrt() if self.exponent == 1 else power + 1e-12
                bands.append((power @ bank).clamp(min=LOG_FLOOR**self.exponent).log() / self.exponent)
            losses.append(F.l1_loss(bands[0], bands[1]))
        return torch.stack(losses).mean()


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
    FAINT = 1e-4
    """Share of the signal's energy."""

    def __init__(self, sample_rate: int) -> None:
        super().__init__()
        self.register_buffer("bank", wide_bands(sample_rate), persistent=False)

    def forward(self, estimate: Signal, target: Signal) -> Tensor:
        """Two `(batch, samples)` signals to a scalar, nepers."""
        energies = [spectra(signal).power(2048).mean(1) @ self.bank for signal in (estimate, target)]
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

    def correlations(self, signal: Signal) -> Tensor:
        """`(batch, samples)` to `(batch, times, groups, delays)` in [-1, 1]."""
        power = spectra(signal).power(self.WINDOW) + LOG_FLOOR
        white = power / (power @ self.bands @ self.bands.T)
        count = min(self.WINDOWS, white.shape[1])
        averaged = F.avg_pool1d(white.transpose(1, 2), count, max(1, count // 2)).transpose(1, 2)
        return (averaged @ self.basis).unflatten(-1, (len(self.GROUPS), -1))

    def forward(self, estimate: Signal, target: Signal) -> Tensor:
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
        self.compression, self.phase_only, self.windows = compression, phase_only, tuple(windows)

    def forward(self, estimate: Signal, target: Signal) -> Tensor:
        """Two `(batch, samples)` signals to a scalar."""
        losses = []
        for n_fft in self.windows:
            # As if the windows had unit energy.
            scale = (0.375 * n_fft) ** -0.5
            signals = spectra(estimate), spectra(target)
            powers = [scale**2 * signal.power(n_fft) + 1e-7 for signal in signals]
            factors = [scale * power ** ((self.compression - 1) / 2) for power in powers]
            if self.phase_only:
                factors[0] = scale * powers[0].rsqrt() * powers[1] ** (self.compression / 2)
            (a, b), (x, y) = (signal.complex(n_fft) for signal in signals), factors
            losses.append(((a.real * x - b.real * y).abs().mean() + (a.imag * x - b.imag * y).abs().mean()) / 2)
        return torch.stack(losses).mean()


class WordsLoss(nn.Module):
    """L1 between the hidden layers of a frozen speech recognizer, relative to each channel's spread in the recording.

    It hears what makes words, phonemes above all, where spectra see every bin alike.

    Args:
        hearing: the recognizer's encoder.
    """

    def __init__(self, hearing: Hearing) -> None:
        super().__init__()
        self.hearing = hearing

    def forward(self, estimate: Signal, target: Signal) -> Tensor:
        """Two `(batch, samples)` signals to a scalar."""
        with torch.no_grad():
            wanted = self.hearing(spectra(target).audio)
        return self.compare(self.hearing(spectra(estimate).audio), wanted)

    @staticmethod
    def compare(heard: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
        """The same from hidden layers, `(batch, frames, dim)` each."""
        losses = []
        for mine, theirs in zip(heard, wanted, strict=True):
            theirs = theirs.float()
            spread = theirs.std(dim=(0, 1), correction=0) + 1e-3
            losses.append(((mine.float() - theirs).abs() / spread).mean())
        return torch.stack(losses).mean()


class PesqLoss(nn.Module):
    """Disturbance of wide-band PESQ (ITU-T P.862.2), symmetric and asymmetric, made differentiable by torch-pesq.

    Compares loudness in critical bands, after masking, and tells what is missing from what was added. It sees neither
    phase, nor level, nor anything above 8 kHz, so it needs the other losses beside it.
    """

    def __init__(self, sample_rate: int) -> None:
        super().__init__()
        from torch_pesq import PesqLoss as Disturbance  # slow to import

        self.hop = PESQ_HOP * sample_rate
        self.disturbance = Disturbance(1.0, sample_rate)

    def forward(self, estimate: Signal, target: Signal, shift: float = 0.0) -> Tensor:
        """Two `(batch, samples)` signals to a scalar, about 4.5 less raw PESQ; near-silent ones count as equal.

        Args:
            estimate: the decoded signal.
            target: the recorded one.
            shift: hops, below 1, by which frames begin earlier than the standard's, which start with the signal.
        """
        decoded, original = spectra(estimate).audio, spectra(target).audio
        audible = [audio.detach().square().mean(-1, keepdim=True) > AUDIBLE_RMS**2 for audio in (decoded, original)]
        both = audible[0] & audible[1]
        # Any equal pair gives 0; a tone has the level that silence lacks.
        tone = torch.sin(torch.arange(original.shape[-1], device=original.device) * 0.25)
        # Its windows leave the ends out, and a model would learn to hide energy there: silence brings them in.
        edges = round((3 + shift) * self.hop), round(3 * self.hop)
        pair = (F.pad(torch.where(both, audio, tone), edges) for audio in (original, decoded))
        loss: Tensor = self.disturbance(*pair)
        return loss.mean().float()
