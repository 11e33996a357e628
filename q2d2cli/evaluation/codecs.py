"""Codecs to compare: this project's models, also over a bad channel, and external programs; opens any subject."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import tempfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import soundfile
import soxr

from q2d2cli.container.channel import Channel, channel_header, damage_indices
from q2d2cli.container.header import Payload
from q2d2cli.container.stream import Reader
from q2d2cli.errors import Q2D2Error, UsageError
from q2d2cli.evaluation.peers import PEERS
from q2d2cli.evaluation.subjects import CodecSubject, Original, Size, Subject, fit

CHANNEL_MARK = "|"
"""Between a model's description and that of the channel."""
TOOL_SECONDS = 600
"""An external program that takes longer for one file is stopped."""


class Q2D2Subject(CodecSubject):
    """One of this project's models.

    Args:
        model: as `Codec.from_pretrained` takes it.
        device: the same.
        effort: as `Codec.encode` takes it.
        rate_weight: there, too.
    """

    def __init__(self, model: str, device: str, effort: int = 0, rate_weight: float = 0.0) -> None:
        from q2d2cli import checkpoints
        from q2d2cli.codec import Codec
        from q2d2cli.streaming import check_search

        self.codec, self.effort, self.rate_weight = Codec.from_pretrained(model, device), effort, rate_weight
        check_search(self.codec.header(self.codec.sample_rate, 1, None), effort, rate_weight)
        self.name = self.codec.name + (f", effort {effort}" if effort else "")
        self.name += f", lambda {rate_weight:g}" if rate_weight else ""
        self.identity = f"q2d2:{self.codec.encoder_fingerprint.hex()}" + (f":{effort}" if effort else "")
        self.identity += f":{rate_weight:g}" if rate_weight else ""
        if self.codec.context is not None:
            self.identity += f":context {self.codec.context.fingerprint.hex()}"
        # A student's decoder may be a later one than that it was taught under.
        decoder = checkpoints.decoding_part(checkpoints.find(model)).fingerprint()
        if decoder not in (self.codec.fingerprint, self.codec.encoder_fingerprint):
            self.identity += f":decoder {decoder.hex()}"
        self.num_quantizers = 1
        self.token_rate = self.codec.frame_rate
        self.sizes = self.codec.quantizer.sizes

    def encode(self, audio: np.ndarray, rate: int) -> Any:
        """To `Tokens`."""
        return self.codec.encode(audio, rate, effort=self.effort, rate_weight=self.rate_weight)

    def decode(self, encoded: Any, rate: int, num_samples: int) -> np.ndarray:
        """From `Tokens`."""
        return self.codec.decode(encoded).numpy()[0]

    def size(self, encoded: Any) -> Size:
        """Of the .q2d file."""
        file = io.BytesIO()
        encoded.save(file)
        file.seek(0)
        reader = Reader(file)
        for _ in reader.blocks():
            pass
        return Size(8 * reader.payload_bytes, reader.bytes_read)

    def indices(self, encoded: Any) -> np.ndarray | None:
        """Of `Tokens`."""
        return encoded.indices.numpy()[0]

    def recall(self, indices: np.ndarray, rate: int, num_samples: int) -> np.ndarray:
        """The first `num_samples` samples at `rate` from the `(frames, pairs)` of an earlier encoding."""
        import torch

        from q2d2cli.codec import Tokens

        header = self.codec.header(rate, 1, num_samples)
        tokens = Tokens(torch.from_numpy(indices[: header.frames_for(num_samples)]).long()[None], header)
        return self.codec.decode(tokens).numpy()[0]


@dataclass(frozen=True)
class ChannelSetting:
    """What happens to tokens between encoder and decoder.

    Attributes:
        payload: payload mode that they travel in.
        kind: bit error rate or share of lost blocks.
        value: how much of it, in [0, 1].
    """

    payload: Payload
    kind: Literal["ber", "loss"]
    value: float

    def __str__(self) -> str:
        return f"{self.payload}, {'bit errors' if self.kind == 'ber' else 'packet loss'} {self.value:g}"


class ChannelSubject(CodecSubject):
    """One of this project's models over a bad channel.

    Args:
        codec: the model.
        setting: what the channel does; reproducible for each clip.
    """

    def __init__(self, codec: Q2D2Subject, setting: ChannelSetting) -> None:
        self.inner, self.setting = codec, setting
        self.name = f"{codec.name} ({setting})"
        self.identity = f"{codec.identity}:{setting}"
        self.num_quantizers, self.token_rate = codec.num_quantizers, codec.token_rate

    def encode(self, audio: np.ndarray, rate: int) -> Any:
        """To what arrives of `Tokens`."""
        import torch

        sent = self.inner.encode(audio, rate)
        indices = sent.indices.numpy()
        # The same errors for the same clip, whatever the order of clips.
        rng = np.random.default_rng(zlib.crc32(indices.tobytes()))
        ber, loss = (self.setting.value if self.setting.kind == kind else None for kind in ("ber", "loss"))
        header = channel_header(sent.header, self.setting.payload)
        arrived = damage_indices(header, indices, Channel(ber, loss, rng))
        return replace(sent, indices=torch.from_numpy(arrived), header=header)

    def decode(self, encoded: Any, rate: int, num_samples: int) -> np.ndarray:
        """From what arrived."""
        return self.inner.decode(encoded, rate, num_samples)

    def size(self, encoded: Any) -> Size:
        """Of the payload on the channel."""
        return Size(encoded.bit_rate * encoded.duration)


@dataclass(frozen=True)
class Tool:
    """How ffmpeg runs a codec.

    Attributes:
        options: of the encoder; `{}` is the setting after the colon.
        suffix: of its files.
        rate: the codec's own, Hz.
        delay: seconds by which the decoded audio comes late: the shift at which STOI is highest.
        settings: those that it knows, kbit/s or bit/s; None for any.
    """

    options: str
    suffix: str
    rate: int
    delay: float = 0.0
    settings: tuple[str, ...] | None = None


TOOLS = {
    "opus": Tool("-c:a libopus -application voip -b:a {}k", ".ogg", 24_000),
    "codec2": Tool(
        "-c:a libcodec2 -mode {}", ".c2", 8_000, 0.020, ("3200", "2400", "1600", "1400", "1300", "1200", "700", "700B")
    ),
    "speex": Tool("-c:a libspeex -b:a {}k", ".spx", 16_000, 0.015),
}


class ToolSubject(CodecSubject):
    """A codec in a program of its own, through ffmpeg.

    Args:
        kind: a key of `TOOLS`.
        setting: its bit rate (kbit/s; codec2: mode, bit/s).

    Raises:
        UsageError: if there is no such setting.
        Q2D2Error: if ffmpeg is not here.
    """

    def __init__(self, kind: str, setting: str) -> None:
        self.tool = TOOLS[kind]
        if self.tool.settings and setting not in self.tool.settings:
            raise UsageError(f"{kind} has no mode {setting!r}: choose from {', '.join(self.tool.settings)}")
        if not self.tool.settings and not is_rate(setting):
            raise UsageError(f"{kind}:{setting} is not a bit rate: write kbit/s, as in {kind}:8")
        if not shutil.which("ffmpeg") or not shutil.which("ffprobe"):
            raise Q2D2Error(f"{kind} needs ffmpeg: install it, or leave --codec {kind}:{setting} out")
        self.name = f"{kind} {setting}" + ("" if self.tool.settings else " kbit/s")
        self.identity = f"{kind}:{setting}"
        self.options = self.tool.options.format(setting).split()

    def encode(self, audio: np.ndarray, rate: int) -> bytes:
        """To the bytes of the tool's file."""
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder) / "in.wav", Path(folder) / f"out{self.tool.suffix}"
            soundfile.write(source, soxr.resample(audio, rate, self.tool.rate), self.tool.rate, "PCM_16")
            run_tool(["ffmpeg", "-v", "error", "-y", "-i", str(source), *self.options, str(target)], self.name)
            return target.read_bytes()

    def decode(self, encoded: bytes, rate: int, num_samples: int) -> np.ndarray:
        """From those bytes; the known delay is taken out."""
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder) / f"in{self.tool.suffix}", Path(folder) / "out.wav"
            source.write_bytes(encoded)
            run_tool(["ffmpeg", "-v", "error", "-y", "-i", str(source), "-ac", "1", str(target)], self.name)
            decoded, own_rate = soundfile.read(target, dtype="float32")
        audio = soxr.resample(decoded[round(self.tool.delay * own_rate) :], own_rate, rate)
        return fit(audio, num_samples)

    def size(self, encoded: bytes) -> Size:
        """Of the packets and of the file."""
        command = ["ffprobe", "-v", "error", "-show_entries", "packet=size", "-of", "csv=p=0"]
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / f"in{self.tool.suffix}"
            source.write_bytes(encoded)
            packets = run_tool([*command, str(source)], self.name)
        return Size(8.0 * sum(int(size.strip(",")) for size in packets.split()), len(encoded))

    def stamp(self, relative: Path) -> str:
        """Changes when the program does."""
        return tool_version()


@cache
def tool_version() -> str:
    """What ffmpeg says of itself."""
    return run_tool(["ffmpeg", "-version"], "ffmpeg").partition("\n")[0]


def run_tool(command: list[str], name: str) -> str:
    """Standard output of a program.

    Raises:
        Q2D2Error: if it fails or hangs.
    """
    try:
        done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=TOOL_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Q2D2Error(f"{name} failed: {error}") from error
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise Q2D2Error(f"{name} failed: {lines[-1] if lines else f'exit code {done.returncode}'}")
    return done.stdout.decode(errors="replace")


def over_channel(specs: Sequence[str], channel: str) -> list[str]:
    """Descriptions of q2d2's models over a channel, in both payload modes.

    Args:
        specs: codecs; those of others are left out.
        channel: `ber=1e-4,1e-3` or `loss=0.05,0.1`.

    Raises:
        UsageError: if the channel is not understood, or no model is among the codecs.
    """
    kind, equals, values = channel.partition("=")
    try:
        numbers = [float(value) for value in values.split(",")]
    except ValueError:
        numbers = []
    if kind not in {"ber", "loss"} or not equals or not numbers or not all(0 <= value <= 1 for value in numbers):
        raise UsageError(f"cannot understand --channel {channel!r}: write ber=1e-4,1e-3 or loss=0.05, between 0 and 1")
    models = [spec for spec in specs if spec.partition(":")[0] == "q2d2"]
    if not models:
        raise UsageError("--channel needs a model: name one with --codec q2d2:NAME")
    return [
        CHANNEL_MARK.join((model, payload, kind, str(value)))
        for model in models
        for payload in ("packed", "robust")
        for value in numbers
    ]


def is_rate(text: str) -> bool:
    """Whether this is a positive number."""
    try:
        return float(text) > 0
    except ValueError:
        return False


def open_subject(spec: str, device: str) -> Subject:
    """A codec from its description.

    Args:
        spec: `q2d2:NAME`, `q2d2:NAME:EFFORT` or `q2d2:NAME:EFFORT:LAMBDA` (or one of `over_channel`), `opus:6`,
            `codec2:3200`, `speex:8`, `encodec:6`, `dac`, `mimi:8`, `snac` or `original`.
        device: for neural codecs: `auto`, `cpu`, `cuda`.

    Raises:
        UsageError: if it is unknown.
        Q2D2Error: if it cannot run here.
    """
    if CHANNEL_MARK in spec:
        spec, payload, what, value = spec.split(CHANNEL_MARK)
        inner = open_subject(spec, device)
        assert isinstance(inner, Q2D2Subject)
        return ChannelSubject(inner, ChannelSetting(cast(Payload, payload), cast(Any, what), float(value)))
    kind, _, setting = spec.partition(":")
    if kind == "original":
        return Original()
    if kind == "q2d2":
        from q2d2cli.checkpoints import DEFAULT_MODEL

        match = re.fullmatch(r"(.*?)(?::([0-9]+)(?::([0-9]+|[0-9]*\.[0-9]+))?)?", setting)
        assert match is not None
        name, effort, rate_weight = match.groups()
        return Q2D2Subject(name or DEFAULT_MODEL, device, int(effort or 0), float(rate_weight or 0))
    if kind in TOOLS:
        return ToolSubject(kind, setting)
    if kind in PEERS:
        return PEERS[kind](setting, device)
    known = ", ".join(["q2d2:NAME", "q2d2:NAME:EFFORT:LAMBDA", *(f"{name}:RATE" for name in TOOLS), *PEERS, "original"])
    raise UsageError(f"unknown codec {spec!r}: choose from {known}")
