"""The output of a job: its shards, and a manifest that grows by a line for each of them."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from q2d2cli.corpus.formats import DATA, Format, digest, open_format
from q2d2cli.corpus.sources import CorpusSpec
from q2d2cli.corpus.vocabulary import Vocabulary
from q2d2cli.errors import Q2D2Error, UsageError
from q2d2cli.files import atomic_output, make_folder

MANIFEST = "manifest.jsonl"
LOCK = ".lock"


@dataclass(frozen=True)
class Job:
    """What a job does; the first line of a manifest.

    Attributes:
        model: name or folder of the model, as given.
        fingerprint: of its weights, hexadecimal.
        corpus: what is read.
        plan: digest of the plan; another one means another corpus.
        units: how many there are; each becomes a shard.
        format: of the shards.
        description: of the ids and the codec.
    """

    model: str
    fingerprint: str
    corpus: CorpusSpec
    plan: str
    units: int
    format: str
    description: dict[str, Any]

    @property
    def weights(self) -> bytes:
        """The fingerprint as the 8 bytes that it is."""
        return bytes.fromhex(self.fingerprint)

    @property
    def vocabulary(self) -> Vocabulary:
        """How ids are made."""
        return Vocabulary.read(self.description)

    @classmethod
    def read(cls, fields: dict[str, Any]) -> Job:
        """From a line of a manifest."""
        bytes.fromhex(fields["fingerprint"])  # a ValueError if it is none
        corpus: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in fields["corpus"].items()
        }
        return cls(**{**fields, "corpus": CorpusSpec(**corpus)})


@dataclass(frozen=True)
class Record:
    """What became of a unit; a line of a manifest.

    Attributes:
        unit: its number in the plan.
        files: size and SHA-256 of each file of its shard, by path in the output; none if all clips were rejected.
        clips: how many are in it.
        frames: of all of them.
        tokens: ids of all of them.
        seconds: of audio.
        rejected: source and reason of each clip that is not in it.
    """

    unit: int
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    clips: int = 0
    frames: int = 0
    tokens: int = 0
    seconds: float = 0.0
    rejected: list[dict[str, str]] = field(default_factory=list)


def shard_name(unit: int) -> str:
    """Name of a unit's shard without suffix."""
    return f"shard-{unit:06}"


class TokenFolder:
    """An output with what its manifest says.

    Args:
        path: the folder.

    Attributes:
        job: what it is made by.
        records: of the units that are done.
        finished: whether all are.

    Raises:
        UsageError: if it is no such folder.
        Q2D2Error: if the manifest is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: dict[int, Record] = {}
        self.finished = False
        manifest = path / MANIFEST
        try:
            lines = manifest.read_bytes().split(b"\n")
        except OSError as error:
            raise UsageError(f"{path} has no {MANIFEST}: name the folder that q2d2 tokenize has written") from error
        # Only a line with its end was written whole: a killed job may have left a part of one.
        for number, line in enumerate(lines[:-1], 1):
            try:
                fields = json.loads(line)
                kind = fields.pop("kind")
                if kind == "job":
                    self.job = Job.read(fields)
                elif kind == "shard":
                    self.records[fields["unit"]] = Record(**fields)
                else:
                    self.finished = True
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise Q2D2Error(f"{manifest}, line {number} is damaged: make the folder again") from error
        if not hasattr(self, "job"):
            raise UsageError(f"{manifest} is empty: delete it and run the command again")
        self.whole_bytes = sum(len(line) + 1 for line in lines[:-1])

    @property
    def format(self) -> Format:
        """Reads and writes its shards."""
        return open_format(self.job.format, self.path, self.job.description)

    @property
    def missing(self) -> list[int]:
        """Units that are not done."""
        return [unit for unit in range(self.job.units) if unit not in self.records]

    def total(self, what: str) -> float:
        """Sum of a number over all records."""
        return sum(getattr(record, what) for record in self.records.values())

    def add(self, record: Record) -> None:
        """Note that a unit is done; its shard must be on the disk."""
        self._append({"kind": "shard", **asdict(record)})
        self.records[record.unit] = record

    def finish(self) -> None:
        """Note that all units are done."""
        counts = {what: self.total(what) for what in ("clips", "frames", "tokens", "seconds")}
        rejected = sum(len(record.rejected) for record in self.records.values())
        self._append({"kind": "finished", **counts, "rejected": rejected})
        self.finished = True

    def _append(self, fields: dict[str, Any]) -> None:
        manifest = self.path / MANIFEST
        try:
            with manifest.open("r+b") as file:
                file.truncate(self.whole_bytes)
                file.seek(0, os.SEEK_END)
                line = json.dumps(fields).encode() + b"\n"
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
            self.whole_bytes += len(line)
        except OSError as error:
            raise Q2D2Error(f"cannot write {manifest}: {error.strerror}") from error


def begin(path: Path, job: Job) -> TokenFolder:
    """A new output, or one that was begun by the same job.

    Raises:
        UsageError: if there is something else in the folder.
        Q2D2Error: if it cannot be written.
    """
    make_folder(path / DATA)
    if (path / MANIFEST).exists():
        folder = TokenFolder(path)
        for what in ("fingerprint", "format", "description", "corpus", "plan"):
            if getattr(folder.job, what) != getattr(job, what):
                names = {
                    "fingerprint": "another model",
                    "description": "other ids",
                    "plan": "a corpus that has changed",
                }
                raise UsageError(f"{path} was begun with {names.get(what, f'another {what}')}: choose another folder")
        for left in (path / DATA).rglob("*.partial"):
            left.unlink()
        return folder
    if any((path / DATA).iterdir()):
        raise UsageError(f"{path / DATA} is not empty, and {path} has no {MANIFEST}: choose another folder")
    with atomic_output(path / MANIFEST) as file:
        file.write(json.dumps({"kind": "job", **asdict(job)}).encode() + b"\n")
    return TokenFolder(path)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other jobs out of a folder.

    Raises:
        UsageError: if one is in it, or it cannot be made.
    """
    make_folder(path)
    try:
        file = (path / LOCK).open("w")
    except OSError as error:
        raise UsageError(f"cannot write to folder {path}: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError(
                f"another q2d2 tokenize is writing to {path}: wait for it, or choose another folder"
            ) from error
        yield


def record_files(folder: Path, files: list[str]) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of the files of a shard."""
    return {name: digest(folder / name) for name in files}
