"""Vocos decoder: ConvNeXt blocks at frame rate and an inverse-STFT head."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from q2d2cli.models.blocks import ConvNeXtBlock, init_weights, join, make_norm, widen
from q2d2cli.models.config import VocosDecoderConfig
from q2d2cli.models.packed import PackedLinear


class ResnetBlock(nn.Module):
    """GroupNorm, swish, conv 3, twice, with a residual (WavTokenizer's `pos_net`)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(32, dim, eps=1e-6)
        self.conv1 = nn.Conv1d(dim, dim, 3, padding=1)
        self.norm2 = nn.GroupNorm(32, dim, eps=1e-6)
        self.dropout = nn.Dropout(0.1)
        self.conv2 = nn.Conv1d(dim, dim, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, dim, frames)` to the same."""
        y = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(self.dropout(F.silu(self.norm2(y))))


class AttentionBlock(nn.Module):
    """Single-head self-attention over all frames, with a residual."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(32, dim, eps=1e-6)
        self.q = nn.Conv1d(dim, dim, 1)
        self.k = nn.Conv1d(dim, dim, 1)
        self.v = nn.Conv1d(dim, dim, 1)
        self.proj_out = nn.Conv1d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, dim, frames)` to the same."""
        y = self.norm(x)
        q, k, v = (layer(y).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return x + self.proj_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2))


def make_pos_net(dim: int) -> nn.Sequential:
    """WavTokenizer's block between embedding and ConvNeXt: ResNet x2, attention, ResNet x2, GroupNorm."""
    return nn.Sequential(
        ResnetBlock(dim),
        ResnetBlock(dim),
        AttentionBlock(dim),
        ResnetBlock(dim),
        ResnetBlock(dim),
        nn.GroupNorm(32, dim, eps=1e-6),
    )


class InverseStftHead(nn.Module):
    """Linear layer to log magnitude and phase, then overlap-add with "same" padding.

    Args:
        dim: width of the input.
        hop: samples per frame.
        n_fft: window length in samples.
    """

    window: Tensor

    def __init__(self, dim: int, hop: int, n_fft: int) -> None:
        super().__init__()
        self.hop = hop
        self.n_fft = n_fft
        self.out = PackedLinear(dim, self.n_fft + 2)
        self.register_buffer("window", torch.hann_window(self.n_fft, dtype=torch.float32), persistent=False)

    def overlap_add(self, frames: Tensor) -> Tensor:
        """`(batch, frames, n_fft)` to `(batch, frames * hop)`: sum, then cut the padding at both ends."""
        count = frames.shape[1]
        length = (count - 1) * self.hop + self.n_fft
        summed = F.fold(frames.transpose(1, 2), (1, length), (1, self.n_fft), stride=(1, self.hop))
        pad = (self.n_fft - self.hop) // 2
        return summed[:, 0, 0, pad : pad + count * self.hop]

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, frames, dim)` to `(batch, frames * hop)` samples."""
        y = self.out(x)
        with torch.autocast(x.device.type, enabled=False):
            log_magnitude, phase = y.float().chunk(2, dim=-1)
            magnitude = torch.exp(log_magnitude).clamp(max=VocosDecoderConfig.max_magnitude)
            # `torch.polar` takes three times as long.
            spectrum = torch.complex(magnitude * torch.cos(phase), magnitude * torch.sin(phase))
            frames = torch.fft.irfft(spectrum, self.n_fft) * self.window
            envelope = self.window.square().expand(1, x.shape[1], -1)
            return self.overlap_add(frames) / self.overlap_add(envelope)


class VocosDecoder(nn.Module):
    """Features at frame rate to a waveform.

    Args:
        config: widths, depth and switches.
        hop: samples per frame (token).
        in_dim: width of the input features.
    """

    def __init__(self, config: VocosDecoderConfig, hop: int, in_dim: int) -> None:
        super().__init__()
        self.stride, self.tokens, self.hop = config.stride, config.tokens, hop
        self.merge = nn.Linear(config.tokens * in_dim, in_dim) if config.tokens > 1 else None
        self.split = PackedLinear(in_dim, config.stride * in_dim) if config.stride > 1 else None
        self.embed = nn.Conv1d(in_dim, config.dim, config.kernel, padding=config.kernel // 2)
        self.pos_net = make_pos_net(config.dim) if config.attention else None
        self.norm = make_norm(config.dim, config.norm_embeddings)
        self.blocks = nn.ModuleList(
            ConvNeXtBlock(
                config.dim, config.hidden, config.kernel, 1 / config.layers, config.norm_embeddings, reduced=True
            )
            for _ in range(config.layers)
        )
        self.final_norm = nn.LayerNorm(config.dim, eps=1e-6)
        self.head = InverseStftHead(config.dim, config.inner_hop(hop), config.n_fft(hop))
        self.apply(init_weights)
        if self.split is not None:
            widen(self.split, config.stride)
        if self.merge is not None:
            join(self.merge)

    def forward(self, features: Tensor) -> Tensor:
        """Decode features.

        Args:
            features: `(batch, frames, in_dim)`.

        Returns:
            `(batch, frames * hop)` samples.
        """
        samples = features.shape[1] * self.hop
        if self.merge is not None:
            missing = -features.shape[1] % self.tokens
            # The last token again, so that a part of an inner frame looks like speech that goes on.
            features = torch.cat([features, features[:, -1:].expand(-1, missing, -1)], dim=1)
            features = self.merge(features.unflatten(1, (-1, self.tokens)).flatten(2))
        if self.split is not None:
            features = self.split(features).unflatten(2, (self.stride, -1)).flatten(1, 2)
        x = self.embed(features.transpose(1, 2))
        if self.pos_net is not None:
            x = self.pos_net(x)
        x = self.norm(x.transpose(1, 2))
        for block in self.blocks:
            x = block(x)
        return self.head(self.final_norm(x))[:, :samples]
