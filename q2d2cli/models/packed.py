"""A linear layer that keeps its weights packed for the processor while a model is used and not trained."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from q2d2cli.models.precision import has_bfloat16

ONEDNN: Any = torch.ops.mkldnn
JIT: Any = torch.jit
_packed: WeakKeyDictionary[nn.Module, tuple[tuple[object, ...], Tensor]] = WeakKeyDictionary()
"""Packed weights of layers, and what they were made of. Not in the layers: they are copied and saved."""


class PackedLinear(nn.Linear):
    """A linear layer whose products are oneDNN's in inference on a CPU, with weights that are packed once.

    PyTorch's own products are MKL's, half as fast on processors with AVX-512 that are not Intel's. Only the last bits
    of the result differ, as they do from one processor to another.

    Args:
        in_features: numbers in.
        out_features: numbers out.
        reduced: where the processor computes in bfloat16, take and give that in inference, at twice the speed or more.
            For layers on whose last bits no token depends.
    """

    def __init__(self, in_features: int, out_features: int, reduced: bool = False) -> None:
        super().__init__(in_features, out_features)
        self.reduced = reduced

    def forward(self, x: Tensor) -> Tensor:
        """`(..., in_features)` to `(..., out_features)`."""
        return self._product(x, "none") if self._packs(x) else super().forward(x)

    def gelu(self, x: Tensor) -> Tensor:
        """GELU of what `forward` gives; without a pass of its own over memory where the product is oneDNN's."""
        return self._product(x, "gelu") if self._packs(x) else F.gelu(self(x))

    def _packs(self, x: Tensor) -> bool:
        # Training has gradients and autocast; tracing and compiling are to see the plain layer.
        return (
            torch.is_inference_mode_enabled()
            and not torch.is_autocast_enabled("cpu")
            and not JIT.is_tracing()
            and not torch.compiler.is_compiling()
            and x.device.type == "cpu"
            and self.weight.dtype == torch.float32
            and (x.dtype == torch.float32 or (self.reduced and x.dtype == torch.bfloat16))
            and x.numel() > 0
            and torch.backends.mkldnn.is_available()
            and bool(torch.backends.mkldnn.enabled)
        )

    def _product(self, x: Tensor, after: str) -> Tensor:
        # What a layer before gave in bfloat16 stays so; what comes in float32 is rounded where that is faster.
        reduced = self.reduced and (x.dtype == torch.bfloat16 or has_bfloat16(x.device))
        dtype = torch.bfloat16 if reduced else torch.float32
        bias = None if self.bias is None else self.bias.to(dtype)
        return ONEDNN._linear_pointwise(x.to(dtype), self._packed_weight(dtype), bias, after, [], "none")

    def _packed_weight(self, dtype: torch.dtype) -> Tensor:
        state = (dtype, self.weight.data_ptr(), 0 if self.weight.is_inference() else self.weight._version)
        known = _packed.get(self)
        if known is None or known[0] != state:
            known = state, ONEDNN._reorder_linear_weight(self.weight.detach().to(dtype), None)
            _packed[self] = known
        return known[1]
