"""Which files are meant: those of a folder that are audio, or those that a list names."""

from __future__ import annotations

import os
from pathlib import Path

from q2d2cli.errors import UsageError

# fmt: off
SNDFILE_SUFFIXES = frozenset((
    ".wav", ".wave", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".au", ".snd", ".caf",
    ".w64", ".rf64", ".sph", ".nist", ".voc", ".avr", ".paf", ".ircam", ".8svx",
))
# fmt: on
"""Of formats that libsndfile reads."""
# fmt: off
FFMPEG_SUFFIXES = frozenset((
    ".m4a", ".m4b", ".mp4", ".m4v", ".mov", ".aac", ".webm", ".weba", ".mka", ".mkv", ".wma", ".wmv", ".asf", ".avi",
    ".flv", ".mp2", ".mpg", ".mpeg", ".3gp", ".amr", ".ac3", ".eac3", ".ape", ".wv", ".tta", ".tak", ".dsf", ".dts",
    ".mpc", ".rm",
))
# fmt: on
"""Of formats that ffmpeg reads, audio and video."""
AUDIO_SUFFIXES = SNDFILE_SUFFIXES | FFMPEG_SUFFIXES


def is_foreign(path: Path) -> bool:
    """Whether this is what a Mac puts beside a file where its file system cannot (`._a.wav`): never audio."""
    return path.name.startswith("._")


def audio_files(folder: Path) -> list[Path]:
    """Audio files below `folder`, sorted.

    Raises:
        UsageError: if there is no such folder or no audio in it.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder: give one with audio files in it")
    found = (path for path in folder.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES and not is_foreign(path))
    files = sorted(found, key=os.fsencode)
    if not files:
        raise UsageError(f"no audio found in {folder}")
    return files


def read_list(source: Path) -> list[Path]:
    """The files that a list names, one a line: a path, or Kaldi's `id path`.

    Names are bytes, whatever their encoding; a byte order mark, empty lines and lines that begin with
    `#` are passed over. Paths are relative to the list's folder, or to the current one if they are
    there and not in the list's.

    Raises:
        UsageError: if it cannot be read, names nothing, or has a command (Kaldi's `sox ... |`) for a path.
    """
    try:
        data = source.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read the list {source}: {error.strerror}") from error
    if b"\0" in data:
        raise UsageError(f"{source} is no list of paths: it holds bytes that no path has")
    paths = []
    for number, raw in enumerate(data.removeprefix(b"\xef\xbb\xbf").splitlines(), 1):
        line = os.fsdecode(raw.strip())
        if not line or (line.startswith("#") and not exists(locate(source, line))):
            continue
        if line.endswith("|"):
            raise UsageError(f"{source}, line {number} is a command: write its output to a file and name that")
        path = locate(source, line)
        if not exists(path) and len(words := line.split(maxsplit=1)) == 2 and exists(other := locate(source, words[1])):
            path = other
        paths.append(path)
    if not paths:
        raise UsageError(f"no audio found in {source}: the list is empty")
    return paths


def locate(source: Path, name: str) -> Path:
    """Where the file is that a list calls so."""
    here = source.parent / name
    return Path(name) if not exists(here) and exists(Path(name)) else here


def exists(path: Path) -> bool:
    """Whether there is such a file; not so if no file can have the name."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False
