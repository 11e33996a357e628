"""Labels of data sets as they are downloaded, as the CSV that `q2d2 probe --manifest` reads.

    python examples/probe/label.py ravdess FOLDER > labels.csv
    q2d2 probe FOLDER --manifest labels.csv

RAVDESS and EMOVO: emotions, grouped by actor. AudioMNIST: digits, by speaker. SLURP: intents, by sentence.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from q2d2cli import UsageError
from q2d2cli.audio import audio_files
from q2d2cli.evaluation.manifests import Item

RAVDESS_EMOTIONS = ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised")
EMOVO_EMOTIONS = {
    "dis": "disgust",
    "gio": "joy",
    "neu": "neutral",
    "pau": "fear",
    "rab": "anger",
    "sor": "surprise",
    "tri": "sadness",
}


def ravdess(folder: Path) -> list[Item]:
    """RAVDESS: `Actor_12/03-01-06-01-02-01-12.wav`; the third field is the emotion, the last the actor (group).

    Raises:
        UsageError: if no file is named like that.
    """

    def item(path: Path, fields: tuple[str, ...]) -> Item:
        return Item(path, RAVDESS_EMOTIONS[int(fields[0]) - 1], f"actor {fields[1]}")

    return by_name(folder, r"\d\d-\d\d-(0[1-8])(?:-\d\d){3}-(\d\d)", item, "03-01-06-01-02-01-12.wav")


def emovo(folder: Path) -> list[Item]:
    """EMOVO: `f1/dis-f1-b1.wav`; emotion, actor (group), sentence.

    Raises:
        UsageError: if no file is named like that.
    """

    def item(path: Path, fields: tuple[str, ...]) -> Item:
        return Item(path, EMOVO_EMOTIONS[fields[0]], fields[1])

    return by_name(folder, rf"({'|'.join(EMOVO_EMOTIONS)})-([fm]\d)-\w+", item, "dis-f1-b1.wav")


def audiomnist(folder: Path) -> list[Item]:
    """AudioMNIST: `data/01/7_01_42.wav`; spoken digit, speaker (group), repetition.

    Raises:
        UsageError: if no file is named like that.
    """

    def item(path: Path, fields: tuple[str, ...]) -> Item:
        return Item(path, fields[0], f"speaker {fields[1]}")

    return by_name(folder, r"(\d)_(\d\d)_\d+", item, "data/01/7_01_42.wav")


def by_name(folder: Path, pattern: str, item: Callable[[Path, tuple[str, ...]], Item], example: str) -> list[Item]:
    """An item for each audio file whose name (without suffix) matches; the first of several with the same name."""
    named: dict[str, Item] = {}
    for path in audio_files(folder):
        # Some copies hold every file twice, which must not be on both sides of a split.
        if (match := re.fullmatch(pattern, path.stem)) and path.stem not in named:
            named[path.stem] = item(path, match.groups())
    if not named:
        raise UsageError(f"no audio in {folder} is named like {example}: is it another data set?")
    return list(named.values())


def slurp(folder: Path) -> list[Item]:
    """SLURP: `train.jsonl`, `devel.jsonl` and `test.jsonl`, and the recordings they name, anywhere in `folder`.

    The label is the intent. Those files name no speakers; the group is the sentence, since each has
    several recordings, often of one utterance by two microphones. Recordings that are not there
    (the synthetic ones, say) are left out.

    Raises:
        UsageError: if the lists are missing or damaged, or none of their recordings is there.
    """
    lists = sorted(path for name in ("train", "devel", "test") for path in folder.rglob(f"{name}.jsonl"))
    if not lists:
        raise UsageError(f"no train.jsonl, devel.jsonl or test.jsonl in {folder}: is it another data set?")
    here = {path.name: path for path in audio_files(folder)}
    items = [
        Item(here[recording["file"]], str(entry["intent"]), str(entry["slurp_id"]))
        for entry in (entry for path in lists for entry in json_lines(path))
        for recording in entry["recordings"]
        if recording["file"] in here
    ]
    if not items:
        raise UsageError(f"none of the recordings that {lists[0]} names is in {folder}: put slurp_real/ there")
    return items


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The entries of a list of SLURP.

    Raises:
        UsageError: if a line is damaged; names it.
    """
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            try:
                entry = json.loads(line)
                missing = {"recordings", "intent", "slurp_id"} - set(entry)
                whole = not missing and all("file" in recording for recording in entry["recordings"])
            except (ValueError, TypeError) as error:
                raise UsageError(f"{path}, line {number} is damaged: {error}") from error
            if not whole:
                raise UsageError(f"{path}, line {number} is no SLURP entry: it needs recordings, intent and slurp_id")
            yield entry


DATASETS: dict[str, Callable[[Path], list[Item]]] = {
    "ravdess": ravdess,
    "emovo": emovo,
    "audiomnist": audiomnist,
    "slurp": slurp,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the CSV, with paths relative to the folder, to standard output."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("dataset", choices=DATASETS)
    parser.add_argument("folder", type=Path)
    chosen = parser.parse_args(arguments)
    try:
        items = DATASETS[chosen.dataset](chosen.folder)
    except UsageError as error:
        sys.exit(f"label.py: {error}")
    writer = csv.writer(sys.stdout)
    writer.writerow(["path", "label", "group"])
    writer.writerows([item.path.relative_to(chosen.folder), item.label, item.group] for item in items)


if __name__ == "__main__":
    main()
