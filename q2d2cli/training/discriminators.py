"""Multi-scale complex STFT discriminator (after EnCodec's, smaller)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from q2d2cli.training.losses import stft


class StftDiscriminator(nn.Module):
    """Two-dimensional convolutions over one complex STFT."""

    window: Tensor

    def __init__(self, n_fft: int, channels: int) -> None:
        super().__init__()
        window = torch.hann_window(n_fft)
        self.register_buffer("window", window / window.square().sum().sqrt(), persistent=False)
        shapes = [
            (2, channels, 1),
            (channels, channels, 1),
            (channels, 2 * channels, 2),
            (2 * channels, 2 * channels, 4),
        ]
        self.layers = nn.ModuleList(
            weight_norm(nn.Conv2d(a, b, (3, 7), stride=(1, 2), dilation=(d, 1), padding=(d, 3))) for a, b, d in shapes
        )
        self.layers.append(weight_norm(nn.Conv2d(2 * channels, 2 * channels, (3, 3), padding=(1, 1))))
        self.out = weight_norm(nn.Conv2d(2 * channels, 1, (3, 3), padding=(1, 1)))

    def forward(self, audio: Tensor) -> tuple[Tensor, list[Tensor]]:
        """`(batch, samples)` to scores `(batch, 1, frames, bins)` and the hidden layers."""
        with torch.autocast(audio.device.type, enabled=False):
            spectrum = stft(audio.float(), self.window)
            # Compressed, so that quiet parts count too.
            power = spectrum.real.square() + spectrum.imag.square()
            factor = (power + 1e-7) ** -0.35
            x = torch.stack([spectrum.real * factor, spectrum.imag * factor], dim=1)
        hidden = []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
            hidden.append(x)
        return self.out(x), hidden


class MultiScaleStftDiscriminator(nn.Module):
    """One `StftDiscriminator` for each window length."""

    def __init__(self, windows: Sequence[int], channels: int) -> None:
        super().__init__()
        self.scales = nn.ModuleList(StftDiscriminator(n_fft, channels) for n_fft in windows)

    def forward(self, audio: Tensor) -> tuple[list[Tensor], list[list[Tensor]]]:
        """`(batch, samples)` to the scales' scores and hidden layers."""
        scores, hidden = zip(*(scale(audio) for scale in self.scales), strict=True)
        return list(scores), list(hidden)
