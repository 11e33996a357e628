"""Spectral encoder: an STFT front end and ConvNeXt blocks. Learns much faster than SEANet."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from q2d2cli.models.blocks import ConvNeXtBlock, init_weights, narrow, part
from q2d2cli.models.config import SpectralEncoderConfig
from q2d2cli.models.packed import PackedLinear


class SpectralEncoder(nn.Module):
    """Log magnitude and compressed real and imaginary parts of an STFT, then ConvNeXt blocks.

    Frame `t` is centred on samples `t * hop ... (t + 1) * hop`. Beyond either end the signal counts
    as zero.

    Args:
        config: widths and depth.
        hop: samples per frame (token).
        out_dim: width of the output features.
    """

    window: Tensor

    def __init__(self, config: SpectralEncoderConfig, hop: int, out_dim: int) -> None:
        super().__init__()
        self.stride, self.tokens = config.stride, config.tokens
        self.hop = config.inner_hop(hop)
        self.n_fft = config.n_fft(hop)
        window = torch.hann_window(self.n_fft, dtype=torch.float32)
        self.register_buffer("window", window / window.square().sum().sqrt(), persistent=False)
        self.embed = PackedLinear(3 * (self.n_fft // 2 + 1), config.dim)
        self.norm = nn.LayerNorm(config.dim, eps=1e-6)
        self.blocks = nn.ModuleList(
            ConvNeXtBlock(config.dim, config.hidden, config.kernel, 1 / config.layers) for _ in range(config.layers)
        )
        self.merge = PackedLinear(config.stride * config.dim, config.dim) if config.stride > 1 else None
        self.split = PackedLinear(config.dim, config.tokens * config.dim) if config.tokens > 1 else None
        self.final_norm = nn.LayerNorm(config.dim, eps=1e-6)
        self.out = nn.Linear(config.dim, out_dim)
        self.apply(init_weights)
        if self.merge is not None:
            narrow(self.merge, config.stride)
        if self.split is not None:
            part(self.split, config.tokens)

    def spectrum(self, audio: Tensor) -> Tensor:
        """`(batch, samples)` to `(batch, inner frames, 3 * bins)` features."""
        pad = (self.n_fft - self.hop) // 2
        frames = F.pad(audio, (pad, pad)).unfold(-1, self.n_fft, self.hop) * self.window
        spectrum = torch.fft.rfft(frames)
        power = spectrum.real.square() + spectrum.imag.square()
        log_magnitude = 0.5 * torch.log(power + 1e-10)
        factor = (power + 1e-8) ** ((SpectralEncoderConfig.compression - 1) / 2)
        return torch.cat([log_magnitude / 4 + 1, spectrum.real * factor, spectrum.imag * factor], dim=-1)

    def forward(self, audio: Tensor) -> Tensor:
        """Encode audio.

        Args:
            audio: `(batch, samples)`, samples a multiple of the hop.

        Returns:
            `(batch, frames, out_dim)`, one frame per hop.
        """
        missing = -audio.shape[-1] % self.hop
        with torch.autocast(audio.device.type, enabled=False), torch.no_grad():
            features = self.spectrum(F.pad(audio.float(), (0, missing)))
        x = self.norm(self.embed(features))
        for block in self.blocks:
            x = block(x)
        if self.merge is not None:
            x = self.merge(x.unflatten(1, (-1, self.stride)).flatten(2))
        if self.split is not None:
            x = self.split(x).unflatten(2, (self.tokens, -1)).flatten(1, 2)
            x = x[:, : x.shape[1] - missing * self.tokens // self.hop]
        return self.out(self.final_norm(x))
