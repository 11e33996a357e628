"""The interface of all quantizers, and tokens from indices and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from q2d2cli.quantizers.spec import QuantizerSpec


class Quantized(NamedTuple):
    """Result of a quantizer's forward pass."""

    features: Tensor
    """`(batch, frames, dim)` quantized features, with a gradient."""
    indices: Tensor
    """`(batch, frames, num_indices)` int64, entry `j` in `[0, sizes[j])`."""
    loss: Tensor
    """Auxiliary loss (commitment), a scalar; zero for grids, lattices and FSQ."""
    values: Tensor
    """`(batch, frames, d)` values that were quantized, float32, with a gradient: grids, lattices and FSQ in steps of
    their grid, VQ and RVQ the features themselves."""


class Quantizer(nn.Module, ABC):
    """Features to indices and back.

    Quantizers compute in float32: half-precision features get the tokens of the float32 numbers they
    stand for, inside `torch.autocast` too.

    Attributes:
        spec: kind and levels.
    """

    def __init__(self, spec: QuantizerSpec) -> None:
        super().__init__()
        self.spec = spec

    @abstractmethod
    def forward(self, x: Tensor) -> Quantized:
        """`(batch, frames, dim)` features to quantized features, indices and auxiliary loss."""

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """`(batch, frames, dim)` features to `(batch, frames, num_indices)` int64 indices."""

    def decode(self, indices: Tensor) -> Tensor:
        """`(batch, frames, num_indices)` int64 indices to `(batch, frames, dim)` features.

        Raises:
            ValueError: if an index is out of range; names the value.
        """
        check_weights(self)
        check_indices(indices, self.spec)
        return self._decode(indices.long())

    @abstractmethod
    def _decode(self, indices: Tensor) -> Tensor:
        """`decode` of checked indices."""


def to_int64(values: Tensor, what: str) -> Tensor:
    """`values` as int64.

    Raises:
        ValueError: if they are floating point, complex or bool; `what` names them.
    """
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise ValueError(f"{what} have type {str(values.dtype).removeprefix('torch.')}: expected integers")
    return values.long()


def check_weights(module: nn.Module) -> None:
    """Raise TypeError if a quantizer was itself converted to half precision: its tokens would silently be others."""
    for name, parameter in module.named_parameters():
        if parameter.dtype in (torch.float16, torch.bfloat16):
            raise TypeError(
                f"the quantizer's {name} is {str(parameter.dtype).removeprefix('torch.')}: keep quantizers in float32, "
                "features of any precision go in"
            )


def check_indices(indices: Tensor, spec: QuantizerSpec) -> None:
    """Raise ValueError, naming the value, unless every index is an integer in its range."""
    indices = to_int64(indices, "indices")
    if indices.shape[-1:] != (spec.num_indices,):
        raise ValueError(
            f"indices have shape {tuple(indices.shape)}: the last dimension must be {spec.num_indices} "
            + ("pairs" if spec.is_grid else "indices")
        )
    sizes = torch.tensor(spec.sizes, device=indices.device)
    wrong = (indices < 0) | (indices >= sizes)
    if wrong.any():
        position = wrong.nonzero()[0].tolist()
        value = int(indices[tuple(position)])
        where, what = ("pair" if spec.is_grid else "position", "points" if spec.snaps else "values")
        raise ValueError(f"index {value} is out of range: {where} {position[-1]} has {spec.sizes[position[-1]]} {what}")


def indices_to_tokens(indices: Tensor, spec: QuantizerSpec) -> Tensor:
    """One token per frame: `sum_j index_j * prod_{k<j} G_k` (index 0 is the least significant).

    Args:
        indices: `(..., num_indices)` integers.
        spec: of the quantizer they come from.

    Returns:
        `(...)` int64 tokens in `[0, codebook_size)`.

    Raises:
        ValueError: if an index is no integer or out of range, or the codebook does not fit 63 bits.

    Examples:
        >>> spec = QuantizerSpec("rhombic", (9, 9, 7, 7, 7, 7))
        >>> indices_to_tokens(torch.tensor([[1, 2, 3]]), spec)  # 1 + 2 * 145 + 3 * 145 * 85
        tensor([37266])
        >>> tokens_to_indices(torch.tensor([37266]), spec)
        tensor([[1, 2, 3]])
    """
    check_codebook_fits(spec)
    check_indices(indices, spec)
    indices = indices.long()
    tokens = torch.zeros_like(indices[..., 0])
    for j in reversed(range(spec.num_indices)):
        tokens = tokens * spec.sizes[j] + indices[..., j]
    return tokens


def tokens_to_indices(tokens: Tensor, spec: QuantizerSpec) -> Tensor:
    """Inverse of `indices_to_tokens`: `(...)` integer tokens to `(..., num_indices)` int64 indices.

    Raises:
        ValueError: if a token is no integer or outside the codebook (names the value), or the codebook
            does not fit 63 bits.
    """
    check_codebook_fits(spec)
    tokens = to_int64(tokens, "token ids")
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
    """Raise ValueError if tokens would not fit a 64-bit integer; indices still serve then."""
    if spec.codebook_size > 2**63:
        raise ValueError(f"{spec.bits_per_frame:.0f} bits per frame do not fit one 64-bit token: use the indices")
