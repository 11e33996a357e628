"""Quantizers with one interface (`base`): `q2d2` on `grids`, and `baselines`.

Each is a module that stands on its own:

>>> import torch
>>> from q2d2cli.quantizers import Q2D2, QuantizerSpec
>>> quantizer = Q2D2(QuantizerSpec("rhombic", (9, 9, 7, 7, 7, 7)), dim=512)
>>> features, indices, loss, values = quantizer(torch.zeros(2, 10, 512))  # (batch, frames, dim)
>>> features.shape, indices.shape
(torch.Size([2, 10, 512]), torch.Size([2, 10, 3]))
>>> torch.allclose(quantizer.decode(indices), features, atol=1e-6)
True

`spec` and `geometry` (kinds, sizes, rates, points) import no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from q2d2cli.quantizers.base import Quantized, Quantizer, indices_to_tokens, tokens_to_indices
    from q2d2cli.quantizers.baselines import FsqQuantizer, VqQuantizer
    from q2d2cli.quantizers.grids import Grid, make_grids
    from q2d2cli.quantizers.q2d2 import Q2D2
    from q2d2cli.quantizers.spec import QuantizerSpec

HOMES = {
    "Q2D2": "q2d2",
    "FsqQuantizer": "baselines",
    "Grid": "grids",
    "Quantized": "base",
    "Quantizer": "base",
    "QuantizerSpec": "spec",
    "VqQuantizer": "baselines",
    "indices_to_tokens": "base",
    "make_grids": "grids",
    "tokens_to_indices": "base",
}
"""The module of each name."""
__all__ = [
    "Q2D2",
    "FsqQuantizer",
    "Grid",
    "Quantized",
    "Quantizer",
    "QuantizerSpec",
    "VqQuantizer",
    "indices_to_tokens",
    "make_grids",
    "tokens_to_indices",
]


def __getattr__(name: str) -> Any:
    # Lazy, so that the container can read a spec without importing torch.
    if name in HOMES:
        return getattr(import_module(f"{__name__}.{HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
