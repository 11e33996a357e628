"""Which files an evaluation scores, and what is said in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from q2d2cli.audio import audio_files, read_list
from q2d2cli.errors import UsageError
from q2d2cli.files import file_stamp, refuse_device


@dataclass(frozen=True)
class Clip:
    """A file to score.

    Attributes:
        path: where it is.
        name: its path relative to the folder or list it came from.
        text: what is said in it; None if not known.
    """

    path: Path
    name: str
    text: str | None = None

    @property
    def dataset(self) -> str:
        """The folder it lies in, first level; `.` if in none."""
        parts = Path(self.name).parts
        return parts[0] if len(parts) > 1 else "."

    def stamp(self) -> str:
        """Changes when the file does."""
        return file_stamp(self.path)


def find_clips(source: Path) -> list[Clip]:
    """The clips of a folder (recursive), a list (`read_list`; .txt, .lst, .list or .scp) or a single file.

    Raises:
        UsageError: if there is no audio.
    """
    if source.is_dir():
        return [Clip(path, str(path.relative_to(source))) for path in audio_files(source)]
    if source.suffix.lower() not in {".txt", ".lst", ".scp", ".list"}:
        if not source.is_file():
            raise UsageError(f"{source} is not there: give a folder of audio, a list (.txt) or a file")
        return [Clip(source, source.name)]
    return [Clip(path, list_name(source, path)) for path in read_list(source)]


def list_name(source: Path, path: Path) -> str:
    """What a clip of a list is called: its path, from the list's folder if it is in there."""
    return str(path.relative_to(source.parent) if path.is_relative_to(source.parent) else path).lstrip("/")


def spread(files: Sequence[Path], limit: int | None) -> list[Path]:
    """At most `limit` of the files of each folder, evenly spaced in sorted order: the same ones every time."""
    if limit is None:
        return list(files)
    chosen: list[Path] = []
    for folder in sorted({path.parent for path in files}):
        here = sorted(path for path in files if path.parent == folder)
        count = min(limit, len(here))
        chosen += [here[i * len(here) // count] for i in range(count)]
    return chosen


def choose_clips(source: Path, limit: int | None, texts: Path | None = None) -> list[Clip]:
    """The clips of `find_clips`, at most `limit` of each folder (`spread`), with what is said in them (`read_texts`).

    Raises:
        UsageError: if there is no audio, or a clip has no text.
    """
    clips = find_clips(source)
    chosen = set(spread([clip.path for clip in clips], limit))
    clips = [clip for clip in clips if clip.path in chosen]
    if texts is None:
        return clips
    known = read_texts(texts)
    found = [replace(clip, text=text_of(clip, known)) for clip in clips]
    without = [clip.name for clip in found if clip.text is None]
    if without:
        raise UsageError(f"{texts} has no text for {len(without)} of {len(clips)} clips: {without[0]}, for one")
    return found


def read_texts(path: Path) -> dict[str, str]:
    """Texts by name, from lines `NAME TEXT` as of Kaldi and LibriSpeech; a name without blanks, or a tab after it.

    Raises:
        UsageError: if it cannot be read, or a line has no text.
    """
    texts: dict[str, str] = {}
    refuse_device(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the texts {path}: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        parts = line.split("\t" if "\t" in line else None, 1)
        if len(parts) < 2:
            raise UsageError(f"{path}, line {number}: write the name of a clip, a blank or a tab, and what is said")
        texts[parts[0].strip()] = parts[1].strip()
    return texts


def text_of(clip: Clip, texts: dict[str, str]) -> str | None:
    """The text under a clip's name, with or without its suffix and its folders; None if there is none."""
    name = Path(clip.name)
    names = (clip.name, str(name.with_suffix("")), name.name, name.stem)
    return next((texts[key] for key in names if key in texts), None)
