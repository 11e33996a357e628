"""Output formats that trainers read: Parquet, webdataset, Megatron's indexed data sets, NumPy files."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from q2d2cli.errors import Q2D2Error, UsageError
from q2d2cli.files import atomic_output, make_folder

METADATA_KEY = "q2d2"
"""Under which a Parquet schema keeps the description of the ids."""
MEGATRON_TYPES = {"int32": 4, "int64": 5, "uint16": 8}
"""Megatron's numbers for the types of ids."""
DATA = "data"
"""Folder of the shards in an output."""


@dataclass(frozen=True)
class TokenRow:
    """A clip as it stands in an output.

    Attributes:
        id: unique in the output.
        codes: `(frames * ids per frame,)` ids.
        n_frames: frames of the codec.
        duration: seconds; times `sample_rate` that is the exact number of samples.
        sample_rate: of the recording, Hz.
        speaker: who says it, if known.
        language: in which language, if known.
        text: what is said, if known.
        source: where the recording was.
    """

    id: str
    codes: np.ndarray
    n_frames: int
    duration: float
    sample_rate: int
    speaker: str | None
    language: str | None
    text: str | None
    source: str

    def fields(self) -> dict[str, Any]:
        """Everything but the codes, as JSON."""
        return {key: value for key, value in asdict(self).items() if key != "codes"}


def digest(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file.

    Raises:
        Q2D2Error: if it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
    except OSError as error:
        raise Q2D2Error(f"cannot read {path}: {error.strerror}") from error


class Format(ABC):
    """Writes and reads shards in the folder `data` of an output.

    Args:
        folder: the output.
        description: of ids and codec, as JSON.
    """

    name: str

    def __init__(self, folder: Path, description: dict[str, Any]) -> None:
        self.folder, self.description = folder, description
        self.dtype = np.dtype(description["dtype"])

    @abstractmethod
    def write(self, shard: str, rows: Sequence[TokenRow]) -> list[str]:
        """Write a shard, each file whole or not at all; returns the paths of its files in the output."""

    @abstractmethod
    def read(self, shard: str) -> Iterator[TokenRow]:
        """The rows of a shard.

        Raises:
            Q2D2Error: if it cannot be read.
        """

    def _sidecar(self, shard: str, rows: Sequence[TokenRow], more: Sequence[dict[str, Any]] | None = None) -> str:
        """Write what is known of each row as JSON lines."""
        name = f"{DATA}/{shard}.jsonl"
        with atomic_output(self.folder / name) as file:
            for number, row in enumerate(rows):
                fields = row.fields() | (more[number] if more else {})
                file.write((json.dumps(fields, ensure_ascii=False) + "\n").encode())
        return name

    def _read_sidecar(self, shard: str) -> list[dict[str, Any]]:
        path = self.folder / DATA / f"{shard}.jsonl"
        try:
            return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        except (OSError, ValueError) as error:
            raise Q2D2Error(f"cannot read {path}: {error}") from error


class ParquetFormat(Format):
    """Parquet files whose schema's metadata describe the ids."""

    name = "parquet"

    def __init__(self, folder: Path, description: dict[str, Any]) -> None:
        super().__init__(folder, description)
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError as error:
            raise UsageError('Parquet needs more packages: pip install "q2d2[corpus]"') from error
        self._arrow, self._parquet = pyarrow, pyarrow.parquet

    def write(self, shard: str, rows: Sequence[TokenRow]) -> list[str]:
        """As `Format.write`."""
        arrow, text = self._arrow, self._arrow.string()
        columns = [
            ("id", text, [row.id for row in rows]),
            ("codes", arrow.list_(arrow.from_numpy_dtype(self.dtype)), [row.codes for row in rows]),
            ("n_frames", arrow.int32(), [row.n_frames for row in rows]),
            ("duration", arrow.float64(), [row.duration for row in rows]),
            ("sample_rate", arrow.int32(), [row.sample_rate for row in rows]),
            ("speaker", text, [row.speaker for row in rows]),
            ("language", text, [row.language for row in rows]),
            ("text", text, [row.text for row in rows]),
            ("source", text, [row.source for row in rows]),
        ]
        metadata = {METADATA_KEY: json.dumps(self.description)}
        schema = arrow.schema([(name, kind) for name, kind, _ in columns], metadata)
        table = arrow.Table.from_arrays([arrow.array(values, kind) for _, kind, values in columns], schema=schema)
        name = f"{DATA}/{shard}.parquet"
        with atomic_output(self.folder / name) as file:
            self._parquet.write_table(table, file, compression="zstd")
        return [name]

    def read(self, shard: str) -> Iterator[TokenRow]:
        """As `Format.read`."""
        path = self.folder / DATA / f"{shard}.parquet"
        try:
            table = self._parquet.read_table(path)
            codes = table.column("codes")
            others = table.drop_columns(["codes"]).to_pylist()
        except (OSError, ValueError, KeyError) as error:
            raise Q2D2Error(f"cannot read {path}: {error}") from error
        for fields, values in zip(others, codes, strict=True):
            yield TokenRow(codes=values.values.to_numpy(zero_copy_only=False), **fields)


class WebdatasetFormat(Format):
    """Tar files with `NAME.npy` (ids) and `NAME.json` (everything else) for each clip."""

    name = "webdataset"

    def write(self, shard: str, rows: Sequence[TokenRow]) -> list[str]:
        """As `Format.write`."""
        name = f"{DATA}/{shard}.tar"
        with (
            atomic_output(self.folder / name) as file,
            tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar,
        ):
            for number, row in enumerate(rows):
                fields = row.fields() | {"vocabulary": self.description} if number == 0 else row.fields()
                for suffix, data in (("npy", npy_bytes(row.codes)), ("json", json.dumps(fields).encode())):
                    member = tarfile.TarInfo(f"{shard}-{number:06}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
        return [name]

    def read(self, shard: str) -> Iterator[TokenRow]:
        """As `Format.read`."""
        path = self.folder / DATA / f"{shard}.tar"
        try:
            with tarfile.open(path) as tar:
                codes = None
                for member in tar:
                    file = tar.extractfile(member)
                    assert file is not None
                    if member.name.endswith(".npy"):
                        codes = np.load(io.BytesIO(file.read()), allow_pickle=False)
                    else:
                        fields = json.loads(file.read())
                        fields.pop("vocabulary", None)
                        assert codes is not None
                        yield TokenRow(codes=codes, **fields)
        except (OSError, ValueError, tarfile.TarError, AssertionError, EOFError) as error:
            raise Q2D2Error(f"cannot read {path}: {error}") from error


class MegatronFormat(Format):
    """Megatron-LM's memory-mapped data sets: `.bin` with the ids, `.idx` with their places; one document a clip.

    The layout is that of `IndexedDataset` in megatron-core: `MMIDIDX`, two zero bytes, version 1 (uint64), a code for
    the type (uint8), the number of sequences and of document boundaries (uint64 each), then the length of each sequence
    (int32), where it begins in the `.bin` in bytes (int64), and the boundaries (int64), all little endian.
    """

    name = "megatron"
    MAGIC = b"MMIDIDX\x00\x00"
    HEADER = struct.Struct("<9sQBQQ")

    def write(self, shard: str, rows: Sequence[TokenRow]) -> list[str]:
        """As `Format.write`."""
        binary, index = f"{DATA}/{shard}.bin", f"{DATA}/{shard}.idx"
        lengths = np.array([len(row.codes) for row in rows], np.int64)
        with atomic_output(self.folder / binary) as file:
            for row in rows:
                file.write(row.codes.astype(self.dtype.newbyteorder("<")).tobytes())
        with atomic_output(self.folder / index) as file:
            count = len(rows)
            file.write(self.HEADER.pack(self.MAGIC, 1, MEGATRON_TYPES[self.dtype.name], count, count + 1))
            file.write(lengths.astype("<i4").tobytes())
            file.write(((np.cumsum(lengths) - lengths) * self.dtype.itemsize).astype("<i8").tobytes())
            file.write(np.arange(count + 1, dtype="<i8").tobytes())
        return [binary, index, self._sidecar(shard, rows)]

    def read(self, shard: str) -> Iterator[TokenRow]:
        """As `Format.read`."""
        base = self.folder / DATA / shard
        try:
            index = base.with_name(shard + ".idx").read_bytes()
            ids = np.fromfile(base.with_name(shard + ".bin"), self.dtype.newbyteorder("<")).astype(self.dtype)
            magic, version, code, count, documents = self.HEADER.unpack_from(index)
            size = self.HEADER.size
            if (magic, version, code, documents) != (self.MAGIC, 1, MEGATRON_TYPES[self.dtype.name], count + 1):
                raise ValueError("it is not the index of such a shard")
            lengths = np.frombuffer(index, "<i4", count, size)
            starts = np.frombuffer(index, "<i8", count, size + 4 * count) // self.dtype.itemsize
        except (OSError, ValueError, struct.error) as error:
            raise Q2D2Error(f"cannot read {base}.idx and .bin: {error}") from error
        fields = self._read_sidecar(shard)
        if len(fields) != count:
            raise Q2D2Error(f"{base}.jsonl has {len(fields)} lines, but {base}.idx has {count} clips")
        for row, start, length in zip(fields, starts, lengths, strict=True):
            yield TokenRow(codes=ids[start : start + length], **row)


class NpyFormat(Format):
    """A `.npy` file for each clip, in folders like those of the recordings, and JSON lines that list a shard's."""

    name = "npy"

    def write(self, shard: str, rows: Sequence[TokenRow]) -> list[str]:
        """As `Format.write`; the list comes last and holds size and SHA-256 of every file."""
        hashes = []
        for row in rows:
            path = self.folder / DATA / f"{row.id}.npy"
            make_folder(path.parent)
            data = npy_bytes(row.codes)
            with atomic_output(path) as file:
                file.write(data)
            hashes.append({"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()})
        return [self._sidecar(shard, rows, hashes)]

    def read(self, shard: str) -> Iterator[TokenRow]:
        """As `Format.read`; checks size and SHA-256 of each file."""
        for fields in self._read_sidecar(shard):
            path = self.folder / DATA / f"{fields['id']}.npy"
            expected = {"bytes": fields.pop("bytes"), "sha256": fields.pop("sha256")}
            if digest(path) != expected:
                raise Q2D2Error(f"{path} is damaged: its size or SHA-256 is not the one in {shard}.jsonl")
            try:
                yield TokenRow(codes=np.load(path, allow_pickle=False), **fields)
            except ValueError as error:
                raise Q2D2Error(f"cannot read {path}: {error}") from error


def npy_bytes(ids: np.ndarray) -> bytes:
    """An array as the bytes of a `.npy` file."""
    buffer = io.BytesIO()
    np.save(buffer, ids, allow_pickle=False)
    return buffer.getvalue()


FORMATS: dict[str, type[Format]] = {
    kind.name: kind for kind in (ParquetFormat, WebdatasetFormat, MegatronFormat, NpyFormat)
}
"""What `q2d2 tokenize --format` offers."""


def open_format(name: str, folder: Path, description: dict[str, Any]) -> Format:
    """A format by its name.

    Raises:
        UsageError: if it is unknown or needs packages that are missing.
    """
    if name not in FORMATS:
        raise UsageError(f"unknown format {name!r}: choose from {', '.join(FORMATS)}")
    return FORMATS[name](folder, description)
