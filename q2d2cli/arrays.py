"""What callers hand in, checked and in one form: waveforms, indices, whole numbers. Imports no torch."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np

from q2d2cli.errors import Q2D2Error, UsageError

if TYPE_CHECKING:
    from torch import Tensor

MAX_CHANNELS = 255
FULL_SCALE = {"int16": 2**15, "int32": 2**31}
"""What counts as 1 in arrays of integers."""


def as_waveform(waveform: Tensor | np.ndarray, piece: bool = False) -> np.ndarray:
    """`(channels, samples)` float32 of a waveform in any memory layout and byte order.

    Args:
        waveform: `(samples,)` or `(channels, samples)`; floating point of any precision (full scale is +-1), int16
            or int32.
        piece: whether it is one of many: then it may be empty, or have fewer samples than channels.

    Raises:
        ValueError: if the shape or type is another; says so where channels and samples seem to have changed places.
        Q2D2Error: if it is empty, or holds NaN or infinity.
    """
    samples = as_array(waveform)
    scale = FULL_SCALE.get(samples.dtype.name)
    if samples.ndim not in (1, 2) or (samples.dtype.kind != "f" and scale is None):
        raise ValueError(
            f"waveform has shape {samples.shape} and type {samples.dtype}: "
            "expected floating point, int16 or int32, (samples,) or (channels, samples)"
        )
    samples = np.atleast_2d(samples)
    if not piece:
        if not samples.size:
            raise Q2D2Error("the waveform is empty")
        channels, length = samples.shape
        if channels > min(length, MAX_CHANNELS):
            raise ValueError(
                f"waveform has {channels} channels of {length} samples: expected (channels, samples), as waveform.T is"
            )
    with np.errstate(over="ignore"):
        samples = np.ascontiguousarray(samples, np.float32)
    if scale is not None:
        samples = samples / np.float32(scale)
    if not np.isfinite(samples).all():
        raise Q2D2Error("the waveform holds NaN or infinite samples")
    return samples


def as_integers(values: Tensor | np.ndarray, what: str) -> np.ndarray:
    """int64 of integers in any type, memory layout and byte order.

    Raises:
        ValueError: if they are no integers (bool is none); `what` names them.
    """
    integers = as_array(values)
    if integers.dtype.kind not in "iu":
        raise ValueError(f"{what} have type {integers.dtype}: expected integers")
    return np.array(integers, np.int64)


def as_array(values: Tensor | np.ndarray) -> np.ndarray:
    """An array or a tensor on any device as an array; bfloat16, which NumPy lacks, as float32."""
    if is_tensor(values):
        values = values.detach().cpu()
        return (values.float() if str(values.dtype) == "torch.bfloat16" else values).numpy()
    return np.asarray(values)


def is_tensor(value: Any) -> TypeGuard[Tensor]:
    """Whether it is a PyTorch tensor; where nobody has imported that, nothing is."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def whole_number(value: Any, what: str) -> int:
    """`value` as an int: a Python, NumPy or PyTorch number.

    Raises:
        UsageError: if it is no whole number; `what` names it.
    """
    scalar = (isinstance(value, np.generic) or is_tensor(value)) and value.ndim == 0
    number = value.item() if scalar else value
    if isinstance(number, float) and number.is_integer():
        return int(number)
    if not isinstance(number, int) or isinstance(number, bool):
        raise UsageError(f"{what} is {value!r}: expected a whole number")
    return number
