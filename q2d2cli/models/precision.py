"""Precision: full float32 for a while, whatever the caller has set PyTorch to; and whether bfloat16 is faster here."""

from __future__ import annotations

import functools
import os
import threading
from contextlib import ContextDecorator, ExitStack
from typing import Any

import torch

BACKENDS: Any = torch.backends
SETTINGS: tuple[Any, ...] = (
    BACKENDS.mkldnn.matmul,
    BACKENDS.mkldnn.conv,
    BACKENDS.mkldnn.rnn,
    BACKENDS.cuda.matmul,
    BACKENDS.cudnn.conv,
    BACKENDS.cudnn.rnn,
)
"""What has a `fp32_precision`: with TF32 or bfloat16 in it some tokens would be others."""


class full_precision(ContextDecorator):
    """No autocast, no reduced precision inside float32 arithmetic, new tensors on the CPU.

    Autocast and the default device belong to a thread. The precision of float32 is the whole process's: the first
    to enter sets it and the last to leave brings the caller's back.
    """

    _lock = threading.Lock()
    _inside = 0
    _callers: tuple[str, ...] = ()

    def __init__(self) -> None:
        self._stacks: list[ExitStack] = []

    def _recreate_cm(self) -> full_precision:
        # A decorated function may run in several threads at once: each call gets its own.
        return full_precision()

    def __enter__(self) -> None:
        stack = ExitStack()
        for device in ("cpu", "cuda"):
            stack.enter_context(torch.autocast(device, enabled=False))
        stack.enter_context(torch.device("cpu"))
        self._stacks.append(stack)
        cls = full_precision
        with cls._lock:
            if not cls._inside:
                cls._callers = tuple(setting.fp32_precision for setting in SETTINGS)
                for setting in SETTINGS:
                    setting.fp32_precision = "ieee"
            cls._inside += 1

    def __exit__(self, *_: object) -> None:
        cls = full_precision
        with cls._lock:
            cls._inside -= 1
            if not cls._inside:
                for setting, value in zip(SETTINGS, cls._callers, strict=True):
                    setting.fp32_precision = value
        self._stacks.pop().close()


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16 itself: emulated it is slower than float32. `Q2D2_BFLOAT16=0` says no."""
    if os.environ.get("Q2D2_BFLOAT16") == "0":
        return False
    if device.type == "cpu":
        return _cpu_has_bfloat16()
    return device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


@functools.cache
def _cpu_has_bfloat16() -> bool:
    return any(there for name, there in torch.cpu.get_capabilities().items() if "bf16" in name)
