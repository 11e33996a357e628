"""Two-dimensional quantization (Q2D2): features to grid points, indices and tokens, and back."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from q2d2cli.quantizers.grids import make_grids
from q2d2cli.quantizers.spec import QuantizerSpec

BOUND_MARGIN = 1e-3
"""The authors' code stretches the bounded value by this much; the paper does not."""


class Quantized(NamedTuple):
    """Result of a quantizer's forward pass."""

    features: Tensor
    """`(batch, frames, dim)` quantized features, with a straight-through gradient."""
    indices: Tensor
    """`(batch, frames, pairs)` int64, entry `j` in `[0, G_j)`."""


class Q2D2(nn.Module):
    """Quantizer of paper section 3.1, between two linear projections.

    `Linear(dim -> d)` and tanh give `z` in (-1, 1); each dimension is scaled by
    `(l - 1)/2 * (1 + 1e-3)` (the authors' code; the paper has `l/2`), each pair is snapped to the
    nearest point of its grid, the point is divided by `l // 2` and passed straight-through to `z`,
    and `Linear(d -> dim)` follows. Always computed in float32.

    Args:
        spec: grid kind and levels.
        dim: width of the features on both sides; 512 in the paper.
    """

    bound: Tensor
    scale: Tensor

    def __init__(self, spec: QuantizerSpec, dim: int) -> None:
        super().__init__()
        self.spec = spec
        self.grids = make_grids(spec)
        self.project_in = nn.Linear(dim, spec.dim)
        self.project_out = nn.Linear(spec.dim, dim)
        levels = torch.tensor(spec.levels, dtype=torch.float32)
        self.register_buffer("bound", (levels - 1) / 2 * (1 + BOUND_MARGIN), persistent=False)
        self.register_buffer("scale", (levels // 2).view(-1, 2), persistent=False)
        for j, grid in enumerate(self.grids):
            self.register_buffer(f"points_{j}", grid.points, persistent=False)

    def _project_in(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return torch.tanh(self.project_in(x.float()))

    def _project_out(self, codes: Tensor) -> Tensor:
        with torch.autocast(codes.device.type, enabled=False):
            return self.project_out(codes)

    def quantize(self, z: Tensor) -> Tensor:
        """Nearest grid points of bounded features.

        Args:
            z: `(..., d)` in (-1, 1).

        Returns:
            `(..., P)` int64 pair indices.
        """
        pairs = (z * self.bound).unflatten(-1, (self.spec.num_pairs, 2))
        return torch.stack([grid.nearest(pairs[..., j, :]) for j, grid in enumerate(self.grids)], dim=-1)

    def codes(self, indices: Tensor) -> Tensor:
        """Scaled grid points of pair indices.

        Args:
            indices: `(..., P)` int64.

        Returns:
            `(..., d)` float32, about in [-1, 1].

        Raises:
            ValueError: if an index is outside its grid; names the value.
        """
        check_indices(indices, self.spec)
        return self._codes(indices)

    def _codes(self, indices: Tensor) -> Tensor:
        points = [getattr(self, f"points_{j}")[indices[..., j]] for j in range(self.spec.num_pairs)]
        return (torch.stack(points, dim=-2) / self.scale).flatten(-2)

    def forward(self, x: Tensor) -> Quantized:
        """`(batch, frames, dim)` features to quantized features and pair indices."""
        z = self._project_in(x)
        with torch.no_grad():
            indices = self.quantize(z)
            codes = self._codes(indices)
        # The gradient goes straight through to the tanh output, not to the bounded value.
        return Quantized(self._project_out(z + (codes - z).detach()), indices)

    def encode(self, x: Tensor) -> Tensor:
        """`(batch, frames, dim)` features to `(batch, frames, P)` int64 pair indices."""
        return self.quantize(self._project_in(x))

    def decode(self, indices: Tensor) -> Tensor:
        """`(batch, frames, P)` int64 pair indices to `(batch, frames, dim)` features.

        Raises:
            ValueError: if an index is outside its grid; names the value.
        """
        return self._project_out(self.codes(indices))


def check_indices(indices: Tensor, spec: QuantizerSpec) -> None:
    """Raise ValueError, naming the value, unless every pair index is inside its grid."""
    if indices.shape[-1:] != (spec.num_pairs,):
        raise ValueError(
            f"indices have shape {tuple(indices.shape)}: the last dimension must be {spec.num_pairs} pairs"
        )
    sizes = torch.tensor(spec.sizes, device=indices.device)
    wrong = (indices < 0) | (indices >= sizes)
    if wrong.any():
        position = wrong.nonzero()[0].tolist()
        value = int(indices[tuple(position)])
        raise ValueError(f"index {value} is out of range: pair {position[-1]} has {spec.sizes[position[-1]]} points")


def indices_to_tokens(indices: Tensor, spec: QuantizerSpec) -> Tensor:
    """One token per frame: `sum_j index_j * prod_{k<j} G_k` (pair 0 is the least significant).

    Args:
        indices: `(..., P)` int64 pair indices.

    Returns:
        `(...)` int64 tokens in `[0, codebook_size)`.

    Raises:
        ValueError: if an index is out of range, or the codebook does not fit 63 bits.
    """
    check_codebook_fits(spec)
    check_indices(indices, spec)
    tokens = torch.zeros_like(indices[..., 0])
    for j in reversed(range(spec.num_pairs)):
        tokens = tokens * spec.sizes[j] + indices[..., j]
    return tokens


def tokens_to_indices(tokens: Tensor, spec: QuantizerSpec) -> Tensor:
    """Inverse of `indices_to_tokens`: `(...)` int64 tokens to `(..., P)` int64 pair indices.

    Raises:
        ValueError: if a token is outside the codebook (names the value), or the codebook does
            not fit 63 bits.
    """
    check_codebook_fits(spec)
    wrong = (tokens < 0) | (tokens >= spec.codebook_size)
    if wrong.any():
        value = int(tokens[wrong][0])
        raise ValueError(f"token {value} is out of range: the codebook has {spec.codebook_size} entries")
    indices = []
    for size in spec.sizes:
        indices.append(tokens % size)
        tokens = tokens // size
    return torch.stack(indices, dim=-1)


def check_codebook_fits(spec: QuantizerSpec) -> None:
    """Raise ValueError if tokens would not fit a 64-bit integer; pair indices still serve then."""
    if spec.codebook_size > 2**63:
        raise ValueError(f"{spec.bits_per_frame:.0f} bits per frame do not fit one 64-bit token: use the pair indices")
