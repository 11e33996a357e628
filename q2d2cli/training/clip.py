"""Holds the gradients of single frames to a multiple of their median."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class ClipFrames(torch.autograd.Function):
    """The identity; going back, the gradient of a frame that is too large is scaled down to the limit."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, limit: float) -> Tensor:
        """`(batch, frames, dim)`, and the largest norm of a frame's gradient as a multiple of the median."""
        ctx.limit = limit
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """`(batch, frames, dim)`."""
        norms = gradient.norm(dim=-1, keepdim=True)
        limit = ctx.limit * norms.median()
        shares = (limit / norms.clamp(min=1e-20)).clamp(max=1)
        # Where most frames have none, the median says nothing.
        return torch.where(limit > 0, gradient * shares, gradient), None


def clip_frames(layer: nn.Module, limit: float) -> None:
    """Clip what comes back into `layer`, whose output is `(batch, frames, dim)`, from now on."""
    layer.register_forward_hook(lambda _, __, output: ClipFrames.apply(output, limit))
