"""What computes a model: PyTorch, or ONNX Runtime without PyTorch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

from q2d2cli.errors import UsageError

if TYPE_CHECKING:
    from q2d2cli.checkpoints import Checkpoint
    from q2d2cli.passes import Network

Runtime = Literal["torch", "onnx"]
RUNTIMES: tuple[Runtime, ...] = get_args(Runtime)


def check_runtime(runtime: str, device: str) -> None:
    """Raise UsageError if there is no such runtime, its packages are missing, or it does not compute there."""
    if runtime not in RUNTIMES:
        raise UsageError(f"unknown runtime {runtime!r}: choose from {', '.join(RUNTIMES)}")
    if runtime == "onnx":
        if device not in ("auto", "cpu"):
            raise UsageError(f"runtime onnx computes on the CPU: leave out device {device}, or take runtime torch")
        from q2d2cli.runtimes.onnx import library

        library()
        return
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise UsageError("runtime torch needs PyTorch: pip install torch, or take runtime onnx") from error


def open_network(checkpoint: Checkpoint, device: str, runtime: str) -> Network:
    """A model ready to compute.

    Raises:
        UsageError: if there is no such runtime or device, or the model does not run there.
        Q2D2Error: if the checkpoint is damaged.
    """
    check_runtime(runtime, device)
    if runtime == "onnx":
        from q2d2cli.runtimes.onnx import OnnxNetwork

        return OnnxNetwork(checkpoint)
    from q2d2cli import checkpoints
    from q2d2cli.runtimes.pytorch import TorchNetwork, pick_device

    return TorchNetwork(checkpoints.load(checkpoint, pick_device(device)))


def passes_at_once(runtime: str) -> int:
    """How many passes a runtime makes side by side on a CPU."""
    if runtime == "onnx":
        from q2d2cli.runtimes.onnx import threads

        return threads()
    import torch

    return torch.get_num_threads()
