"""Which files of a folder are audio."""

from __future__ import annotations

from pathlib import Path

from q2d2cli.errors import UsageError

AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".caf", ".w64"})


def audio_files(folder: Path) -> list[Path]:
    """Audio files below `folder`, sorted.

    Raises:
        UsageError: if there is no such folder or no audio in it.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder: give one with audio files in it")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES)
    if not files:
        raise UsageError(f"no audio found in {folder}")
    return files
