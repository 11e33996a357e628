"""Filling stretches of a .q2d file that are lost: the frames beside them repeated, and a fade to silence and back."""

from __future__ import annotations

import numpy as np

from q2d2cli.container.header import Header
from q2d2cli.container.payload import concealment

HOLD_SECONDS = 0.2
"""How much of what is beside a lost stretch is repeated in it."""
FADE_SECONDS = 0.1
"""How long the repeated audio takes to become silent; less than it is repeated."""


class Concealer:
    """Turns frames with gaps into frames without, and fades the audio that comes of them.

    Into a gap go the frames before it, backwards, and up to its end those behind it, backwards, so
    that nothing jumps; in the middle of a long one stands silence. The frames keep their places.

    Args:
        header: of the frames.
        first: the first frame that comes, counted from the file's start.

    Attributes:
        gaps: frames of each gap that may still be heard, `(first, behind the last)`; the second is None while it is
            not known, or if nothing is behind it.
    """

    def __init__(self, header: Header, first: int = 0) -> None:
        self._header = header
        self._hold = max(1, round(HOLD_SECONDS * header.frame_rate))
        self._before = np.empty((header.channels, 0, header.quantizer.num_indices), np.int64)
        self._frame = self._first = first
        self._missing = 0
        self._held = False
        self.gaps: list[tuple[int, int | None]] = []

    def push(self, indices: np.ndarray) -> list[np.ndarray]:
        """`(channels, frames, pairs)` that are sound; gives them, and before them what fills the gap before them."""
        pieces = self._close(indices) if self._missing else []
        self._before = np.concatenate([self._before, indices], axis=1)[:, -self._hold :]
        self._frame += indices.shape[1]
        return [*pieces, indices]

    def lose(self, frames: int) -> list[np.ndarray]:
        """So many frames are lost; gives what can be filled in already."""
        if not frames:
            return []
        if not self._missing:
            self.gaps.append((self._frame, None))
            self._held = False
        self._missing += frames
        self._frame += frames
        # The end of the gap waits for what is behind it.
        return self._fill(self._missing - self._hold) if self._missing > 2 * self._hold else []

    def finish(self) -> list[np.ndarray]:
        """There is nothing more; fills the gap that is open, if any."""
        return self._close(self._before[:, :0]) if self._missing else []

    def fade(self, samples: np.ndarray, first: int) -> np.ndarray:
        """Audio made of the frames, `(channels, samples)` at the original's rate, with its gaps faded out.

        Args:
            samples: the audio.
            first: its first sample, counted from the file's start.
        """
        header, end = self._header, first + samples.shape[1]
        ramp = FADE_SECONDS * header.original_rate
        per_frame = header.hop * header.original_rate / header.sample_rate
        self.gaps = [gap for gap in self.gaps if gap[1] is None or gap[1] * per_frame > first]
        gain = np.ones(samples.shape[1], np.float32)
        at = np.arange(first, end)
        for begin, stop in self.gaps:
            # Half the gap at most for each of the two ramps; at the file's start and end there is one only.
            both = stop is not None and begin > self._first
            length = min(ramp, (stop - begin) * per_frame / 2) if both and stop is not None else ramp
            falling = 1 - (at - begin * per_frame) / length if begin > self._first else np.zeros(len(at))
            rising = np.zeros(len(at)) if stop is None else 1 - (stop * per_frame - at) / length
            inside = at >= begin * per_frame
            if stop is not None:
                inside &= at < stop * per_frame
            gain[inside] *= np.clip(np.maximum(falling, rising), 0, 1)[inside].astype(np.float32)
        return samples * gain

    def _close(self, after: np.ndarray) -> list[np.ndarray]:
        """Fill what is missing up to the frames `after` it."""
        tail = min(self._missing, self._hold, after.shape[1])
        if not self._held:
            # A short gap: half from either side.
            tail = min(tail, self._missing - min(self._before.shape[1], self._missing // 2))
        pieces = self._fill(self._missing - tail)
        self._missing = 0
        if after.shape[1]:
            self.gaps[-1] = (self.gaps[-1][0], self._frame)
        return [*pieces, after[:, :tail][:, ::-1].copy()]

    def _fill(self, frames: int) -> list[np.ndarray]:
        """The next so many frames of the gap: the ones before it, backwards, as far as they last, then silence."""
        self._missing -= frames
        pieces = []
        if not self._held:
            self._held = True
            pieces.append(self._before[:, ::-1][:, :frames].copy())
            frames -= pieces[0].shape[1]
        while frames:
            size = min(frames, 4096)
            pieces.append(concealment(self._header, size))
            frames -= size
        return pieces
