"""Discriminators: complex STFT, period, resolution, band and frame, each of several scales and with its weight."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from q2d2cli.losses import stft
from q2d2cli.models.blocks import ConvNeXtBlock, init_weights
from q2d2cli.training.config import DiscriminatorConfig

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


class StftDiscriminator(nn.Module):
    """Convolutions over one complex, magnitude-compressed STFT (after EnCodec's, smaller)."""

    window: Tensor

    def __init__(self, n_fft: int, channels: int) -> None:
        super().__init__()
        window = torch.hann_window(n_fft)
        self.register_buffer("window", window / window.square().sum().sqrt(), persistent=False)
        c = channels
        shapes = [(2, c, 1), (c, c, 1), (c, 2 * c, 2), (2 * c, 2 * c, 4)]
        layers = [conv(a, b, (3, 7), (1, 2), (d, 1)) for a, b, d in shapes] + [conv(2 * c, 2 * c, (3, 3))]
        self.stack = Stack(layers, conv(2 * c, 1, (3, 3)))

    def forward(self, audio: Tensor) -> Judgement:
        """`(batch, samples)` to scores `(batch, 1, frames, bins)` and hidden layers."""
        with torch.autocast(audio.device.type, enabled=False):
            spectrum = stft(audio.float(), self.window)
            # Compressed, so that quiet parts count too.
            factor = (spectrum.real.square() + spectrum.imag.square() + 1e-7) ** -0.35
            x = torch.stack([spectrum.real * factor, spectrum.imag * factor], dim=1)
        return self.stack(x)


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


class FrameDiscriminator(nn.Module):
    """ConvNeXt blocks over the frames of one log-magnitude STFT: the decoder's own blocks, quick where it is quick.

    Two-dimensional convolutions repeat the same small filter at every bin; matrices that see whole spectra do as many
    operations many times faster on a CPU.
    """

    window: Tensor
    LAYERS = 4
    KERNEL = 5

    def __init__(self, n_fft: int, width: int) -> None:
        super().__init__()
        window = torch.hann_window(n_fft)
        self.register_buffer("window", window / window.square().sum().sqrt(), persistent=False)
        self.embed = nn.Linear(n_fft // 2 + 1, width)
        self.norm = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(
            ConvNeXtBlock(width, 2 * width, self.KERNEL, 1 / self.LAYERS) for _ in range(self.LAYERS)
        )
        self.out = nn.Linear(width, 1)
        self.apply(init_weights)

    def forward(self, audio: Tensor) -> Judgement:
        """`(batch, samples)` to scores `(batch, frames, 1)` and hidden layers."""
        with torch.autocast(audio.device.type, enabled=False):
            spectrum = stft(audio.float(), self.window)
            level = torch.log(spectrum.real.square() + spectrum.imag.square() + 1e-7) / 8 + 1
        x = self.norm(self.embed(level))
        hidden = []
        for block in self.blocks:
            x = block(x)
            hidden.append(x)
        return self.out(F.leaky_relu(x, SLOPE)), hidden


class Discriminators(nn.Module):
    """All discriminators that a configuration gives a weight.

    Attributes:
        weights: of each discriminator's family, by name.
    """

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        families: dict[str, tuple[float, list[nn.Module]]] = {
            "stft": (config.stft.weight, [StftDiscriminator(n, config.stft.channels) for n in config.stft.windows]),
            "period": (
                config.period.weight,
                [PeriodDiscriminator(n, config.period.channels) for n in config.period.periods],
            ),
            "resolution": (
                config.resolution.weight,
                [ResolutionDiscriminator(n, config.resolution.channels) for n in config.resolution.windows],
            ),
            "band": (config.band.weight, [BandDiscriminator(n, config.band.channels) for n in config.band.windows]),
            "frame": (config.frame.weight, [FrameDiscriminator(n, config.frame.width) for n in config.frame.windows]),
        }
        self.weights = {name: weight for name, (weight, _) in families.items() if weight}
        self.families = nn.ModuleDict({name: nn.ModuleList(families[name][1]) for name in self.weights})

    def forward(self, audio: Tensor) -> Judgements:
        """`(batch, samples)` to the judgements of each family's members."""
        judgements = {}
        for name, family in self.families.items():
            assert isinstance(family, nn.ModuleList)
            judgements[name] = [member(audio) for member in family]
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
