"""Which audio files have which labels: class folders and CSV manifests."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from q2d2cli.audio import audio_files
from q2d2cli.errors import UsageError
from q2d2cli.files import refuse_device


@dataclass(frozen=True)
class Item:
    """A labelled audio file.

    Attributes:
        path: the file.
        label: its class.
        group: files of a group (a speaker, say) belong on the same side of a split; None if that does not matter.
    """

    path: Path
    label: str
    group: str | None = None


def class_folders(folder: Path) -> list[Item]:
    """Audio in folders that are named after their classes: `folder/CLASS/.../file`. No groups.

    Raises:
        UsageError: if there is no audio, or some that lies in no class folder.
    """
    items = []
    for path in audio_files(folder):
        if path.parent == folder:
            raise UsageError(f"{path} lies in no class folder: move it into one, or use --manifest")
        items.append(Item(path, path.relative_to(folder).parts[0]))
    return items


def read_manifest(manifest: Path, folder: Path | None = None) -> list[Item]:
    """A CSV file with a header and the columns `path`, `label` and, if wanted, `group`.

    Args:
        manifest: the file, UTF-8.
        folder: what paths are relative to; the manifest's own folder if None.

    Raises:
        UsageError: if it cannot be read, has no such columns, or a row lacks a value (in `group`, as soon as one
            row has a group).
    """
    refuse_device(manifest)
    try:
        with manifest.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            rows = [(reader.line_num, row) for row in reader]
    except OSError as error:
        raise UsageError(f"cannot read {manifest}: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{manifest} is no CSV file: {error}") from error
    for column in ("path", "label"):
        if column not in columns:
            raise UsageError(f"{manifest} has no column {column!r}: its first line must name path,label or more")
    if not rows:
        raise UsageError(f"{manifest} names no files")
    grouped = any(row.get("group") for _, row in rows)
    items = []
    for line, row in rows:
        for column in ("path", "label", "group") if grouped else ("path", "label"):
            if not row[column]:
                raise UsageError(f"{manifest}, line {line} has no {column}")
        items.append(Item((folder or manifest.parent) / row["path"], row["label"], row["group"] if grouped else None))
    return items
