"""Building blocks shared by encoders and decoder: ConvNeXt, adaptive layer norm, framing."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from q2d2cli.models.packed import PackedLinear


class AdaLayerNorm(nn.Module):
    """Layer norm whose scale and shift are row 0 of an embedding (WavTokenizer's `bandwidth_id` 0)."""

    def __init__(self, embeddings: int, dim: int) -> None:
        super().__init__()
        self.scale = nn.Embedding(embeddings, dim)
        self.shift = nn.Embedding(embeddings, dim)
        nn.init.ones_(self.scale.weight)
        nn.init.zeros_(self.shift.weight)

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, frames, dim)` to the same."""
        return F.layer_norm(x, x.shape[-1:], eps=1e-6) * self.scale.weight[0] + self.shift.weight[0]


def make_norm(dim: int, embeddings: int = 0) -> nn.Module:
    """Plain layer norm, or the adaptive one where `embeddings` is above zero."""
    return AdaLayerNorm(embeddings, dim) if embeddings else nn.LayerNorm(dim, eps=1e-6)


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution over time, then a pointwise two-layer network, with a residual (Vocos).

    Args:
        dim: width.
        hidden: width of the two-layer network.
        kernel: frames the convolution sees.
        scale: of the residual branch at the start of training.
        norm_embeddings: see `make_norm`.
        reduced: make the network's products in bfloat16 where the processor does (`PackedLinear`).
    """

    def __init__(
        self, dim: int, hidden: int, kernel: int, scale: float, norm_embeddings: int = 0, reduced: bool = False
    ) -> None:
        super().__init__()
        self.dwconv = nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=dim)
        self.norm = make_norm(dim, norm_embeddings)
        self.pwconv1 = PackedLinear(dim, hidden, reduced)
        self.pwconv2 = PackedLinear(hidden, dim, reduced)
        self.gamma = nn.Parameter(torch.full((dim,), scale))

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, frames, dim)` to the same."""
        # As a two-dimensional convolution over channels-last data: several times faster on a CPU.
        y = F.conv2d(
            x.transpose(1, 2).unsqueeze(2),
            self.dwconv.weight.unsqueeze(2),
            self.dwconv.bias,
            padding=(0, self.dwconv.kernel_size[0] // 2),
            groups=self.dwconv.groups,
        )
        y = self.norm(y.squeeze(2).transpose(1, 2))
        y = self.pwconv2(self.pwconv1.gelu(y))
        if torch.is_inference_mode_enabled():
            return y.to(x.dtype).mul_(self.gamma).add_(x)  # in its place: new memory takes longer than the sum
        return x + self.gamma * y


def widen(layer: nn.Linear, copies: int) -> None:
    """Start a layer that makes `copies` frames of one: copies that differ a little, or training could not part them."""
    layer.weight.data += torch.eye(layer.in_features).repeat(copies, 1)


def narrow(layer: nn.Linear, copies: int) -> None:
    """Start a layer that makes one frame of `copies`: almost their mean."""
    layer.weight.data += torch.eye(layer.out_features).repeat(1, copies) / copies


def part(layer: nn.Linear, tokens: int) -> None:
    """Start a layer that makes `tokens` tokens of one frame: the frame as it is, then as many random rotations of it.

    Copies would stay copies: six dimensions that all tokens agree on are found first, and nothing parts them later.
    """
    rows = layer.weight.data.chunk(tokens)
    rows[0].add_(torch.eye(layer.in_features))
    for row in rows[1:]:
        nn.init.orthogonal_(row)


def join(layer: nn.Linear) -> None:
    """Start a layer that makes one frame of several tokens: the first as it is, the others as training finds them."""
    layer.weight.data[:, : layer.out_features] += torch.eye(layer.out_features)


def init_weights(module: nn.Module) -> None:
    """Vocos's initialisation: truncated normal weights, zero biases."""
    if isinstance(module, nn.Conv1d | nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
