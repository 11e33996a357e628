"""The saved states of a run: the newest and some before it, each whole or not there."""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path
from typing import Any

import torch

from q2d2cli.errors import Q2D2Error
from q2d2cli.files import atomic_output

STATE_NAME = "state.pt"
"""The newest state; those before it are `state-STEP.pt`."""


class States:
    """States in a run's folder.

    Args:
        folder: of the run.
        keep: how many stay.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep
        self.newest: int | None = None
        """Step of `state.pt`, once it has been read or written here."""

    def paths(self) -> list[Path]:
        """States that are there, newest first."""
        newest = self.folder / STATE_NAME
        older = [path for path in self.folder.glob("state-*.pt") if path.stem.removeprefix("state-").isdecimal()]
        return [newest] * newest.exists() + sorted(older, key=step_of, reverse=True)

    def save(self, state: dict[str, Any]) -> None:
        """Write a state (with its `step`) as the newest one; the oldest go.

        Raises:
            Q2D2Error: if it cannot be written; what was there before stays.
        """
        buffer = io.BytesIO()
        torch.save(state, buffer)
        path = self.folder / STATE_NAME
        with atomic_output(path) as file:
            file.write(buffer.getbuffer())
            # On the disk before the one it follows is touched.
            file.flush()
            os.fsync(file.fileno())
            if self.newest is not None and self.newest != state["step"]:
                os.replace(path, self.folder / f"state-{self.newest}.pt")
        self.newest = state["step"]
        for old in self.paths()[self.keep :]:
            old.unlink(missing_ok=True)

    def load(self) -> tuple[dict[str, Any], list[str]]:
        """The newest state that can be read, on the CPU, and a line on each newer one that cannot.

        Raises:
            Q2D2Error: if none can.
        """
        notes: list[str] = []
        for path in self.paths():
            try:
                state = torch.load(path, map_location="cpu", weights_only=True)
                step = int(state["step"])
            except (RuntimeError, KeyError, TypeError, ValueError, EOFError, OSError, pickle.UnpicklingError) as error:
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                notes.append(f"{path} is damaged ({reason})")
                continue
            if path.name == STATE_NAME:
                self.newest = step
            return state, [f"{note}: going on from {path}, step {step}" for note in notes]
        raise Q2D2Error(f"no state in {self.folder} can be read ({'; '.join(notes)}): start again in another folder")


def step_of(path: Path) -> int:
    """Step in the name of `state-STEP.pt`."""
    return int(path.stem.removeprefix("state-"))
