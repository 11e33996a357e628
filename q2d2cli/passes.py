"""Passes of a network whose results depend on nothing but their own input: one signal each, on one thread each.

The last bits of what a matrix product gives depend on its shape and on the number of threads that share it, and
where a feature lies on the border between two grid points, they decide the token. So every signal goes through the
network alone and on a single thread, and the processor's cores are kept busy by several passes side by side. Imports no
torch.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np

if TYPE_CHECKING:
    from q2d2cli.container.coding.context import ContextModel
    from q2d2cli.models.config import ModelConfig

T = TypeVar("T")
Results = Callable[[], list[np.ndarray]]
"""Waits for passes that were begun, and gives what they give."""

_making = threading.Lock()


@dataclass(frozen=True)
class Rate:
    """What the search pays for bits.

    Attributes:
        weight: of a bit per frame against the losses, above 0.
        context: the context model that codes the tokens.
    """

    weight: float
    context: ContextModel


class Searcher(Protocol):
    """What looks for better tokens than the encoder gives (`q2d2cli.search`)."""

    @property
    def context(self) -> int | None:
        """Frames on either side that the best token of one depends on, directly; None if unbounded."""

    def on_arrays(self, audio: np.ndarray, known: np.ndarray) -> np.ndarray:
        """`(1, samples)` float32 and the `(1, n, pairs)` int64 indices that stay, to all `(1, frames, pairs)`."""


class Network(Protocol):
    """A model as streams use it, whatever computes it: passes over arrays, each alone."""

    @property
    def config(self) -> ModelConfig:
        """Of the model."""

    @property
    def threads(self) -> int:
        """How many passes it makes side by side."""

    def encode(self, audio: Sequence[np.ndarray]) -> Results:
        """Begin to encode signals, each `(1, samples)` float32 at the model's rate, to `(1, frames, pairs)` int64."""

    def decode(self, indices: Sequence[np.ndarray]) -> Results:
        """Begin to decode pair indices, each `(1, frames, pairs)` int64, to `(1, frames * hop)` float32."""

    def search(self, rounds: int, on_round: Callable[[float], None], rate: Rate | None) -> Searcher:
        """What searches for better tokens, see there.

        Raises:
            UsageError: if that is not possible.
        """


def run_alone(
    function: Callable[[T], np.ndarray],
    inputs: Sequence[T],
    threads: int,
    prepare: Callable[[], None] | None = None,
    restore: Callable[[], None] | None = None,
) -> Results:
    """Begin a function for each of several inputs; no input changes the result of another, bit by bit.

    Args:
        function: a pass of a network; it is called from several threads.
        inputs: one for each pass.
        threads: how many passes to make side by side.
        prepare: called by each thread when it begins.
        restore: called once, after all threads have begun.

    Returns:
        What waits for the results and gives them. Where there are threads for it, the caller can do something else
        meanwhile.
    """
    if threads == 1:
        results = [function(value) for value in inputs]
        return lambda: results
    futures = [_workers(os.getpid(), threads, prepare, restore).submit(function, value) for value in inputs]
    return lambda: [future.result() for future in futures]


def files_at_once(threads: int) -> int:
    """How many files to work at side by side on so many threads; 1 if there is one."""
    # One more than there are cores: some read and write while others wait for their passes.
    return threads + 1 if threads > 1 else 1


def side_by_side(function: Callable[[int], T], count: int, threads: int) -> list[T]:
    """Results of a function for each number below `count`; it makes its passes with `run_alone` on so many threads."""
    callers = min(count, files_at_once(threads))
    if callers < 2:
        return [function(number) for number in range(count)]
    with ThreadPoolExecutor(callers, "q2d2-clip") as pool:
        return list(pool.map(function, range(count)))


def _workers(
    process: int, threads: int, prepare: Callable[[], None] | None, restore: Callable[[], None] | None
) -> ThreadPoolExecutor:
    """Threads that use one core each; a process that was forked gets its own."""
    with _making:
        return _make_workers(process, threads, prepare, restore)


@functools.cache
def _make_workers(
    process: int, threads: int, prepare: Callable[[], None] | None, restore: Callable[[], None] | None
) -> ThreadPoolExecutor:
    pool = ThreadPoolExecutor(threads, "q2d2-pass", initializer=prepare)
    together = threading.Barrier(threads)
    try:
        list(pool.map(lambda _: together.wait(), range(threads)))
    except BaseException:
        # A signal came before all had been started: those that wait for the rest would keep the process alive.
        together.abort()
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    if restore is not None:
        restore()
    return pool
