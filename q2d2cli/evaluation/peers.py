"""Neural codecs of others to compare with: EnCodec, DAC and Mimi (`transformers`), SNAC (its own package)."""

from __future__ import annotations

import importlib
from abc import abstractmethod
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import soxr
import torch
from torch import Tensor

from q2d2cli.errors import Q2D2Error, UsageError
from q2d2cli.evaluation.subjects import CodecSubject, Size, fit
from q2d2cli.runtimes.pytorch import pick_device


class Peer(CodecSubject):
    """A neural codec with residual codebooks.

    Args:
        setting: EnCodec: kbit/s; the others: codebooks to use; empty for the most.
        device: `auto`, `cpu`, `cuda`.

    Raises:
        UsageError: if the setting is impossible.
        Q2D2Error: if the package or the weights are not here.
    """

    kind: ClassVar[str]
    package: ClassVar[str] = "transformers"
    repository: ClassVar[str]
    """Hub id of the weights."""
    bits: ClassVar[int]
    """Of one token."""
    frame_rates: ClassVar[tuple[float, ...]]
    """Frames per second of each codebook."""
    rate: ClassVar[int] = 24_000

    def __init__(self, setting: str, device: str) -> None:
        self.num_quantizers = count = self.count(setting)
        self.device = pick_device(device)
        importlib.import_module("huggingface_hub.utils.logging").set_verbosity_error()  # a warning for each retry
        try:
            model = self.load()
        except ImportError as error:
            raise Q2D2Error(f"{self.kind} needs one more package: pip install {self.package}") from error
        except (OSError, ValueError, RuntimeError) as error:
            raise Q2D2Error(
                f"the weights of {self.kind} ({self.repository}) are not here and could not be fetched from the Hub"
            ) from error
        self.model = model.to(self.device).eval()
        self.token_rate = sum(self.frame_rates[:count])
        self.name = f"{self.kind} {self.token_rate * self.bits / 1000:.2f} kbit/s"
        self.identity = f"{self.kind}:{count}"

    def count(self, setting: str) -> int:
        """Codebooks to use."""
        most = len(self.frame_rates)
        if not setting:
            return most
        if not setting.isdecimal() or not 1 <= int(setting) <= most:
            raise UsageError(f"{self.kind}:{setting} is not understood: give the number of codebooks, 1 to {most}")
        return int(setting)

    def load(self) -> Any:
        """The network."""
        transformers = importlib.import_module("transformers")
        importlib.import_module("transformers.utils.logging").disable_progress_bar()
        return getattr(transformers, f"{self.kind.capitalize()}Model").from_pretrained(self.repository)

    @abstractmethod
    def to_codes(self, x: Tensor) -> list[Tensor]:
        """`(1, 1, samples)` to codes, in one tensor or one for each codebook."""

    @abstractmethod
    def to_audio(self, codes: list[Tensor]) -> Tensor:
        """Codes to samples of any shape."""

    def encode(self, audio: np.ndarray, rate: int) -> list[Tensor]:
        """To codes."""
        x = torch.from_numpy(soxr.resample(audio, rate, self.rate))[None, None].to(self.device)
        with torch.inference_mode():
            return self.to_codes(x)

    def decode(self, encoded: list[Tensor], rate: int, num_samples: int) -> np.ndarray:
        """From codes."""
        with torch.inference_mode():
            decoded = self.to_audio(encoded).reshape(-1).float().cpu().numpy()
        return fit(soxr.resample(decoded, self.rate, rate), num_samples)

    def size(self, encoded: list[Tensor]) -> Size:
        """Of the codes alone."""
        return Size(float(sum(codes.numel() for codes in encoded) * self.bits))

    def stamp(self, relative: Path) -> str:
        """Changes when the package does."""
        return version(self.package)


class Encodec(Peer):
    """EnCodec, 24 kHz."""

    kind, repository, bits, frame_rates = "encodec", "facebook/encodec_24khz", 10, (75.0,) * 32
    bandwidths: ClassVar[dict[str, int]] = {"1.5": 2, "3": 4, "6": 8, "12": 16, "24": 32}
    """kbit/s, and how many codebooks they take."""

    def count(self, setting: str) -> int:
        """Codebooks of a bandwidth."""
        if (setting or "24") not in self.bandwidths:
            raise UsageError(f"encodec:{setting} is not one of its bandwidths: {', '.join(self.bandwidths)}")
        return self.bandwidths[setting or "24"]

    def to_codes(self, x: Tensor) -> list[Tensor]:
        """As `Peer`."""
        assert self.num_quantizers
        return [self.model.encode(x, bandwidth=self.num_quantizers * 0.75).audio_codes]

    def to_audio(self, codes: list[Tensor]) -> Tensor:
        """As `Peer`."""
        return self.model.decode(codes[0], [None] * len(codes[0])).audio_values


class Dac(Peer):
    """Descript Audio Codec, 24 kHz."""

    kind, repository, bits, frame_rates = "dac", "descript/dac_24khz", 10, (75.0,) * 32

    def to_codes(self, x: Tensor) -> list[Tensor]:
        """As `Peer`."""
        return [self.model.encode(x, n_quantizers=self.num_quantizers).audio_codes]

    def to_audio(self, codes: list[Tensor]) -> Tensor:
        """As `Peer`."""
        return self.model.decode(audio_codes=codes[0]).audio_values


class Mimi(Peer):
    """Mimi, 24 kHz; Moshi uses 8 of its codebooks."""

    kind, repository, bits, frame_rates = "mimi", "kyutai/mimi", 11, (12.5,) * 32

    def to_codes(self, x: Tensor) -> list[Tensor]:
        """As `Peer`."""
        return [self.model.encode(x, num_quantizers=self.num_quantizers).audio_codes]

    def to_audio(self, codes: list[Tensor]) -> Tensor:
        """As `Peer`."""
        return self.model.decode(codes[0]).audio_values


class Snac(Peer):
    """SNAC, 24 kHz: codebooks at three rates, all used."""

    kind, package, repository = "snac", "snac", "hubertsiuzdak/snac_24khz"
    bits, frame_rates = 12, (24_000 / 2048, 24_000 / 1024, 24_000 / 512)

    def count(self, setting: str) -> int:
        """All of them."""
        if setting:
            raise UsageError(f"snac:{setting} is not understood: it has one setting, write --codec snac")
        return len(self.frame_rates)

    def load(self) -> Any:
        """The network."""
        return importlib.import_module("snac").SNAC.from_pretrained(self.repository)

    def to_codes(self, x: Tensor) -> list[Tensor]:
        """As `Peer`."""
        return list(self.model.encode(x))

    def to_audio(self, codes: list[Tensor]) -> Tensor:
        """As `Peer`."""
        return self.model.decode(codes)


PEERS: dict[str, type[Peer]] = {peer.kind: peer for peer in (Encodec, Dac, Mimi, Snac)}
