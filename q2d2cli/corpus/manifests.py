"""Lists of clips: one path a line, CSV, JSON lines; with text, speaker and language where they have them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

PATH_KEYS = ("audio_filepath", "path", "file", "audio", "filename", "wav", "file_name")
"""Names under which manifests keep a clip's file; NeMo's first."""
TEXT_KEYS = ("text", "transcript", "transcription", "sentence", "normalized_text")
SPEAKER_KEYS = ("speaker", "speaker_id", "spk", "client_id")
LANGUAGE_KEYS = ("language", "lang", "locale")
ID_KEYS = ("id", "utt_id", "utterance_id")
MANIFEST_SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".ndjson")


@dataclass(frozen=True, kw_only=True)
class Known:
    """What is known of a clip beside its audio.

    Attributes:
        text: what is said.
        speaker: who says it.
        language: in which language.
        start: seconds into the file where the clip begins (NeMo's `offset`).
        seconds: how long it is, to the end if None (NeMo's `duration`); only meant together with `start`.
        problem: why it cannot be used.
    """

    text: str | None = None
    speaker: str | None = None
    language: str | None = None
    start: float | None = None
    seconds: float | None = None
    problem: str | None = None

    def known(self) -> dict[str, Any]:
        """These attributes by name."""
        return {item.name: getattr(self, item.name) for item in fields(Known)}


@dataclass(frozen=True)
class Entry(Known):
    """A line of a manifest.

    Attributes:
        path: of the audio, as it stands there; the line's name where it has a problem.
        id: if it names one.
    """

    path: str
    id: str | None = None


def read_manifest(data: bytes, name: str) -> Iterator[Entry]:
    """Entries of a manifest, by the suffix of its name; lines that cannot be used come as entries with a problem."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        yield Entry(name, problem="is no UTF-8 text: it is no list of clips")
        return
    suffix = "." + name.rsplit(".", 1)[-1].lower() if "." in name.rsplit("/", 1)[-1] else ""
    if suffix in (".csv", ".tsv"):
        rows = csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if suffix == ".tsv" else ",")
        for row in rows:
            yield entry(row, f"{name}, line {rows.line_num}")
    elif suffix in MANIFEST_SUFFIXES:
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                yield json_entry(line, f"{name}, line {number}")
    else:
        yield from (Entry(line.strip()) for line in text.splitlines() if line.strip())


def json_entry(line: str, where: str) -> Entry:
    """The entry of one line of JSON."""
    try:
        named = json.loads(line)
    except ValueError as error:
        return Entry(where, problem=f"is no JSON ({error}): correct or delete the line")
    if not isinstance(named, dict):
        return Entry(where, problem="is no JSON object: expected one with the clip's path and text")
    return entry(named, where)


def entry(named: dict[str, Any], where: str) -> Entry:
    """The entry that named fields make."""

    def first(keys: tuple[str, ...]) -> str | None:
        found = next((named[key] for key in keys if named.get(key) not in (None, "")), None)
        return None if found is None else str(found)

    path = first(PATH_KEYS)
    if path is None:
        return Entry(where, problem=f"names no file: expected one of the keys {', '.join(PATH_KEYS)}")
    try:
        start = None if named.get("offset") in (None, "") else float(named["offset"])
        seconds = None if start is None or named.get("duration") in (None, "") else float(named["duration"])
    except (TypeError, ValueError):
        return Entry(where, problem="has an offset or duration that is no number of seconds")
    if (start is not None and not 0 <= start < 1e9) or (seconds is not None and not 0 < seconds < 1e9):
        return Entry(
            where, problem=f"has an offset of {start} s and a duration of {seconds} s: neither may be negative"
        )
    return Entry(
        path,
        first(ID_KEYS),
        text=first(TEXT_KEYS),
        speaker=first(SPEAKER_KEYS),
        language=first(LANGUAGE_KEYS),
        start=start,
        seconds=seconds,
    )
