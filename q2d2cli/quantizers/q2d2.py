"""Two-dimensional quantization (Q2D2): pairs of features snapped to the nearest points of grids; lattices alike."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from q2d2cli.quantizers.base import Quantized, Quantizer, check_indices, check_weights
from q2d2cli.quantizers.geometry import HEXAGONAL_OFFSET
from q2d2cli.quantizers.grids import exact, make_grids
from q2d2cli.quantizers.spec import BOUND_MARGIN, QuantizerSpec


class Q2D2(Quantizer):
    """Quantizer of paper section 3.1, between two linear projections.

    `Linear(dim -> d)` and tanh give `z` in (-1, 1); each dimension is scaled by
    `(l - 1)/2 * (1 + 1e-3)` (the authors' code; the paper has `l/2`), each pair is snapped to the
    nearest point of its grid, the point is divided by `l // 2` and passed straight-through to `z`,
    and `Linear(d -> dim)` follows. Computed in float32, whatever the features come in. The switches are those of the
    paper's ablations (appendix D); their defaults are the method. With a lattice (paper appendix E), three, four or
    eight dimensions take the place of a pair; `n` is their number below.

    Args:
        spec: kind of grid or lattice, and levels.
        dim: width of the features on both sides; 512 in the paper.
        projection: what follows the input projection: `tanh`, `linear` (nothing) or `layernorm`.
        bound: `code` or `paper`, the factor above.
        spread: stretches the grid; 1 is `e = (l - 1)/2`.
        hexagonal_offset: shift of a hexagonal grid's rows in units of `dx`; 1/4 in the method.
        gradient: `straight-through`, or `rotation`: the gradient turned and scaled as each pair
            was (the rotation trick, Fifty et al. 2024).

    Examples:
        >>> quantizer = Q2D2(QuantizerSpec("hexagonal", (7, 7, 7, 7)), dim=16)
        >>> x = torch.randn(2, 10, 16)
        >>> quantizer(x).indices.shape
        torch.Size([2, 10, 2])
        >>> quantizer.encode(x.bfloat16().float()).equal(quantizer.encode(x.bfloat16()))
        True
        >>> quantizer.decode(quantizer.encode(x)).shape
        torch.Size([2, 10, 16])
    """

    bound: Tensor
    scale: Tensor

    def __init__(
        self,
        spec: QuantizerSpec,
        dim: int,
        *,
        projection: str = "tanh",
        bound: str = "code",
        spread: float = 1.0,
        hexagonal_offset: float = HEXAGONAL_OFFSET,
        gradient: str = "straight-through",
    ) -> None:
        super().__init__(spec)
        self.grids = make_grids(spec, hexagonal_offset)
        self.project_in = nn.Linear(dim, spec.dim)
        self.project_out = nn.Linear(spec.dim, dim)
        self.norm = nn.LayerNorm(spec.dim) if projection == "layernorm" else None
        self.projection, self.spread, self.gradient = projection, spread, gradient
        self._groups = (spec.num_indices, spec.group_size)
        levels = torch.tensor(spec.levels, dtype=torch.float32)
        factor = levels / 2 if bound == "paper" else (levels - 1) / 2 * (1 + BOUND_MARGIN)
        self._constants = {"bound": factor, "scale": (levels // 2).view(-1, spec.group_size)}
        for j, grid in enumerate(self.grids):
            self._constants[f"points_{j}"] = grid.points * spread
        for name, values in self._constants.items():
            self.register_buffer(name, values.to(self.project_in.weight.device), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Q2D2:
        """Move or convert everything but the grids, which are moved alone: rounded points would be others."""
        super()._apply(fn, recurse)
        for name, values in self._constants.items():
            setattr(self, name, values.to(getattr(self, name).device))
        return self

    def project(self, x: Tensor) -> Tensor:
        """`(..., dim)` features to `(..., d)` float32 projections, before tanh."""
        check_weights(self)
        with torch.autocast(x.device.type, enabled=False):
            z = self.project_in(x.to(self.project_in.weight.dtype))
            return z if self.norm is None else self.norm(z)

    def _project_in(self, x: Tensor) -> Tensor:
        return self._activate(self.project(x))

    def _activate(self, z: Tensor) -> Tensor:
        return torch.tanh(z) if self.projection == "tanh" else z

    def _bounded(self, z: Tensor) -> Tensor:
        return z * self.bound / self.spread

    def _project_out(self, codes: Tensor) -> Tensor:
        with torch.autocast(codes.device.type, enabled=False):
            return self.project_out(codes.to(self.project_out.weight.dtype))

    def quantize(self, z: Tensor) -> Tensor:
        """Nearest grid points of projected features.

        Args:
            z: `(..., d)`, in (-1, 1) after tanh.

        Returns:
            `(..., P)` int64 pair indices.
        """
        return self.nearest(self._coordinates(z))

    def coordinates(self, x: Tensor) -> Tensor:
        """Where each pair lies among the points of its grid before it is snapped to one.

        Args:
            x: `(..., dim)` features.

        Returns:
            `(..., P, n)` float32 in the units of `grids[j].points`; after tanh within the grid's extent.
        """
        return self._coordinates(self._project_in(x))

    def nearest(self, coordinates: Tensor) -> Tensor:
        """`(..., P, n)` coordinates to `(..., P)` int64 pair indices."""
        return torch.stack([grid.nearest(coordinates[..., j, :]) for j, grid in enumerate(self.grids)], dim=-1)

    def _coordinates(self, z: Tensor) -> Tensor:
        return self._bounded(z).unflatten(-1, self._groups)

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
        return self._codes(indices.long())

    def _codes(self, indices: Tensor) -> Tensor:
        points = [getattr(self, f"points_{j}")[indices[..., j]] for j in range(self.spec.num_indices)]
        return (torch.stack(points, dim=-2) / self.scale).flatten(-2)

    def forward(self, x: Tensor) -> Quantized:
        """`(batch, frames, dim)` features to quantized features and pair indices."""
        return self.snap(self.project(x))

    def snap(self, projections: Tensor) -> Quantized:
        """`(batch, frames, d)` of `project` to quantized features and pair indices; the gradient reaches them."""
        z = self._activate(exact(projections))
        with torch.no_grad():
            indices = self.quantize(z)
            codes = self._codes(indices)
        if self.gradient == "rotation":
            passed = rotate(z.unflatten(-1, self._groups), codes.unflatten(-1, self._groups)).flatten(-2)
        else:
            # Straight through to the projected value, not to the bounded one.
            passed = z + (codes - z).detach()
        return Quantized(self._project_out(passed), indices, z.new_zeros(()), self._bounded(z))

    def encode(self, x: Tensor) -> Tensor:
        """`(batch, frames, dim)` features to `(batch, frames, P)` int64 pair indices."""
        return self.quantize(self._project_in(x))

    def _decode(self, indices: Tensor) -> Tensor:
        return self._project_out(self._codes(indices))


def rotate(source: Tensor, target: Tensor) -> Tensor:
    """`target`, reached from `source` by a rotation and a scaling that count as constants for the gradient.

    Args:
        source: `(..., n)` vectors that get the gradient.
        target: `(..., n)` vectors.
    """
    e, q = F.normalize(source.detach(), dim=-1), F.normalize(target, dim=-1)
    middle = F.normalize(e + q, dim=-1)
    scale = target.norm(dim=-1, keepdim=True) / source.detach().norm(dim=-1, keepdim=True).clamp(min=1e-6)
    along_middle = (source * middle).sum(-1, keepdim=True) * middle
    along_source = (source * e).sum(-1, keepdim=True) * q
    return scale * (source - 2 * along_middle + 2 * along_source)
