"""What is compared: the base classes, the recordings themselves, files decoded elsewhere; and their alignment."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from q2d2cli.audio import read_mono
from q2d2cli.errors import Q2D2Error
from q2d2cli.files import check_input, file_stamp

FRAME_SECONDS = 0.04
"""By how much a pair of files may differ in length: the longest frame of common codecs."""


class Size(NamedTuple):
    """How large a coded signal is."""

    payload_bits: float | None = None
    """Coded audio, without headers; None if not known."""
    file_bytes: int | None = None
    """Of the whole file; None if there is none."""


UNKNOWN = Size()


@dataclass(frozen=True)
class Reconstruction:
    """What came out of a codec for one signal.

    Attributes:
        audio: `(samples,)` float32 at the rate and of the length of the input.
        size: how large it was in between.
        indices: `(frames, pairs)` int64, the points chosen; None for other codecs.
    """

    audio: np.ndarray
    size: Size = UNKNOWN
    indices: np.ndarray | None = None


class Subject(ABC):
    """What is under test: a codec, or files that one has decoded.

    Attributes:
        name: in tables; tells its settings.
        identity: changes whenever results would.
        num_quantizers: tokens per frame (N_q), None if it has no tokens.
        token_rate: tokens per second, None if it has none.
        sizes: points of each pair's grid, None for other codecs.
    """

    name: str
    identity: str
    num_quantizers: int | None = None
    token_rate: float | None = None
    sizes: tuple[int, ...] | None = None

    @abstractmethod
    def reconstruct(self, audio: np.ndarray, rate: int, relative: Path) -> Reconstruction:
        """What becomes of `(samples,)` float32 at `rate` Hz, read from the file `relative` to its folder.

        Raises:
            Q2D2Error: if it fails.
        """

    def stamp(self, relative: Path) -> str:
        """Changes when something outside the clip and the codec's `identity` does that results depend on."""
        return ""


class CodecSubject(Subject):
    """A codec that can run here."""

    @abstractmethod
    def encode(self, audio: np.ndarray, rate: int) -> Any:
        """`(samples,)` float32 at `rate` Hz to whatever `decode` takes.

        Raises:
            Q2D2Error: if it fails.
        """

    @abstractmethod
    def decode(self, encoded: Any, rate: int, num_samples: int) -> np.ndarray:
        """Back to `(num_samples,)` float32 at `rate` Hz.

        Raises:
            Q2D2Error: if it fails.
        """

    @abstractmethod
    def size(self, encoded: Any) -> Size:
        """How large what `encode` gave is; apart from the work that is timed.

        Raises:
            Q2D2Error: if it fails.
        """

    def indices(self, encoded: Any) -> np.ndarray | None:
        """`(frames, pairs)` int64, the points chosen, of what `encode` gave; None for other codecs."""
        return None

    def reconstruct(self, audio: np.ndarray, rate: int, relative: Path) -> Reconstruction:
        """Encode and decode."""
        encoded = self.encode(audio, rate)
        decoded = self.decode(encoded, rate, len(audio))
        return Reconstruction(decoded, self.size(encoded), self.indices(encoded))


class Original(Subject):
    """The recordings themselves, for metrics that need no reference (the paper's ground truth row)."""

    name = identity = "original"

    def reconstruct(self, audio: np.ndarray, rate: int, relative: Path) -> Reconstruction:
        """Nothing to do."""
        return Reconstruction(audio)


class FolderSubject(Subject):
    """Files that some other codec has decoded, in a folder of the same shape.

    Args:
        folder: of the degraded files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = folder.name or str(folder)
        self.identity = f"folder:{folder.resolve()}"

    def reconstruct(self, audio: np.ndarray, rate: int, relative: Path) -> Reconstruction:
        """The degraded counterpart of a reference.

        Raises:
            UsageError: if it is not there.
            Q2D2Error: if its length differs by more than a frame (40 ms).
        """
        path = self.find(relative)
        degraded = read_mono(path, rate)
        lengths = [len(x) / rate for x in (degraded, audio)]
        if abs(lengths[0] - lengths[1]) > FRAME_SECONDS:
            raise Q2D2Error(f"{path} lasts {lengths[0]:.2f} s and its reference {lengths[1]:.2f} s: not the same clip")
        return Reconstruction(fit(degraded, len(audio)))

    def stamp(self, relative: Path) -> str:
        """Changes when the degraded file does."""
        try:
            return file_stamp(self.find(relative))
        except Q2D2Error:
            return "missing"

    def find(self, relative: Path) -> Path:
        """The file of this name, whatever its format.

        Raises:
            UsageError: if there is none.
        """
        path = self.folder / relative
        if path.is_file():
            return path
        for candidate in sorted(path.parent.glob(f"{path.stem}.*")) if path.parent.is_dir() else ():
            if candidate.is_file():
                return candidate
        check_input(path)
        raise AssertionError


def fit(audio: np.ndarray, num_samples: int) -> np.ndarray:
    """Cut or fill with zeros to `num_samples`."""
    return np.pad(audio[:num_samples], (0, max(0, num_samples - len(audio)))).astype(np.float32)
