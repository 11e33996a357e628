"""A model's passes in PyTorch, on arrays, and the device they run on."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from q2d2cli.errors import UsageError
from q2d2cli.models.config import ModelConfig
from q2d2cli.models.model import CodecModel
from q2d2cli.passes import Rate, Results, run_alone
from q2d2cli.search import Search


class TorchNetwork:
    """`passes.Network` of a model: on the CPU `torch.get_num_threads()` passes side by side, elsewhere one by one.

    Attributes:
        model: the network.
        device: where it is.
    """

    def __init__(self, model: CodecModel) -> None:
        self.model, self.device = model, next(model.parameters()).device

    @property
    def config(self) -> ModelConfig:
        """Of the model."""
        return self.model.config

    @property
    def threads(self) -> int:
        """How many passes it makes side by side on a CPU."""
        return torch.get_num_threads()

    def encode(self, audio: Sequence[np.ndarray]) -> Results:
        """As `Network.encode`."""
        return self._begin(self.frames_of, audio)

    def decode(self, indices: Sequence[np.ndarray]) -> Results:
        """As `Network.decode`."""
        return self._begin(self.model.decode, indices)

    def frames_of(self, audio: Tensor) -> Tensor:
        """What is wanted of every frame: `(1, samples)` to `(1, frames, pairs)`.

        A subclass may want something else than indices; an encoder then gives that.
        """
        return self.model.encode(audio)

    def search(self, rounds: int, on_round: Callable[[float], None], rate: Rate | None) -> Search:
        """As `Network.search`."""
        return Search(self.model, rounds, on_round, rate)

    def _begin(self, function: Callable[[Tensor], Tensor], inputs: Sequence[np.ndarray]) -> Results:
        threads = self.threads if self.device.type == "cpu" else 1

        def run(values: np.ndarray) -> np.ndarray:
            return function(torch.from_numpy(values).to(self.device)).cpu().numpy()

        return run_alone(run, inputs, threads, take_one_core, give_cores(threads))


def take_one_core() -> None:
    """Let this thread use one core."""
    # A thread takes the number of the process when it first asks: that must be before it sets its own.
    torch.get_num_threads()
    torch.set_num_threads(1)


@functools.cache
def give_cores(threads: int) -> Callable[[], None]:
    """What gives threads that are born later so many cores: what a thread sets holds for itself and for those."""
    return functools.partial(torch.set_num_threads, threads)


def pick_device(name: str) -> torch.device:
    """A usable device; `auto` is CUDA when present, else the CPU.

    Raises:
        UsageError: if the name is unknown or the device is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"unknown device {name!r}: use auto, cpu, cuda, cuda:N or mps") from error
    if device.type == "cuda":
        there = torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()
    elif device.type == "mps":
        there = torch.backends.mps.is_available()
    else:
        there = device.type == "cpu"
    if not there:
        raise UsageError(f"device {name!r} is not available here: use auto or cpu")
    return device
