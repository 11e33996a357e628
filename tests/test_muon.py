"""The Muon optimizer, against torch's own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from q2d2cli.training.muon import Muon, orthogonalize


@settings(deadline=None)  # the first one warms PyTorch up
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 1000))
def test_singular_values_come_near_one_and_singular_vectors_stay(rows: int, columns: int, seed: int) -> None:
    torch.manual_seed(seed)
    matrix = torch.randn(1, rows, columns, dtype=torch.float64)
    result = orthogonalize(matrix)[0]
    left, values, right = torch.linalg.svd(matrix[0], full_matrices=False)
    turned = left.T @ result @ right.T
    # The iteration lifts all but tiny values to about 1.
    wanted = values / values.norm() > 0.01
    assert ((turned.diagonal()[wanted] > 0.6) & (turned.diagonal()[wanted] < 1.3)).all()
    assert (turned - turned.diagonal().diag()).abs().max() < 1e-5


def test_bfloat16_gives_nearly_the_same() -> None:
    torch.manual_seed(0)
    for shape in ((3, 24, 64), (2, 64, 24), (1, 16, 16)):
        matrices = torch.randn(shape)
        exact, rounded = orthogonalize(matrices), orthogonalize(matrices, bf16=True)
        assert rounded.dtype == torch.float32
        assert (exact - rounded).norm() < 0.05 * exact.norm()


def test_no_gradient_is_no_step_and_zeros_stay_zeros() -> None:
    assert (orthogonalize(torch.zeros(2, 3, 4)) == 0).all()
    still, moved = (nn.Parameter(torch.ones(4, 4)) for _ in range(2))
    optimizer = Muon([still, moved], lr=0.1)
    moved.grad = torch.eye(4)
    optimizer.step()
    assert (still == 1).all()
    assert (moved != 1).any()


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_steps_are_those_of_torch(weight_decay: float) -> None:
    torch.manual_seed(0)
    start = [torch.randn(shape) for shape in ((24, 8), (8, 24), (24, 8), (16, 16))]
    mine, theirs = ([nn.Parameter(matrix.clone()) for matrix in start] for _ in range(2))
    options = {"lr": 0.02, "momentum": 0.9, "weight_decay": weight_decay}
    optimizers = (
        Muon(mine, **options),
        torch.optim.Muon(theirs, adjust_lr_fn="match_rms_adamw", **options),
    )
    for _ in range(4):
        for a, b in zip(mine, theirs, strict=True):
            a.grad = torch.randn(a.shape)
            b.grad = a.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for a, b, first in zip(mine, theirs, start, strict=True):
        # Torch's are rounded to bfloat16.
        assert (a - b).norm() < 0.02 * (a - first).norm()
