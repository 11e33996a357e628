"""Where corpora come from: tar shards, an S3 server, Hugging Face data sets."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet
import pytest
import s3fs
from conftest import Run
from corpus_parts import rows_of, write_clips
from moto.server import ThreadedMotoServer

from q2d2cli.corpus.folder import TokenFolder

Clips = dict[str, np.ndarray]


@pytest.fixture
def corpus(tmp_path: Path, clip: tuple[np.ndarray, int]) -> tuple[Path, Clips]:
    return tmp_path / "corpus", write_clips(tmp_path / "corpus", clip[0], 6)


@pytest.fixture
def expected(call: Run, tmp_path: Path, tiny: Path, corpus: tuple[Path, Clips]) -> dict[str, np.ndarray]:
    """Ids of the clips, read from a folder."""
    assert call("tokenize", corpus[0], "--out", tmp_path / "expected", "--model", tiny).returncode == 0
    return {name: row.codes for name, row in rows_of(tmp_path / "expected").items()}


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def members_of(folder: Path, names: list[str]) -> list[tuple[str, bytes]]:
    members = []
    for name in names:
        members.append((f"{name}.wav", (folder / f"{name}.wav").read_bytes()))
        members.append((f"{name}.json", json.dumps({"text": f"text of {name}", "speaker": name[0]}).encode()))
    return members


def test_tar_shards(
    call: Run,
    tmp_path: Path,
    tiny: Path,
    corpus: tuple[Path, Clips],
    expected: dict[str, np.ndarray],
) -> None:
    folder, shards, out = corpus[0], tmp_path / "shards", tmp_path / "out"
    names = sorted(expected)
    shards.mkdir()
    write_tar(shards / "s-0.tar", members_of(folder, names[:3]))
    write_tar(shards / "s-1.tar.gz", members_of(folder, names[3:]))
    for inputs in ([shards], [shards / "s-0.tar", shards / "s-1.tar.gz"]):
        target = out / str(len(inputs))
        assert call("tokenize", *inputs, "--out", target, "--model", tiny).returncode == 0
        rows = rows_of(target)
        assert sorted(rows) == [f"s-0/{name}" for name in names[:3]] + [f"s-1/{name}" for name in names[3:]]
        for key, row in rows.items():
            name = key.partition("/")[2]
            np.testing.assert_array_equal(row.codes, expected[name])
            assert (row.text, row.speaker) == (f"text of {name}", name[0])
    assert call("tokenize", "--verify", "100%", out / "1").returncode == 0


def test_tar_shards_that_are_damaged(
    call: Run,
    tmp_path: Path,
    tiny: Path,
    corpus: tuple[Path, Clips],
) -> None:
    folder, clips = corpus
    names, whole, cut = sorted(clips), tmp_path / "whole.tar", tmp_path / "cut.tar"
    members = members_of(folder, names)
    write_tar(whole, [*members[:4], ("a/broken.wav", b"RIFF"), *members[:2]])
    write_tar(cut, members)
    cut.write_bytes(cut.read_bytes()[: -len(members[-2][1]) - 12_000])
    result = call("tokenize", whole, cut, tmp_path / "corpus", "--out", tmp_path / "out", "--model", tiny)
    assert result.returncode == 1
    words = result.stderr.decode()
    assert "cut.tar the archive is cut off or damaged" in words
    assert "broken.wav as audio" in words
    assert f"{names[0]}.wav is there twice" in words
    rows = rows_of(tmp_path / "out")
    assert set(names) <= rows.keys()  # the rest of the job goes on
    assert {f"whole/{name}" for name in names[:2]} <= rows.keys()
    assert f"cut/{names[0]}" in rows
    assert f"cut/{names[-1]}" not in rows


def test_an_output_inside_its_corpus_is_no_part_of_it(
    call: Run, tmp_path: Path, tiny: Path, corpus: tuple[Path, Clips], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, clips = corpus
    write_tar(folder / "more.tar", members_of(folder, sorted(clips)[:1]))
    monkeypatch.chdir(folder)
    for name in (".", str(folder)):
        command = ["tokenize", name, "--out", f"tokens{len(name)}", "--model", tiny, "--format", "webdataset"]
        for _ in range(2):
            assert call(*command, "--shard-clips", "4").returncode == 0
            assert len(rows_of(folder / f"tokens{len(name)}")) == len(clips) + 1
        assert call("tokenize", "--verify", "100%", f"tokens{len(name)}").returncode == 0
        shutil.rmtree(f"tokens{len(name)}")


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def store(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[s3fs.S3FileSystem]:
    """A real S3 server with an empty bucket, named by the environment as users name theirs."""
    settings = {"ENDPOINT_URL": server, "ACCESS_KEY_ID": "x", "SECRET_ACCESS_KEY": "x", "DEFAULT_REGION": "us-east-1"}
    for name, value in {**settings, "MAX_ATTEMPTS": "1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    s3fs.S3FileSystem.clear_instance_cache()
    files = s3fs.S3FileSystem()
    files.mkdir("bucket")
    yield files
    files.rm("bucket", recursive=True)
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.slow
def test_object_storage(
    call: Run,
    tmp_path: Path,
    tiny: Path,
    store: s3fs.S3FileSystem,
    corpus: tuple[Path, Clips],
    expected: dict[str, np.ndarray],
) -> None:
    folder, clips = corpus
    store.put(str(folder), "bucket/speech", recursive=True)
    names = sorted(clips)
    lines = [json.dumps({"audio_filepath": f"speech/{name}.wav", "text": name}) for name in [*names, "missing"]]
    store.pipe("bucket/all.jsonl", "\n".join(lines).encode())
    write_tar(tmp_path / "s.tar", members_of(folder, names))
    store.put(str(tmp_path / "s.tar"), "bucket/tars/s.tar")
    cases = {
        "s3://bucket/speech": ("", 0),
        "s3://bucket/all.jsonl": ("speech/", 1),
        "s3://bucket/tars/s.tar": ("s/", 0),
    }
    for place, (prefix, code) in cases.items():
        out = tmp_path / place.replace("/", "_")
        result = call("tokenize", place, "--out", out, "--model", tiny, "--shard-clips", "4")
        assert result.returncode == code, result.stderr
        rows = rows_of(out)
        assert rows.keys() == {prefix + name for name in names}
        for key, row in rows.items():
            np.testing.assert_array_equal(row.codes, expected[key.removeprefix(prefix)])
            assert row.source.startswith("s3://bucket/")
        assert call("tokenize", "--verify", "50%", out).returncode == 0
    assert (
        b"s3://bucket/speech/missing.wav does not exist"
        in call(
            "tokenize",
            "s3://bucket/all.jsonl",
            "--out",
            tmp_path / "s3:__bucket_all.jsonl",
            "--model",
            tiny,
            "--shard-clips=4",
        ).stderr
    )
    assert b"no audio found in s3://bucket/none" in call("tokenize", "s3://bucket/none", "-o", tmp_path / "n").stderr


@pytest.mark.slow
def test_a_store_that_goes_away_stops_the_job_until_it_is_back(
    call: Run,
    tmp_path: Path,
    tiny: Path,
    store: s3fs.S3FileSystem,
    corpus: tuple[Path, Clips],
    expected: dict[str, np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, _ = corpus
    store.put(str(folder), "bucket/speech", recursive=True)
    local = [{"path": str(folder / f"{name}.wav"), "id": name} for name in sorted(expected)[:3]]
    far = [{"path": f"s3://bucket/speech/{name}.wav", "id": name} for name in sorted(expected)[3:]]
    (tmp_path / "m.jsonl").write_text("\n".join(json.dumps(line) for line in local + far))
    command = ["tokenize", tmp_path / "m.jsonl", "--out", tmp_path / "out", "--model", tiny, "--shard-clips", "3"]
    with monkeypatch.context() as away:
        away.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        s3fs.S3FileSystem.clear_instance_cache()
        result = call(*command)
        assert result.returncode == 1
        assert b"cannot reach s3://bucket/speech" in result.stderr
        assert result.stderr.count(b"\n") == 1
        assert call("tokenize", "s3://bucket/speech", "--out", tmp_path / "o2", "--model", tiny).returncode == 1
        assert not (tmp_path / "o2").exists()
    s3fs.S3FileSystem.clear_instance_cache()
    done = TokenFolder(tmp_path / "out")
    assert list(done.records) == [0]
    assert not done.records[0].rejected
    assert call(*command).returncode == 0
    assert {key: row.codes.tolist() for key, row in rows_of(tmp_path / "out").items()} == {
        key: codes.tolist() for key, codes in expected.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [False, True])
def test_hugging_face_data_sets(
    call: Run,
    tmp_path: Path,
    tiny: Path,
    corpus: tuple[Path, Clips],
    expected: dict[str, np.ndarray],
    streaming: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder, clips = corpus
    names = sorted(clips)
    place = tmp_path / "set"
    place.mkdir()
    features = {"audio": {"_type": "Audio"}, "sentence": {"dtype": "string", "_type": "Value"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    for part, some in enumerate((names[:3], names[3:])):  # as data sets lie on the Hub
        audio = [{"bytes": (folder / f"{name}.wav").read_bytes(), "path": f"{name}.wav"} for name in some]
        table = pyarrow.table({"audio": audio, "sentence": [f"text of {name}" for name in some]})
        table = table.replace_schema_metadata(metadata)
        pyarrow.parquet.write_table(table, place / f"train-0000{part}-of-00002.parquet")
    out = tmp_path / "out"
    options = ["--streaming"] if streaming else []
    command = ["tokenize", f"hf:{place}", "--out", out, "--model", tiny, "--shard-clips", "4", *options]
    result = call(*command)
    assert result.returncode == 0, result.stderr
    found = rows_of(out)
    assert len(TokenFolder(out).records) == 2
    for name, (key, row) in zip(names, sorted(found.items()), strict=True):
        assert key.startswith("train-")
        assert row.text == f"text of {name}"
        np.testing.assert_array_equal(row.codes, expected[name])
    assert call("tokenize", "--verify", "50%", out).returncode == 0
    assert b"cannot open the Hugging Face data set" in call("tokenize", "hf:" + str(folder / "no"), "-o", out).stderr
    if streaming:
        (place / "train-00001-of-00002.parquet").write_bytes(b"PAR1 cut off")
        result = call(*command[:3], tmp_path / "again", *command[4:])
        assert result.returncode == 1
        assert f"cannot read the Hugging Face data set {place}, split train: ".encode() in result.stderr
        assert result.stderr.count(b"\n") == 1
        assert list(TokenFolder(tmp_path / "again").records) == [0]  # it goes on from there
