"""Muon: momentum whose steps are orthogonalized, for the matrices of linear layers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic Newton-Schulz iteration (Keller Jordan's Muon, torch.optim.Muon)."""
ITERATIONS = 5


def orthogonalize(matrices: Tensor, bf16: bool = False) -> Tensor:
    """Bring the singular values of `(count, rows, columns)` matrices near 1, to between 0.7 and 1.2 but for tiny ones.

    The iteration is X <- (a + b A + c A A) X with A = X X^T.

    Args:
        matrices: of one shape.
        bf16: multiply in bfloat16, which is quicker where the processor does so itself.
    """
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    if bf16:
        x = x.bfloat16()
        for _ in range(ITERATIONS):
            gram = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
        x = x.to(matrices.dtype)
        return x.mT if tall else x
    # It only ever multiplies X from the left by polynomials of the first A, so it runs on those, small and square, and
    # X is multiplied once, at the end: a third less to compute. Rounding errors grow that way: not for bfloat16.
    gram = x @ x.mT
    product: Tensor | None = None
    for i in range(ITERATIONS):
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal(dim1=1, dim2=2).add_(a)
        product = factor if product is None else factor @ product
        if i < ITERATIONS - 1:
            gram = factor @ gram @ factor
    assert product is not None
    x = product @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """As `torch.optim.Muon` with Nesterov momentum and `adjust_lr_fn="match_rms_adamw"`, for few and small matrices.

    Matrices of one shape are orthogonalized together, and in float32 unless told otherwise: torch's own computes in
    bfloat16, which takes ten times as long as the rest of a step on a CPU that has no instructions for it.

    Args:
        params: two-dimensional parameters.
        lr: learning rate, on AdamW's scale.
        momentum: of the average of gradients.
        weight_decay: share of the weights to take off, times `lr`.
        bf16: orthogonalize in bfloat16.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        bf16: bool = False,
    ) -> None:
        self.bf16 = bf16
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # no closures
        """Move every parameter that has a gradient."""
        for group in self.param_groups:
            shapes: defaultdict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    shapes[p.shape].append(p)
            for shape, params in shapes.items():
                # RMS of the step as AdamW's, whatever the shape.
                rate = group["lr"] * 0.2 * max(shape) ** 0.5
                steps = torch.stack([self._averaged(p, group["momentum"]) for p in params])
                for p, step in zip(params, orthogonalize(steps, self.bf16), strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).add_(step, alpha=-rate)

    def _averaged(self, p: nn.Parameter, momentum: float) -> Tensor:
        assert p.grad is not None
        state = self.state[p]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(p.grad)
        average: Tensor = state["momentum_buffer"]
        average.lerp_(p.grad, 1 - momentum)
        return p.grad.lerp(average, momentum)
