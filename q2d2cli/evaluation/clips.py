"""Which files an evaluation scores, and what is said in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from q2d2cli.audio import audio_files, read_list
from q2d2cli.corpus.manifests import MANIFEST_SUFFIXES, PATH_KEYS, read_manifest
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
    """The clips of `find_clips`, at most `limit` of each folder (`spread`), with what is said in them (`with_texts`).

    Raises:
        UsageError: if there is no audio, or as `with_texts`.
    """
    clips = find_clips(source)
    chosen = set(spread([clip.path for clip in clips], limit))
    clips = [clip for clip in clips if clip.path in chosen]
    return clips if texts is None else with_texts(clips, texts)


def with_texts(clips: Sequence[Clip], texts: Path) -> list[Clip]:
    """The clips with what a file says is said in them; those that it does not name, as they are.

    Args:
        clips: of any source.
        texts: a manifest (`manifest_texts`), or lines of name and text (`read_texts`).

    Raises:
        UsageError: if the file cannot be read, or names none of the clips.
    """
    known = manifest_texts(texts) if is_manifest(texts) else read_texts(texts)
    found = [replace(clip, text=text_of(clip, known)) for clip in clips]
    if all(clip.text is None for clip in found):
        raise UsageError(f"{texts} has no text for {len(found)} of {len(found)} clips: {found[0].name}, for one")
    return found


def is_manifest(path: Path) -> bool:
    """Whether texts are a manifest, by the suffix; with tabs, by whether the first line names a column of files."""
    suffix = path.suffix.lower()
    if suffix != ".tsv":
        return suffix in MANIFEST_SUFFIXES
    return any(not set(PATH_KEYS).isdisjoint(line.split("\t")) for line in read_lines(path)[:1])


def manifest_texts(path: Path) -> dict[str, str]:
    """Texts by file, from a manifest as `q2d2 tokenize` takes it: JSON lines or CSV; NeMo's keys and others'.

    Paths are relative to the manifest, unless they exist as they are; one with a folder in it also names that file in
    copies of the folder. The text of a part of a file (NeMo's `offset`) is not that of the file.

    Raises:
        UsageError: if it cannot be read, or a line cannot be used.
    """
    texts: dict[str, str] = {}
    parts = set[str]()
    for entry in read_manifest(read_bytes(path), str(path)):
        if entry.problem:
            raise UsageError(f"{entry.path} {entry.problem}")
        beside, given = path.parent / entry.path, Path(entry.path)
        place = given if given.exists() and not beside.exists() else beside
        names = {located(place), *(name for name in spellings(entry.path) if "/" in name)}
        if entry.start:
            parts |= names
        if entry.text is not None:
            texts |= dict.fromkeys(names, entry.text)
    return {name: text for name, text in texts.items() if name not in parts}


def read_texts(path: Path) -> dict[str, str]:
    """Texts by name, from lines `NAME TEXT` as of Kaldi and LibriSpeech; a name without blanks, or a tab after it.

    Raises:
        UsageError: if it cannot be read, or a line has no text.
    """
    texts: dict[str, str] = {}
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        parts = line.split("\t" if "\t" in line else None, 1)
        if len(parts) < 2:
            raise UsageError(f"{path}, line {number}: write the name of a clip, a blank or a tab, and what is said")
        texts[parts[0].strip()] = parts[1].strip()
    return texts


def text_of(clip: Clip, texts: dict[str, str]) -> str | None:
    """The text under a clip's place or its name, with or without its suffix and its folders; None if there is none."""
    name = Path(clip.name)
    names = (located(clip.path), *spellings(clip.name), name.name, name.stem)
    return next((texts[key] for key in names if key in texts), None)


def located(path: Path) -> str:
    """Where a file is, by whichever way one gets to its folder; two links to one file are two files."""
    return str(path.parent.resolve() / path.name)


def spellings(name: str) -> tuple[str, str]:
    """A clip's name with and without its suffix."""
    return name, str(Path(name).with_suffix(""))


def read_lines(path: Path) -> list[str]:
    """The lines of a file of texts.

    Raises:
        UsageError: if it cannot be read.
    """
    try:
        return read_bytes(path).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UsageError(f"cannot read the texts {path}: {error}") from error


def read_bytes(path: Path) -> bytes:
    """What is in a file of texts.

    Raises:
        UsageError: if it cannot be read.
    """
    refuse_device(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read the texts {path}: {error.strerror}") from error
