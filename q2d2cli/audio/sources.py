"""What libsndfile reads from: a file as it is, a pipe as it comes or in a temporary file, or ffmpeg's output."""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import signal
import stat
import struct
import subprocess
import tempfile
import threading
from contextlib import ExitStack
from dataclasses import dataclass
from io import FileIO
from typing import BinaryIO

from q2d2cli.container.header import MAX_RATE
from q2d2cli.errors import Q2D2Error
from q2d2cli.files import explained

MAX_CHANNELS = 64
UNSIZED = 0x7FFFF000
"""Sizes from here on are what programs write into a header before they know the size."""
EXTENSIBLE = 0xFFFE
"""A WAV file's format tag that says where the real one is."""
MAX_HEAD = 1 << 20
"""Bytes of a WAV file that may come before its samples, where these are looked for."""
SAMPLE_FORMATS = {"s16le": "PCM_16", "f32le": "FLOAT"}
"""Sample formats of raw PCM, by the names ffmpeg gives them."""
WAV_SUBTYPES = {(1, 8): "PCM_U8", (1, 16): "PCM_16", (1, 24): "PCM_24", (1, 32): "PCM_32", (3, 32): "FLOAT"}
"""libsndfile's names for format tag and bits of a WAV file."""
QUIET = (b"RIFF", b"RIFX", b"RF64", b"riff", b"fLaC", b"OggS", b"FORM", b".snd", b"caff", b"NIST")
"""How files begin whose readers in libsndfile write nothing to the terminal (unlike mpg123)."""
DEMUXERS = (
    "mov,matroska,asf,avi,flv,mpeg,mpegts,mpegvideo,aac,ac3,eac3,amr,amrnb,amrwb,ape,wv,tta,dsf,iff,mp3,ogg,caf,aiff,"
    "wav,w64,flac,au,voc,nistsphere,mpc,mpc8,tak,truehd,mlp,dts,rm,wtv,nut,sox,oma,spdif,mxf,gxf,dv,xwma"
)
"""What ffmpeg may take a file for: containers of audio, and no playlist, which would name other files."""


@dataclass(frozen=True)
class RawFormat:
    """PCM without a header, little endian, channels interleaved.

    Attributes:
        sample_rate: Hz.
        channels: number of channels.
        subtype: libsndfile's name of the sample format.
    """

    sample_rate: int
    channels: int
    subtype: str = "PCM_16"


@dataclass
class Source:
    """An open file descriptor for libsndfile, and what is known of it.

    Attributes:
        descriptor: at the audio's first byte.
        raw: the format, if there is no header (any more).
        seekable: whether it can be sought in.
        noisy: whether libsndfile may write to the terminal while it reads it.
        ffmpeg: the running ffmpeg whose output it is, and its messages.
    """

    descriptor: int
    raw: RawFormat | None = None
    seekable: bool = False
    noisy: bool = False
    ffmpeg: tuple[subprocess.Popen[bytes], BinaryIO] | None = None


class Incoming(FileIO):
    """A file that is read as it comes; a signal is the end of all that is not a regular file.

    A read goes on after a signal whose handler raises nothing: it would only be noticed when the next
    audio comes.

    Args:
        number: an open descriptor.
        wake: one that can be read once a signal has come; made if None.
    """

    def __init__(self, number: int, *, wake: int | None = None, closefd: bool = True) -> None:
        super().__init__(number, closefd=closefd)
        self._waits = [number]
        self._wake = wake
        if not stat.S_ISREG(os.fstat(number).st_mode):
            if wake is None:
                self._wake, wake_write = os.pipe()
                os.set_blocking(wake_write, False)
                with contextlib.suppress(ValueError):  # not the main thread: then signals are not ours
                    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
            self._waits = [number, *([] if self._wake is None else [self._wake])]

    def read(self, size: int | None = -1) -> bytes:
        """As a file's, and nothing after a signal."""
        if len(self._waits) > 1 and select.select(self._waits, [], [])[0] != self._waits[:1]:
            return b""
        return super().read(-1 if size is None else size)

    def again(self) -> Incoming:
        """The same file under a descriptor of its own."""
        return Incoming(os.dup(self.fileno()), wake=self._wake)


def open_source(opened: BinaryIO, name: str, raw: RawFormat | None, stack: ExitStack) -> Source:
    """Make an open file or standard input one that libsndfile can read; `stack` closes what that takes.

    What can be sought in is read as it is. A pipe with WAV, Ogg or AU is read as it comes; everything
    else from a pipe is put into a temporary file first, until its end or a signal. A WAV file that does
    not know its length is read as raw PCM, from the first sample to the end.

    Raises:
        Q2D2Error: if it cannot be read, or as `check_limits`; messages have `name`.
    """
    with explained(f"cannot read {name}"):
        # Unbuffered: libsndfile and ffmpeg go on reading where we stop.
        file = stack.enter_context(Incoming(opened.fileno(), closefd=False))
        seekable = stat.S_ISREG(os.fstat(file.fileno()).st_mode) and file.tell() == 0
        if raw is not None:
            return Source(forward(file, b"", stack), raw)
        head, form, unsized = read_head(file)
        if form is not None:
            check_limits(name, form.sample_rate, form.channels)
        if unsized:
            return Source(forward(file, b"", stack), form)
        if not seekable and (head.startswith((b"OggS", b".snd")) or head[8:12] == b"WAVE"):
            return Source(forward(file, head, stack))
        if stat.S_ISCHR(os.fstat(file.fileno()).st_mode):
            raise Q2D2Error(f"cannot read {name} as audio: it is a device, which may have no end")
        if not seekable:
            spool = stack.enter_context(tempfile.TemporaryFile(buffering=0))  # noqa: SIM115
            spool.write(head)
            shutil.copyfileobj(file, spool)
            spool.seek(0)
            return Source(spool.fileno(), None, True, not head.startswith(QUIET))
        file.seek(0)
        return Source(file.fileno(), None, True, not head.startswith(QUIET))


def read_head(file: FileIO) -> tuple[bytes, RawFormat | None, bool]:
    """The first bytes; of a WAV file with plain PCM its format, and whether it does not know its length.

    Then these are all the bytes before its samples. Programs that write to a pipe, or were killed,
    leave 0 or a number near 2**31 or 2**32 as the length.
    """
    head = read_fully(file, 12)
    form: RawFormat | None = None
    if head[:4] != b"RIFF" or head[8:12] != b"WAVE":
        return head, None, False
    (riff,) = struct.unpack_from("<I", head, 4)
    while len(head) < MAX_HEAD:
        head += (start := read_fully(file, 8))
        if len(start) < 8:
            break
        name, size = struct.unpack("<4sI", start)
        if name == b"data":
            nothing_follows = riff + 8 <= len(head) or riff >= UNSIZED
            return head, form, form is not None and (size >= UNSIZED or (size == 0 and nothing_follows))
        body = read_fully(file, min(size + size % 2, MAX_HEAD))
        head += body
        if name == b"fmt ":
            form = wav_format(body)
    return head, form, False


def wav_format(body: bytes) -> RawFormat | None:
    """What a WAV file's format chunk says; None if that is no plain PCM."""
    if len(body) < 16:
        return None
    tag, channels, rate, _, frame, bits = struct.unpack_from("<HHIIHH", body)
    if tag == EXTENSIBLE and len(body) >= 26:
        (tag,) = struct.unpack_from("<H", body, 24)
    subtype = WAV_SUBTYPES.get((tag, bits))
    return RawFormat(rate, channels, subtype) if subtype and frame == channels * bits // 8 else None


def check_limits(name: str, sample_rate: int, channels: int) -> None:
    """Raise Q2D2Error unless audio has 1 to 64 channels and a rate of 1 Hz to 1 MHz."""
    if not 1 <= channels <= MAX_CHANNELS:
        raise Q2D2Error(f"{name} has {channels} channels: 1 to {MAX_CHANNELS} are supported")
    if not 1 <= sample_rate <= MAX_RATE:
        raise Q2D2Error(f"{name} has a sample rate of {sample_rate} Hz: 1 to {MAX_RATE} is supported")


def read_fully(file: FileIO, size: int) -> bytes:
    """So many bytes, fewer only at the end."""
    data = b""
    while len(data) < size and (more := file.read(size - len(data))):
        data += more
    return data


def forward(source: Incoming, start: bytes, stack: ExitStack) -> int:
    """A pipe that gives `start` and then what comes from `source`, until its end or a signal.

    libsndfile reads on through signals. It also stops at the end of the audio, which may be before the
    end of the pipe.
    """
    read_end, write_end = os.pipe()
    stack.callback(os.close, read_end)
    # The thread's own, which it closes: others may get the numbers of those that are closed here.
    own = source.again()

    def copy() -> None:
        with contextlib.suppress(BrokenPipeError), own, os.fdopen(write_end, "wb", buffering=0) as sink:
            sink.write(start)
            while data := own.read(65536):
                sink.write(data)

    threading.Thread(target=copy, daemon=True).start()
    return read_end


def ffmpeg_source(descriptor: int, stack: ExitStack) -> Source:
    """The first audio stream of a file that ffmpeg decodes; `descriptor` can be sought in.

    Raises:
        Q2D2Error: if ffmpeg is not installed, or finds no audio.
    """
    program = shutil.which("ffmpeg")
    if program is None:
        raise Q2D2Error("ffmpeg, which reads more formats, is not installed")
    os.lseek(descriptor, 0, os.SEEK_SET)
    messages = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
    options = ["-nostdin", "-v", "error", "-protocol_whitelist", "file,pipe", "-format_whitelist", DEMUXERS]
    output = ["-map", "0:a:0", "-c:a", "pcm_f32le", "-f", "wav", "pipe:1"]
    process = subprocess.Popen(
        [program, *options, "-i", f"/dev/fd/{descriptor}", *output],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=messages,
        pass_fds=[descriptor],
        start_new_session=True,  # Ctrl-C ends us, and we end it
    )
    assert process.stdout is not None
    stdout = stack.enter_context(FileIO(process.stdout.fileno(), closefd=False))
    stack.callback(end_process, process)
    _, form, _ = read_head(stdout)
    if form is None:
        process.wait()
        raise Q2D2Error(last_message(messages))
    return Source(stdout.fileno(), form, ffmpeg=(process, messages))


def last_message(messages: BinaryIO) -> str:
    """What ffmpeg said last, without the name that we gave it."""
    messages.seek(0)
    lines = messages.read().decode(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "no audio found")
    return f"ffmpeg says {re.sub(r'^/dev/fd/[0-9]+: ', '', last)!r}"


def end_process(process: subprocess.Popen[bytes]) -> None:
    """End a program that may still be writing."""
    process.kill()
    assert process.stdout is not None
    process.stdout.close()
    process.wait()
