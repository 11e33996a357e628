"""Discriminators of waveforms (period, resolution, band), and heads on a recognizer's hidden layers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from q2d2cli.losses import Spectra, stft
from q2d2cli.training.config import DiscriminatorConfig, FamilyConfig

SLOPE = 0.2
Judgement = tuple[Tensor, list[Tensor]]
"""Scores, and the hidden layers that led to them."""
Judgements = dict[str, list[Judgement]]
"""Those of each member of each family, by the family's name."""


def conv(
    channels_in: int,
    channels_out: int,
    kernel: tuple[int, int],
    stride: tuple[int, int] = (1, 1),
    dilation: tuple[int, int] = (1, 1),
) -> nn.Module:
    """Weight-normalised two-dimensional convolution that keeps the size but for its stride."""
    padding = ((kernel[0] - 1) * dilation[0] // 2, (kernel[1] - 1) * dilation[1] // 2)
    return weight_norm(nn.Conv2d(channels_in, channels_out, kernel, stride, padding, dilation))


class Stack(nn.Module):
    """Convolutions with leaky ReLUs and a last one to one channel."""

    def __init__(self, layers: Sequence[nn.Module], out: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.out = out

    def forward(self, x: Tensor) -> Judgement:
        """`(batch, channels, height, width)` to scores and hidden layers."""
        hidden = []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), SLOPE)
            hidden.append(x)
        return self.out(x), hidden


class PeriodDiscriminator(nn.Module):
    """Convolutions over every `period`-th sample (HiFi-GAN)."""

    def __init__(self, period: int, channels: int) -> None:
        super().__init__()
        self.period = period
        widths = [1, channels, 4 * channels, 16 * channels, 32 * channels]
        layers = [conv(a, b, (5, 1), (3, 1)) for a, b in pairwise(widths)]
        layers.append(conv(widths[-1], widths[-1], (5, 1)))
        self.stack = Stack(layers, conv(widths[-1], 1, (3, 1)))

    def forward(self, audio: Tensor) -> Judgement:
        """`(batch, samples)` to scores and hidden layers."""
        missing = -audio.shape[-1] % self.period
        padded = F.pad(audio.unsqueeze(1), (0, missing), mode="reflect")
        return self.stack(padded.unflatten(-1, (-1, self.period)))


class ResolutionDiscriminator(nn.Module):
    """Convolutions over one magnitude STFT (UnivNet, Vocos)."""

    window: Tensor

    def __init__(self, n_fft: int, channels: int) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)
        c = channels
        layers = [conv(1, c, (7, 5), (2, 2)), conv(c, c, (5, 3), (2, 1)), conv(c, c, (5, 3), (2, 2))]
        layers += [conv(c, c, (3, 3), (2, 1)), conv(c, c, (3, 3), (2, 2))]
        self.stack = Stack(layers, conv(c, 1, (3, 3)))

    def forward(self, audio: Tensor) -> Judgement:
        """`(batch, samples)` to scores and hidden layers."""
        with torch.autocast(audio.device.type, enabled=False):
            spectrum = stft(audio.float(), self.window)
            magnitude = (spectrum.real.square() + spectrum.imag.square() + 1e-12).sqrt()
        return self.stack(magnitude.transpose(1, 2).unsqueeze(1))


class BandDiscriminator(nn.Module):
    """Convolutions over each of five bands of one complex STFT (DAC)."""

    window: Tensor
    BANDS = ((0.0, 0.1), (0.1, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.0))

    def __init__(self, n_fft: int, channels: int) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)
        bins = n_fft // 2 + 1
        self.edges = [(int(a * bins), int(b * bins)) for a, b in self.BANDS]
        c = channels
        self.stacks = nn.ModuleList(
            Stack(
                [conv(2, c, (3, 9)), *(conv(c, c, (3, 9), (1, 2)) for _ in range(3)), conv(c, c, (3, 3))],
                nn.Identity(),
            )
            for _ in self.edges
        )
        self.out = conv(c, 1, (3, 3))

    def forward(self, audio: Tensor) -> Judgement:
        """`(batch, samples)` to scores and the hidden layers of all bands."""
        with torch.autocast(audio.device.type, enabled=False):
            # DAC's normalisation: level must not give a fake away.
            audio = audio - audio.mean(-1, keepdim=True)
            audio = 0.8 * audio / (audio.abs().amax(-1, keepdim=True) + 1e-9)
            spectrum = torch.view_as_real(stft(audio.float(), self.window)).movedim(-1, 1)
        judged = [stack(spectrum[..., a:b]) for stack, (a, b) in zip(self.stacks, self.edges, strict=True)]
        return self.out(torch.cat([last for last, _ in judged], dim=-1)), [h for _, hidden in judged for h in hidden]


class Head(nn.Module):
    """Three convolutions over the frames of one hidden layer.

    Args:
        dim: width of the layer.
        width: of the head.
    """

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.conv_in = nn.Conv1d(dim, width, 3, padding=1)
        self.conv = nn.Conv1d(width, width, 3, padding=2, dilation=2)
        self.out = nn.Conv1d(width, 1, 3, padding=1)

    def forward(self, hidden: Tensor) -> Tensor:
        """`(batch, frames, dim)` to scores `(batch, frames)`."""
        x = self.norm(hidden).transpose(1, 2)
        for layer in (self.conv_in, self.conv):
            x = F.leaky_relu(layer(x), SLOPE)
        return self.out(x)[:, 0]


class Heads(nn.Module):
    """A discriminator on what a frozen network hears (after Sauer et al. 2021, Projected GANs converge faster).

    Whoever must learn to hear first is soon behind; these hear from the first step.

    Args:
        dims: widths of the layers.
        width: of the heads.
    """

    def __init__(self, dims: Sequence[int], width: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(Head(dim, width) for dim in dims)

    def forward(self, layers: Sequence[Tensor]) -> list[Tensor]:
        """Hidden layers, `(batch, frames, dim)` each, to scores, `(batch, frames)` each."""
        return [head(layer) for head, layer in zip(self.heads, layers, strict=True)]

    @staticmethod
    def loss(scores: Sequence[Tensor]) -> Tensor:
        """Hinge loss, mean over layers, from scores of batches whose first half is real and whose second is not."""
        losses = []
        for score in scores:
            real, fake = score.chunk(2)
            losses.append(F.relu(1 - real).mean() + F.relu(1 + fake).mean())
        return torch.stack(losses).mean()

    @staticmethod
    def generator_loss(fake: Sequence[Tensor]) -> Tensor:
        """Minus the mean score."""
        return -torch.stack([score.mean() for score in fake]).mean()


class Families(nn.ModuleDict):
    """Discriminators of waveforms by family."""

    def forward(self, audio: Tensor) -> Judgements:
        """`(batch, samples)` to the judgements of each family's members."""
        return {name: [member(audio) for member in family] for name, family in self.items()}  # type: ignore[attr-defined]


class Discriminators(nn.Module):
    """All discriminators that a configuration trains.

    Args:
        config: with their weights.
        heard: widths of the recognizer's hidden layers; needed for heads.

    Attributes:
        weights: of each family of discriminators of waveforms, by name.
        features: heads on hidden layers and log spectra, None if they have no weight.
    """

    def __init__(self, config: DiscriminatorConfig, heard: Sequence[int] = ()) -> None:
        super().__init__()
        self.windows = config.features.windows
        dims = [*heard, *(window // 2 + 1 for window in self.windows)]
        self.features = Heads(dims, config.features.width) if config.features.weight else None
        families: dict[str, tuple[FamilyConfig, type[nn.Module]]] = {
            "period": (config.period, PeriodDiscriminator),
            "resolution": (config.resolution, ResolutionDiscriminator),
            "band": (config.band, BandDiscriminator),
        }
        trained = {name: family for name, family in families.items() if family[0].weight and config.start < 1}
        self.weights = {name: family.weight for name, (family, _) in trained.items()}
        self.families = Families(
            {
                name: nn.ModuleList(kind(size, family.channels) for size in family.sizes)
                for name, (family, kind) in trained.items()
            }
        )

    def layers(self, heard: Sequence[Tensor], signal: Spectra) -> list[Tensor]:
        """What the heads judge: hidden layers, `(batch, frames, dim)` each, and log spectra of the signal."""
        return [*heard, *(torch.log(signal.power(window) + 1e-5) for window in self.windows)]

    def forward(self, audio: Tensor) -> Judgements:
        """`(batch, samples)` to the judgements of each family's members."""
        judgements: Judgements = self.families(audio)
        return judgements

    def loss(self, real: Judgements, fake: Judgements) -> Tensor:
        """Hinge loss of the discriminators: mean over a family, weighted sum over families."""
        return self._sum(
            {
                name: [
                    F.relu(1 - r).mean() + F.relu(1 + f).mean()
                    for (r, _), (f, _) in zip(real[name], fake[name], strict=True)
                ]
                for name in self.weights
            }
        )

    def generator_loss(self, fake: Judgements) -> Tensor:
        """Hinge loss of the generator, combined like `loss`."""
        return self._sum({name: [F.relu(1 - score).mean() for score, _ in fake[name]] for name in self.weights})

    def feature_matching_loss(self, real: Judgements, fake: Judgements) -> Tensor:
        """L1 between hidden layers, each relative to the real layer's mean magnitude, combined like `loss`."""
        return self._sum(
            {
                name: [
                    ((r - f).abs().flatten(1).mean(1) / (r.abs().flatten(1).mean(1) + 1e-6)).mean()
                    for (_, reals), (_, fakes) in zip(real[name], fake[name], strict=True)
                    for r, f in zip(reals, fakes, strict=True)
                ]
                for name in self.weights
            }
        )

    def _sum(self, losses: dict[str, list[Tensor]]) -> Tensor:
        return torch.stack([self.weights[name] * torch.stack(values).mean() for name, values in losses.items()]).sum()
