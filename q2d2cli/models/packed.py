"""A linear layer that keeps its weights packed for the processor while a model is used and not trained."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

ONEDNN: Any = torch.ops.mkldnn
JIT: Any = torch.jit
_packed: WeakKeyDictionary[nn.Module, tuple[tuple[int, int], Tensor]] = WeakKeyDictionary()
"""Packed weights of layers, and which weights they were made of. Not in the layers: they are copied and saved."""


class PackedLinear(nn.Linear):
    """A linear layer whose products are oneDNN's in inference on a CPU, with weights that are packed once.

    PyTorch's own products are MKL's, half as fast on processors with AVX-512 that are not Intel's. Only the last bits
    of the result differ, as they do from one processor to another.
    """

    def forward(self, x: Tensor) -> Tensor:
        """`(..., in_features)` to `(..., out_features)`."""
        # Training has gradients and autocast; tracing and compiling are to see the plain layer.
        if (
            not torch.is_inference_mode_enabled()
            or torch.is_autocast_enabled("cpu")
            or JIT.is_tracing()
            or torch.compiler.is_compiling()
            or not (x.device.type == "cpu" and x.dtype == self.weight.dtype == torch.float32 and x.numel())
            or not (torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled)
        ):
            return super().forward(x)
        return ONEDNN._linear_pointwise(x, self._packed_weight(), self.bias, "none", [], "")

    def _packed_weight(self) -> Tensor:
        state = (self.weight.data_ptr(), 0 if self.weight.is_inference() else self.weight._version)
        known = _packed.get(self)
        if known is None or known[0] != state:
            known = state, ONEDNN._reorder_linear_weight(self.weight.detach(), None)
            _packed[self] = known
        return known[1]
