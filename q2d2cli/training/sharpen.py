"""Clearer spectra from a trained decoder: a filter along frequency that becomes part of its last layer."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from q2d2cli import checkpoints
from q2d2cli.checkpoints import Checkpoint, Sharpened
from q2d2cli.models.config import ModelConfig
from q2d2cli.models.model import CodecModel

WIDTH = 1450.0
"""Hz that a frequency is compared with: more than a formant, less than the slope of a spectrum."""


def filter_matrix(bins: int, width: int, amount: float) -> Tensor:
    """`(bins, bins)`, what makes log magnitudes clearer: each is moved away from the mean of the `width` around it.

    Args:
        bins: frequencies.
        width: odd; at the ends only those there are.
        amount: by what part of its distance from that mean.
    """
    position = torch.arange(bins, dtype=torch.float64)
    near = ((position[:, None] - position).abs() <= width // 2).double()
    identity = torch.eye(bins, dtype=torch.float64)
    return identity + amount * (identity - near / near.sum(1, keepdim=True))


def head_matrix(config: ModelConfig, n_fft: int, amount: float) -> Tensor:
    """`filter_matrix` for the log magnitudes of a model's decoder."""
    width = 2 * round(WIDTH * n_fft / config.sample_rate / 2) + 1
    return filter_matrix(n_fft // 2 + 1, width, amount)


@torch.no_grad()
def sharpen(model: CodecModel, amount: float, speech: Iterable[Tensor]) -> Sharpened:
    """Make a decoder's peaks higher and its valleys deeper, in place.

    Losses on spectra are least for the mean of what could have been said, whose peaks are lower and whose valleys are
    fuller. Decoders of speech have long been followed by filters against that (Chen and Gersho 1995, Adaptive
    postfiltering for quality enhancement of coded speech). This one is linear in the logarithm of the magnitudes,
    which here are the output of a linear layer, so that it costs nothing: it is multiplied into that layer's weights.

    Args:
        model: whose decoder is changed.
        amount: by what part of its distance from the mean around it a log magnitude moves; 0.1 is much.
        speech: `(samples,)` each, at the model's rate: their decoded level stays as it is, on average.

    Returns:
        What was done, which `unsharpened` undoes.
    """
    head = model.decoder.head
    matrix = head_matrix(model.config, head.n_fft, amount)
    bins = len(matrix)
    seen: list[Tensor] = []
    hook = head.out.register_forward_hook(lambda _layer, _inputs, output: seen.append(output[0, :, :bins].double()))
    try:
        for audio in speech:
            model.decode(model.encode(audio[None]))
    finally:
        hook.remove()
    louder = [(energy(before @ matrix.T) / energy(before)).log().item() / 2 for before in seen]
    gain = sum(louder) / len(louder)
    weight, bias = head.out.weight, head.out.bias
    weight[:bins] = (matrix @ weight[:bins].double()).float()
    bias[:bins] = (matrix @ bias[:bins].double() - gain).float()
    return Sharpened(amount, gain)


@torch.no_grad()
def unsharpened(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """A checkpoint's weights as its training run left them; a student's as they are, with its lender's decoder.

    Raises:
        UsageError, Q2D2Error: as `checkpoints.load`.
    """
    model = checkpoints.load(checkpoint)
    if (done := checkpoint.sharpened) is not None:
        head = model.decoder.head
        matrix = head_matrix(model.config, head.n_fft, done.amount)
        bins = len(matrix)
        weight, bias = head.out.weight, head.out.bias
        weight[:bins] = torch.linalg.solve(matrix, weight[:bins].double()).float()
        bias[:bins] = torch.linalg.solve(matrix, bias[:bins].double() + done.gain).float()
    return model.state_dict()


def energy(log_magnitudes: Tensor) -> Tensor:
    """Sum of the squared magnitudes."""
    return (2 * log_magnitudes).exp().sum()
