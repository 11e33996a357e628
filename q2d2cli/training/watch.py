"""Watching a run: the display on the terminal, `log.jsonl`, and TensorBoard."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import time
from collections.abc import Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor

from q2d2cli.errors import Q2D2Error
from q2d2cli.evaluation.codebook import pair_utilization
from q2d2cli.training.config import LOG_NAME, TrainConfig

if TYPE_CHECKING:
    from q2d2cli.training.board import Board

BOARD_NAME = "tensorboard"
LINE_SECONDS = 60.0
"""Off a terminal, a line comes this often."""
CLIPS = 3
"""Validation crops that are shown and played in TensorBoard."""


class Display(Progress):
    """A progress bar with lines of numbers below it."""

    lines: tuple[str, ...] = ()

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bar, then the lines."""
        yield self.make_tasks_table(self.tasks)
        yield from self.lines


class Watch:
    """Collects what steps give and tells of it: on the terminal and in files by the first process.

    Args:
        config: of the run.
        out: its folder.
        accelerator: its processes.
        console: where the display is.
        step: steps done before.
        progress: share of the run done before, in [0, 1].

    Raises:
        Q2D2Error: if log or TensorBoard cannot be written, here as in all methods.
    """

    def __init__(
        self,
        config: TrainConfig,
        out: Path,
        accelerator: Accelerator,
        console: Console,
        *,
        step: int = 0,
        progress: float = 0.0,
    ) -> None:
        self.config, self.out, self.accelerator, self.console = config, out, accelerator, console
        self.sizes = config.model.quantizer.spec().sizes
        self.losses: dict[str, list[Tensor]] = {}
        self.indices: list[Tensor] = []
        self.minutes = 0.0
        """Of the steps since the last report."""
        columns = (TextColumn("step {task.description}"), BarColumn(), TextColumn("{task.percentage:.0f}%"))
        times = (TimeElapsedColumn(), TextColumn("{task.fields[left]} left"))
        self.display = Display(*columns, *times, console=console, disable=not console.is_terminal)
        self.task = self.display.add_task(str(step), total=1, left="?")
        self.display.update(self.task, completed=progress)
        self.begun, self.progress, self.begun_at = progress, progress, time.monotonic()
        self.last_line = -math.inf
        self.board: Board | None = None
        self.shown = False
        if config.tensorboard and accelerator.is_main_process:
            try:
                from q2d2cli.training.board import Board
            except ImportError:
                console.print("no TensorBoard here: pip install tensorboard, or --set tensorboard=false")
                return
            with writing(self.out):
                self.board = Board(out / BOARD_NAME, step, config.model.sample_rate)

    def __enter__(self) -> Watch:
        self.display.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.display.stop()
        if self.board:
            self.board.close()

    def count(self, losses: dict[str, Tensor], indices: Tensor, minutes: float) -> None:
        """Take in one step: scalars, `(batch, frames, pairs)` indices, and what it took."""
        for name, value in losses.items():
            self.losses.setdefault(name, []).append(value)
        self.indices.append(indices)
        self.minutes += minutes

    def moved(self, step: int, progress: float) -> None:
        """Move the bar to `progress` in [0, 1]."""
        self.progress = progress
        self.display.update(self.task, completed=progress, description=str(step), left=self.left)

    def report(self, step: int, minutes: float, extra: dict[str, Any]) -> None:
        """Means over the steps since the last report (all processes take part), speed, and use of the codebook.

        Utilization is the share of each pair's points that the first process's batches held.

        Args:
            step: steps done.
            minutes: time of the run.
            extra: more numbers for the log.
        """
        means = {name: self._mean(values) for name, values in self.losses.items()}
        steps = len(self.indices)
        rate = steps / max(60 * self.minutes, 1e-9)
        batch = self.config.optim.batch_size * self.accelerator.num_processes
        indices = torch.cat([i.flatten(0, -2) for i in self.indices]).cpu().numpy()
        speed = {
            "steps_per_second": round(rate, 3),
            "audio_seconds_per_second": round(rate * batch * self.config.data.crop_seconds, 2),
            "utilization": [round(share, 4) for share in pair_utilization(indices, self.sizes)],
        }
        self.losses.clear()
        self.indices.clear()
        self.minutes = 0.0
        self._log(step, minutes, {**means, **speed, **extra})
        if self.board:
            with writing(self.out):
                self.board.scalars(step, "train", {**means, **speed, **extra})
        used = " ".join(f"{100 * share:.0f}%" for share in speed["utilization"])
        self.display.lines = (
            "  ".join(f"{name} {'-' if value is None else f'{value:.3f}'}" for name, value in means.items()),
            f"{rate:.2f} steps/s  {speed['audio_seconds_per_second']:.1f} s of audio/s  points used {used}",
        )
        if not self.console.is_terminal and time.monotonic() - self.last_line >= LINE_SECONDS:
            self.last_line = time.monotonic()
            self.console.print(
                f"step {step} ({self.progress:.0%}, {self.left} left): {'  '.join(self.display.lines)}", soft_wrap=True
            )

    @property
    def left(self) -> str:
        """Time until the run ends at the speed since it began or went on, as hours:minutes:seconds."""
        share = self.progress - self.begun
        seconds = (time.monotonic() - self.begun_at) * (1 - self.progress) / share if share > 0 else 0.0
        return str(timedelta(seconds=round(seconds)))

    def validated(
        self, step: int, minutes: float, result: dict[str, Any], *, reference: Tensor, estimate: Tensor
    ) -> None:
        """Tell of a validation (first process only): its numbers, and some of its `(clips, samples)` signals."""
        self._log(step, minutes, result)
        self.console.print(f"step {step}: " + " ".join(f"{k} {v}" for k, v in result.items()))
        if not self.board:
            return
        with writing(self.out):
            self.board.scalars(step, "valid", {k: v for k, v in result.items() if not isinstance(v, bool)})
            if not self.shown:
                self.board.clips(step, "reference", reference[:CLIPS])
                self.shown = True
            self.board.clips(step, "estimate", estimate[:CLIPS])

    def _mean(self, values: list[Tensor]) -> float | None:
        """Mean over the finite ones of the values of all processes, None if there is none."""
        stacked = torch.stack(values).float()
        finite = stacked.isfinite()
        total, count = self.accelerator.reduce(torch.stack([stacked[finite].sum(), finite.sum()]), "sum").tolist()
        return round(total / count, 4) if count else None

    def _log(self, step: int, minutes: float, entry: dict[str, Any]) -> None:
        """Append one line to the log (first process only)."""
        if not self.accelerator.is_main_process:
            return
        # Neither NaN nor infinity is JSON.
        known = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in entry.items()}
        line = json.dumps({"step": step, "minutes": round(minutes, 3), **known}, allow_nan=False) + "\n"
        with writing(self.out), (self.out / LOG_NAME).open("ab", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            if file.write(line.encode()) < len(line):
                # The disk filled up within the line.
                file.truncate(end)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn a failure to write below `folder` into one line."""
    try:
        yield
    except OSError as error:
        raise Q2D2Error(f"cannot write to {folder}: {error.strerror or error}") from error
