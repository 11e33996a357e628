"""TensorBoard: scalars, spectrograms and audio of a run, as event files."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import Tensor
from torch.utils.tensorboard import summary

from q2d2cli.files import make_folder
from q2d2cli.losses import stft

RANGE_DB = 80.0
"""Of a spectrogram, from white to black."""
WINDOW = 1024


class Board:
    """Writes event files at once: torch's own writer leaves that to a thread, whose errors reach nobody.

    Args:
        folder: for the event files; made if missing.
        step: where the run stands; what an earlier process wrote beyond it is hidden.
        sample_rate: of the audio, Hz.

    Raises:
        OSError: if the files cannot be written, here as in all methods.
    """

    def __init__(self, folder: Path, step: int, sample_rate: int) -> None:
        make_folder(folder)
        self.sample_rate = sample_rate
        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}"
        # Unbuffered, so that no error waits for the file to be closed.
        self._records = RecordWriter((folder / name).open("ab", buffering=0))
        self._write(0, file_version="brain.Event:2")
        if step:
            self._write(step + 1, session_log=SessionLog(status=SessionLog.START))

    def _write(self, step: int, **content: Any) -> None:
        self._records.write(Event(wall_time=time.time(), step=step, **content).SerializeToString())

    def scalars(self, step: int, group: str, values: Mapping[str, Any]) -> None:
        """Numbers by name; lists get one curve for each entry, None is left out."""
        for name, value in values.items():
            if isinstance(value, list):
                self.scalars(step, f"{group}/{name}", {str(i): v for i, v in enumerate(value)})
            elif value is not None:
                self._write(step, summary=summary.scalar(f"{group}/{name}", value))

    def clips(self, step: int, name: str, audio: Tensor) -> None:
        """Audio and spectrogram of each of `(clips, samples)`, in [-1, 1]."""
        for i, (clip, picture) in enumerate(zip(audio.float().cpu(), spectrograms(audio), strict=True)):
            tag = f"clip {i}/{name}"
            self._write(step, summary=summary.audio(tag, clip[None], self.sample_rate))
            self._write(step, summary=summary.image(tag, picture, dataformats="HW"))

    def close(self) -> None:
        """Finish the file."""
        self._records.close()


def spectrograms(audio: Tensor) -> Tensor:
    """`(clips, samples)` to pictures `(clips, bins, frames)` in [0, 1], low frequencies at the bottom, loud is dark."""
    audio = audio.float().cpu()
    magnitude = stft(audio, torch.hann_window(WINDOW)).abs().transpose(1, 2).flip(1)
    level = 20 * torch.log10(magnitude / (WINDOW / 4) + 1e-9)
    return (-level / RANGE_DB).clamp(0, 1)
