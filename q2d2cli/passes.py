"""Passes of a network whose results depend on nothing but their own input: one signal each, on one thread each.

The last bits of what a matrix product gives depend on its shape and on the number of threads that share it, and
where a feature lies on the border between two grid points, they decide the token. So every signal goes through the
network alone and on a single thread, and the processor's cores are kept busy by several passes side by side.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

_making = threading.Lock()


def run_alone(function: Callable[[Tensor], Tensor], inputs: Sequence[Tensor]) -> Callable[[], list[Tensor]]:
    """Begin a function for each of several inputs; no input changes the result of another, bit by bit.

    Args:
        function: a pass of a network; it is called from several threads.
        inputs: tensors of any shapes, on the device of the network. Those on the CPU share
            `torch.get_num_threads()` threads, those elsewhere go one after the other.

    Returns:
        What waits for the results and gives them. Where there are threads for it, the caller can do something else
        meanwhile.
    """
    threads = torch.get_num_threads()
    if threads == 1 or any(value.device.type != "cpu" for value in inputs):
        results = [function(value) for value in inputs]
        return lambda: results
    futures = [_workers(os.getpid(), threads).submit(function, value) for value in inputs]
    return lambda: [future.result() for future in futures]


def files_at_once() -> int:
    """How many files to work at side by side; 1 if there is one thread."""
    # One more than there are cores: some read and write while others wait for their passes.
    threads = torch.get_num_threads()
    return threads + 1 if threads > 1 else 1


def side_by_side(function: Callable[[int], Tensor], count: int) -> list[Tensor]:
    """Results of a function for each number below `count`; it makes its passes with `run_alone`."""
    callers = min(count, files_at_once())
    if callers < 2:
        return [function(number) for number in range(count)]
    with ThreadPoolExecutor(callers, "q2d2-clip") as pool:
        return list(pool.map(function, range(count)))


def _workers(process: int, threads: int) -> ThreadPoolExecutor:
    """Threads that use one core each; a process that was forked gets its own."""
    with _making:
        return _make_workers(process, threads)


@functools.cache
def _make_workers(process: int, threads: int) -> ThreadPoolExecutor:
    pool = ThreadPoolExecutor(threads, "q2d2-pass", initializer=_take_one_core)
    together = threading.Barrier(threads)
    try:
        list(pool.map(lambda _: together.wait(), range(threads)))
    except BaseException:
        # A signal came before all had been started: those that wait for the rest would keep the process alive.
        together.abort()
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    # What a thread sets holds for itself and for threads that are born later, which should have what they had.
    torch.set_num_threads(threads)
    return pool


def _take_one_core() -> None:
    # A thread takes the number of the process when it first asks: that must be before it sets its own.
    torch.get_num_threads()
    torch.set_num_threads(1)
