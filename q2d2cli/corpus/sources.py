"""Where clips come from: folders, lists, manifests, tar shards, object storage and Hugging Face data sets.

A plan divides a corpus into units, each of which becomes one shard of the output, whoever works on it and when.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TypeVar

from q2d2cli.audio import AUDIO_SUFFIXES, is_foreign, read_list
from q2d2cli.corpus.formats import DATA
from q2d2cli.corpus.manifests import (
    LANGUAGE_KEYS,
    MANIFEST_SUFFIXES,
    SPEAKER_KEYS,
    TEXT_KEYS,
    Entry,
    Known,
    read_manifest,
)
from q2d2cli.errors import Q2D2Error, UsageError

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
HUB = "hf:"
"""What a Hugging Face data set begins with: `hf:owner/name`, `hf:owner/name:config`, `hf:folder`."""
SHARD = re.compile(r"shard-\d{6}")
"""Name of an output's shard without suffix."""
TRIES = 3
"""How often an object store is asked before it counts as unreachable."""
T = TypeVar("T")


class StoreError(Q2D2Error):
    """An object store or network file system cannot be reached: no clip's fault, so the job stops."""


@dataclass(frozen=True)
class CorpusClip(Known):
    """One piece of audio and what is known of it.

    Attributes:
        id: unique in the corpus; a relative path without suffix. Bytes of a name that are no UTF-8 are escaped.
        source: where it is from, for people, written like the id.
        place: path or URL of the file; None where `data` is all there is.
        data: the encoded audio, if it came out of something larger.
    """

    id: str
    source: str
    place: str | None = None
    data: bytes | None = None

    def __post_init__(self) -> None:
        for name in ("id", "source"):
            object.__setattr__(self, name, printable(getattr(self, name)))


@dataclass(frozen=True)
class ListUnit:
    """Clips that are files of their own."""

    listed: tuple[CorpusClip, ...]

    def clips(self) -> Iterator[CorpusClip]:
        """The clips."""
        yield from self.listed

    def describe(self) -> str:
        """What tells it from other units."""
        return "\n".join(json.dumps(asdict(clip), sort_keys=True) for clip in self.listed)


@dataclass(frozen=True)
class TarUnit:
    """A tar shard as webdataset writes them: what belongs to a clip has one name and several suffixes."""

    place: str
    prefix: str
    known: dict[str, Entry] = field(default_factory=dict)
    """By member name and id, from manifests."""

    def clips(self) -> Iterator[CorpusClip]:
        """The clips, each with its data; a problem of the archive comes as a clip with a problem."""
        seen = set[str]()
        try:
            with open_place(self.place) as file, tarfile.open(fileobj=file, mode="r|*") as tar:
                group: dict[str, tuple[str, bytes]] = {}
                current = None
                for member in tar:
                    if not member.isfile():
                        continue
                    folder, _, name = member.name.rpartition("/")
                    stem, _, suffix = name.partition(".")
                    key = f"{folder}/{stem}" if folder else stem
                    if key != current:
                        yield from self._clip(current, group, seen)
                        group, current = {}, key
                    read = tar.extractfile(member)
                    assert read is not None
                    if suffix.lower() in group:
                        yield CorpusClip(
                            f"{self.prefix}/{key}", f"{self.place}:{member.name}", problem="is there twice"
                        )
                        continue
                    group[suffix.lower()] = (member.name, read.read())
                yield from self._clip(current, group, seen)
        except (tarfile.TarError, EOFError, OSError) as error:
            if isinstance(error, OSError) and not isinstance(error, FileNotFoundError) and "://" in self.place:
                raise StoreError(f"cannot reach {self.place}: {error}; run the same command again to go on") from error
            reason = f"the archive is cut off or damaged ({error}): get it again; what was before that is there"
            if isinstance(error, FileNotFoundError):
                reason = "there is no such file"
            yield CorpusClip(self.prefix, self.place, problem=reason)

    def _clip(self, key: str | None, group: dict[str, tuple[str, bytes]], seen: set[str]) -> Iterator[CorpusClip]:
        if key is None:
            return
        audio = [suffix for suffix in group if "." + suffix.rpartition(".")[2] in AUDIO_SUFFIXES]
        for suffix in audio:
            name, data = group[suffix]
            own = f"{self.prefix}/{key}" + (f".{suffix}" if len(audio) > 1 else "")
            if own in seen:
                yield CorpusClip(own, f"{self.place}:{name}", problem="is there twice")
                continue
            seen.add(own)
            entry = self.known.get(name) or self.known.get(key) or self._member_entry(group)
            clip = CorpusClip(own, f"{self.place}:{name}", data=data)
            yield replace(clip, text=entry.text, speaker=entry.speaker, language=entry.language)

    def _member_entry(self, group: dict[str, tuple[str, bytes]]) -> Entry:
        """What the texts beside a clip say of it."""
        fields: dict[str, Any] = {}
        if "json" in group:
            try:
                found = json.loads(group["json"][1])
                fields = found if isinstance(found, dict) else {}
            except ValueError:
                fields = {}
        if "txt" in group and not any(fields.get(key) for key in TEXT_KEYS):
            fields["text"] = group["txt"][1].decode("utf-8", "replace").strip()

        def first(keys: tuple[str, ...]) -> str | None:
            return next((str(fields[key]) for key in keys if fields.get(key)), None)

        return Entry("", text=first(TEXT_KEYS), speaker=first(SPEAKER_KEYS), language=first(LANGUAGE_KEYS))

    def describe(self) -> str:
        """What tells it from other units."""
        return f"tar {self.place}"


@dataclass(frozen=True)
class HubUnit:
    """A part of a Hugging Face audio data set: rows `start ... stop`, or shard `start` of `stop` of a stream."""

    name: str
    split: str
    streaming: bool
    start: int
    stop: int

    def clips(self) -> Iterator[CorpusClip]:
        """The clips, each with its data."""
        rows, column = open_hub(self.name, self.split, self.streaming)
        part = rows.shard(self.stop, self.start) if self.streaming else rows.select(range(self.start, self.stop))
        for number, row in enumerate(self._rows(part)):
            at = f"{self.start:05}-{number:06}" if self.streaming else f"{self.start + number:08}"
            audio = row[column] or {}
            path, data = audio.get("path"), audio.get("bytes")
            clip = CorpusClip(f"{self.split}-{at}", f"{self.name}[{self.split}]:{at}", data=data)
            if data is None:
                clip = replace(clip, place=path, problem=None if path else "the row has no audio")

            def first(keys: tuple[str, ...], row: dict[str, Any] = row) -> str | None:
                return next((str(row[key]) for key in keys if row.get(key) not in (None, "")), None)

            yield replace(clip, text=first(TEXT_KEYS), speaker=first(SPEAKER_KEYS), language=first(LANGUAGE_KEYS))

    def _rows(self, part: Any) -> Iterator[dict[str, Any]]:
        try:
            yield from part
        except Exception as error:  # of the network, the files or their format
            raise StoreError(
                f"cannot read the Hugging Face data set {self.name}, split {self.split}: {first_line(error)}; "
                f"run the same command again to go on"
            ) from error

    def describe(self) -> str:
        """What tells it from other units."""
        return f"hub {asdict(self)}"


Unit = ListUnit | TarUnit | HubUnit


@dataclass(frozen=True)
class CorpusSpec:
    """What the command line says of a corpus; enough to make the same plan again.

    Attributes:
        inputs: folders, audio files, lists, manifests, tar shards, URLs of such, `hf:` data sets.
        manifests: more manifests, which only say something of clips that `inputs` have.
        split: of Hugging Face data sets.
        streaming: whether these are read without being downloaded first.
        shard_clips: clips of a unit, where units are made of single files.
    """

    inputs: tuple[str, ...]
    manifests: tuple[str, ...] = ()
    split: str = "train"
    streaming: bool = False
    shard_clips: int = 1000


@dataclass(frozen=True)
class CorpusPlan:
    """The units of a corpus."""

    units: tuple[Unit, ...]

    @property
    def clips(self) -> int | None:
        """How many there are, None if that is not known before they are read."""
        if not all(isinstance(unit, ListUnit) for unit in self.units):
            return None
        return sum(len(unit.listed) for unit in self.units if isinstance(unit, ListUnit))

    def digest(self) -> str:
        """Tells whether a corpus is still the same."""
        return hashlib.sha256("\n\n".join(unit.describe() for unit in self.units).encode()).hexdigest()


def make_plan(spec: CorpusSpec, out: Path | None = None) -> CorpusPlan:
    """Find the clips of a corpus and divide them into units, always in the same order.

    Args:
        spec: what is read.
        out: the output, which may lie inside the corpus: its shards are no part of that.

    Raises:
        UsageError: if an input does not exist, or there is no audio in it.
        StoreError: if a store cannot be reached.
    """
    known = {key: entry for place in spec.manifests for key, entry in known_entries(place)}
    listed: list[CorpusClip] = []
    tars: list[tuple[str, str]] = []
    units: list[Unit] = []
    for given in spec.inputs:
        if not given:
            raise UsageError("the name of a corpus is empty: give a folder, a list, a manifest, a tar shard or hf:NAME")
        if given.startswith(HUB):
            units += hub_units(given[len(HUB) :], spec)
        elif given.lower().endswith(TAR_SUFFIXES):
            check_exists(given)
            tars.append((given, tar_stem(given)))
        elif is_folder(given):
            found = files_below(given, out)
            for place, name in found:
                if name.lower().endswith(TAR_SUFFIXES):
                    tars.append((place, tar_stem(name)))
                else:
                    listed.append(with_entry(CorpusClip(name, place, place), known.get(name)))
            if not found:
                raise UsageError(f"no audio found in {given}")
        else:
            check_exists(given)
            if PurePosixPath(given).suffix.lower() in AUDIO_SUFFIXES:
                name = PurePosixPath(given).name
                listed.append(with_entry(CorpusClip(name, given, given), known.get(name)))
            else:
                listed += manifest_clips(given, known)
    stems = Counter(stem for _, stem in tars)
    for place, stem in tars:
        units.append(
            TarUnit(place, stem if stems[stem] == 1 else tar_stem(place.replace("://", "/").lstrip("/")), known)
        )
    named = unique_ids(listed)
    size = spec.shard_clips
    units += [ListUnit(tuple(named[start : start + size])) for start in range(0, len(named), size)]
    if not units:
        raise UsageError(f"no audio found in {', '.join(spec.inputs)}")
    return CorpusPlan(tuple(units))


def with_entry(clip: CorpusClip, entry: Entry | None) -> CorpusClip:
    """The clip with what a manifest says of it."""
    if entry is None:
        return clip
    return replace(clip, id=entry.id or clip.id, **entry.known())


def known_entries(place: str) -> Iterator[tuple[str, Entry]]:
    """What a manifest says, by the path as it stands there, and by the name alone without its suffix."""
    check_exists(place)
    entries = list(read_manifest(read_place(place), place))
    if not entries:
        raise UsageError(f"{place} names no clips")
    for entry in entries:
        if entry.problem:
            raise UsageError(f"{entry.path} {entry.problem}")
        yield entry.path, replace(entry, start=None, seconds=None)
        yield str(PurePosixPath(entry.path).with_suffix("")), replace(entry, start=None, seconds=None)


def manifest_clips(place: str, known: dict[str, Entry]) -> list[CorpusClip]:
    """The clips that a list or manifest names; paths are relative to it, unless they exist as they are."""
    if "://" not in place and not place.lower().endswith(MANIFEST_SUFFIXES):
        paths = read_list(Path(place))
        names = [os.path.relpath(path, Path(place).parent) for path in paths]
        return [
            with_entry(CorpusClip(name, str(path), str(path)), known.get(name))
            for name, path in zip(names, paths, strict=True)
        ]
    entries = list(read_manifest(read_place(place), place))
    if not entries:
        raise UsageError(f"no audio found in {place}: it names no clips")
    base = place.rpartition("/")[0]
    clips = []
    for entry in entries:
        path = entry.path
        if entry.problem:
            clips.append(CorpusClip(path, path, problem=entry.problem))
            continue
        if "://" not in path and not path.startswith("/"):
            beside = f"{base}/{path}" if base else path
            here = "://" not in place and not Path(beside).exists() and Path(path).exists()
            path = path if here else beside
        clip = with_entry(CorpusClip(entry.path, path, path), entry)
        if entry.start is not None:
            clip = replace(clip, id=entry.id or f"{entry.path}-{round(1000 * entry.start):09}")
        if (more := known.get(entry.path)) is not None:
            clip = replace(
                clip,
                text=clip.text or more.text,
                speaker=clip.speaker or more.speaker,
                language=clip.language or more.language,
            )
        clips.append(clip)
    return clips


def unique_ids(clips: Sequence[CorpusClip]) -> list[CorpusClip]:
    """Clips with ids that are relative paths without suffix where that tells them apart; doubled ones get a problem."""
    seen = set[tuple[str, float | None, float | None]]()
    checked = []
    for clip in clips:
        key = (clip.place or clip.source, clip.start, clip.seconds)
        if key in seen and clip.problem is None:
            clip = replace(clip, problem="is named twice: it was taken once")
        seen.add(key)
        checked.append(clip)
    short = Counter(short_id(clip) for clip in checked if clip.problem is None)
    named, taken = [], set[str]()
    for clip in checked:
        own = short_id(clip) if short[short_id(clip)] <= 1 else clip.id.lstrip("/")
        if own in taken and clip.problem is None:
            own = f"{own}-{hashlib.sha256(clip.source.encode()).hexdigest()[:8]}"
        if clip.problem is None:
            taken.add(own)
        named.append(replace(clip, id=own))
    return named


def printable(name: str) -> str:
    """A name as outputs can hold it: bytes that are no UTF-8 become escapes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def short_id(clip: CorpusClip) -> str:
    """A clip's id without the suffix of an audio file, as a relative path that leads nowhere else."""
    path = PurePosixPath(clip.id)
    path = path.with_suffix("") if path.suffix.lower() in AUDIO_SUFFIXES else path
    return "/".join(part for part in path.parts if part not in ("/", "..", "."))


def tar_stem(place: str) -> str:
    """The name of a tar shard without its suffix."""
    name = place.rsplit("/", 1)[-1] if "://" in place or place.startswith("/") else place
    return next(name[: -len(suffix)] for suffix in TAR_SUFFIXES if name.lower().endswith(suffix))


def hub_units(name: str, spec: CorpusSpec) -> list[Unit]:
    """Units of a Hugging Face data set."""
    rows, _ = open_hub(name, spec.split, spec.streaming)
    if spec.streaming:
        count = rows.num_shards
        return [HubUnit(name, spec.split, True, number, count) for number in range(count)]
    total, size = len(rows), spec.shard_clips
    if not total:
        raise UsageError(f"no audio found in {HUB}{name}: split {spec.split} is empty")
    return [HubUnit(name, spec.split, False, start, min(start + size, total)) for start in range(0, total, size)]


def open_hub(name: str, split: str, streaming: bool) -> tuple[Any, str]:
    """A Hugging Face data set whose audio stays encoded, and the name of its audio column.

    Raises:
        UsageError: if it cannot be opened or has no audio, or `datasets` is not installed.
    """
    try:
        import datasets
    except ImportError as error:
        raise UsageError('Hugging Face data sets need more packages: pip install "q2d2[corpus]"') from error
    path, _, config = name.partition(":")
    try:
        if (Path(path) / "state.json").is_file() or (Path(path) / "dataset_dict.json").is_file():
            rows = datasets.load_from_disk(path)
            rows = rows[split] if isinstance(rows, datasets.DatasetDict) else rows
            rows = rows.to_iterable_dataset() if streaming else rows
        else:
            rows = datasets.load_dataset(path, config or None, split=split, streaming=streaming)
    except Exception as error:
        raise UsageError(f"cannot open the Hugging Face data set {name}, split {split}: {first_line(error)}") from error
    columns = [column for column, kind in (rows.features or {}).items() if isinstance(kind, datasets.Audio)]
    if not columns:
        raise UsageError(f"the Hugging Face data set {name} has no audio column: {', '.join(rows.features or {})}")
    return rows.cast_column(columns[0], datasets.Audio(decode=False)), columns[0]


def is_folder(place: str) -> bool:
    """Whether a path or URL is a folder; a URL that is no file counts as one."""
    if "://" not in place:
        return Path(place).is_dir()
    return remote(place, lambda files, path: not files.isfile(path))


def check_exists(place: str) -> None:
    """Raise UsageError unless there is a file at a path or URL."""
    there = remote(place, lambda files, path: files.isfile(path)) if "://" in place else Path(place).is_file()
    if not there:
        raise UsageError(f"{place} does not exist: give a folder, a list, a manifest, a tar shard or hf:NAME")


def files_below(place: str, out: Path | None = None) -> list[tuple[str, str]]:
    """Audio files and tar shards below a folder, sorted: full path or URL, and path in the folder.

    Shards that an output there holds are left out.
    """
    wanted = (*AUDIO_SUFFIXES, *TAR_SUFFIXES)
    if "://" not in place:
        folder = Path(place)
        below = (path for path in folder.rglob("*") if path.name.lower().endswith(wanted))
        paths = sorted((path for path in below if path.is_file() and not is_foreign(path)), key=os.fsencode)
        if out is not None and out.resolve().is_relative_to(folder.resolve()):
            shards = folder / out.resolve().relative_to(folder.resolve()) / DATA
            paths = [path for path in paths if path.parent != shards or not SHARD.fullmatch(path.stem)]
        return [(str(path), path.relative_to(place).as_posix()) for path in paths]

    def find(files: Any, path: str) -> list[tuple[str, str]]:
        root = path.rstrip("/") + "/"
        found = sorted(name for name in files.find(path) if name.lower().endswith(wanted))
        return [(files.unstrip_protocol(name), name[len(root) :]) for name in found]

    return remote(place, find)


def read_place(place: str) -> bytes:
    """All of a file or object.

    Raises:
        Q2D2Error: if it cannot be read.
        StoreError: if the store cannot be reached.
    """
    if "://" in place:
        return remote(place, lambda files, path: files.cat_file(path))
    try:
        return Path(place).read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {place}: {error.strerror}") from error


def open_place(place: str) -> BinaryIO:
    """A file or object to read from its beginning."""
    if "://" not in place:
        return open(place, "rb")
    if not remote(place, lambda files, path: files.isfile(path)):
        raise FileNotFoundError(place)
    return io.BufferedReader(remote(place, lambda files, path: files.open(path, "rb", cache_type="readahead")))


def first_line(error: Exception) -> str:
    """The first line of what an error says, or else its kind."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def remote(place: str, action: Callable[[Any, str], T]) -> T:
    """Do something with the file system of a URL; what may pass is tried again.

    Raises:
        Q2D2Error: if the object is not there.
        StoreError: if the store cannot be reached or refuses.
    """
    try:
        import fsspec

        files, path = fsspec.core.url_to_fs(place)
    except (ImportError, ValueError) as error:
        raise UsageError(f'cannot open {place}: {error}; pip install "q2d2[corpus]" has the S3 client') from error
    for attempt in range(TRIES):
        try:
            return action(files, path)
        except FileNotFoundError as error:
            raise Q2D2Error(f"{place} does not exist") from error
        except Exception as error:
            if attempt + 1 == TRIES or isinstance(error, PermissionError):
                raise StoreError(
                    f"cannot reach {place}: {first_line(error)}; check address and credentials, and run the same "
                    f"command again"
                ) from error
            time.sleep(0.2 * 2**attempt)
            files.invalidate_cache()
    raise AssertionError
