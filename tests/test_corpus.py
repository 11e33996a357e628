"""Corpora to tokens: formats read by others, resume after a kill, checks, bad input, and the way back."""

from __future__ import annotations

import csv
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import soundfile
from conftest import ROOT, Run
from corpus_parts import RATE, files_of, rows_of, write_clips
from hypothesis import given
from hypothesis import strategies as st

from q2d2cli import Codec
from q2d2cli.corpus.folder import TokenFolder, locked
from q2d2cli.corpus.formats import FORMATS
from q2d2cli.corpus.vocabulary import Vocabulary
from q2d2cli.quantizers.spec import QuantizerSpec


@pytest.fixture
def corpus(tmp_path: Path, clip: tuple[np.ndarray, int]) -> tuple[Path, dict[str, np.ndarray]]:
    return tmp_path / "corpus", write_clips(tmp_path / "corpus", clip[0], 8)


def read_parquet(folder: Path) -> dict[str, np.ndarray]:
    import datasets

    cache = str(folder.parent / "cache")
    rows = datasets.load_dataset("parquet", data_dir=str(folder / "data"), split="train", cache_dir=cache)
    return {row["id"]: np.array(row["codes"]) for row in rows}


def read_webdataset(folder: Path) -> dict[str, np.ndarray]:
    import webdataset

    urls = [str(path) for path in sorted((folder / "data").glob("*.tar"))]
    samples = webdataset.WebDataset(urls, shardshuffle=False).decode()
    return {sample["json"]["id"]: sample["npy"] for sample in samples}


def read_megatron(folder: Path) -> dict[str, np.ndarray]:
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    found = {}
    for index in sorted((folder / "data").glob("*.idx")):
        data = IndexedDataset(str(index.with_suffix("")))
        names = [json.loads(line)["id"] for line in index.with_suffix(".jsonl").read_text().splitlines()]
        assert data.document_indices.tolist() == list(range(len(names) + 1))
        found.update(zip(names, (np.array(data[number]) for number in range(len(names))), strict=True))
    return found


def read_npy(folder: Path) -> dict[str, np.ndarray]:
    root = folder / "data"
    return {path.relative_to(root).with_suffix("").as_posix(): np.load(path) for path in root.rglob("*.npy")}


READERS = {"parquet": read_parquet, "webdataset": read_webdataset, "megatron": read_megatron, "npy": read_npy}


@pytest.mark.parametrize("name", FORMATS)
def test_others_read_the_ids_that_each_clip_has_alone(
    call: Run, tmp_path: Path, tiny: Path, tiny_codec: Codec, corpus: tuple[Path, dict[str, np.ndarray]], name: str
) -> None:
    folder, clips = corpus
    out, wavs = tmp_path / "out", tmp_path / "wavs"
    command = ["tokenize", folder, "--out", out, "--model", tiny, "--format", name, "--shard-clips", "3"]
    result = call(*command, "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["clips"] == len(clips)
    found = READERS[name](out)
    vocabulary = Vocabulary(tiny_codec.quantizer)
    alone = {key: tiny_codec.encode(samples, RATE) for key, samples in clips.items()}
    assert found.keys() == clips.keys()
    for key, ids in found.items():
        np.testing.assert_array_equal(ids, vocabulary.to_ids(alone[key].indices[0].numpy()))
    assert call("tokenize", "--verify", out).returncode == 0
    again = call("tokenize", "--verify", "100%", out, "--json")
    assert (again.returncode, json.loads(again.stdout)["encoded_again"]) == (0, len(clips))
    assert call("detokenize", out, "--out", wavs).returncode == 0
    for key, samples in clips.items():
        audio, rate = soundfile.read(wavs / f"{key}.wav", dtype="float32")
        assert (len(audio), rate) == (len(samples), RATE)
        np.testing.assert_allclose(audio, tiny_codec.decode(alone[key])[0].numpy().clip(-1, 1), atol=1e-4)


def test_metadata_say_how_to_undo_the_ids(call: Run, tmp_path: Path, tiny: Path, corpus: tuple[Path, Any]) -> None:
    folder, _ = corpus
    for ids in ("pair", "frame"):
        out = tmp_path / ids
        assert call("tokenize", folder, "--out", out, "--model", tiny, "--ids", ids).returncode == 0
        assert call("tokenize", "--verify", out).returncode == 0
    pair = pyarrow.parquet.read_table(tmp_path / "pair" / "data" / "shard-000000.parquet")
    frame = pyarrow.parquet.read_table(tmp_path / "frame" / "data" / "shard-000000.parquet")
    about = json.loads(pair.schema.metadata[b"q2d2"])
    assert pair.schema.field("codes").type == pyarrow.list_(pyarrow.uint16())
    assert about["vocabulary_size"] == sum(about["pair_sizes"])
    assert about["frame_rate"] == 500
    # By the metadata alone: pair ids to indices to frame ids.
    for one, other in zip(pair.column("codes").to_pylist(), frame.column("codes").to_pylist(), strict=True):
        indices = np.array(one).reshape(-1, about["ids_per_frame"]) - about["offsets"]
        weights = np.cumprod([1, *about["pair_sizes"][:-1]])
        np.testing.assert_array_equal(indices @ weights, other)


def test_what_manifests_know_is_taken_along(
    call: Run, tmp_path: Path, tiny: Path, corpus: tuple[Path, dict[str, np.ndarray]]
) -> None:
    folder, clips = corpus
    nemo = folder / "nemo.jsonl"
    lines = [
        {"audio_filepath": f"{name}.wav", "duration": 0.1, "text": f"Wörter {name}", "lang": "de"} for name in clips
    ]
    nemo.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    table = tmp_path / "speakers.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "speaker", "sentence"])
        writer.writerows([f"{name}.wav", name[0], 'with "quotes",\nand lines'] for name in clips)
    for inputs in ([nemo], [folder, "--manifest", nemo], [nemo, "--manifest", table], [folder, "--manifest", table]):
        out = tmp_path / f"out-{len(list(tmp_path.iterdir()))}"
        assert call("tokenize", *inputs, "--out", out, "--model", tiny).returncode == 0
        rows = rows_of(out)
        assert rows.keys() == clips.keys()
        for name, row in rows.items():
            if nemo in inputs:
                assert (row.text, row.language) == (f"Wörter {name}", "de")
            else:
                assert row.text == 'with "quotes",\nand lines'
            assert row.speaker == (name[0] if table in inputs else None)
            assert round(row.duration * row.sample_rate) == len(clips[name])


def test_parts_of_a_file_by_offset_and_duration(
    call: Run, tmp_path: Path, tiny: Path, tiny_codec: Codec, clip: tuple[np.ndarray, int]
) -> None:
    soundfile.write(tmp_path / "long.wav", clip[0], RATE)
    parts = [(0.0, 0.5), (1.25, 0.3), (9.0, None), (9.9, 5.0), (11.0, None)]
    lines = [{"audio_filepath": "long.wav", "offset": start, "duration": length} for start, length in parts]
    (tmp_path / "m.json").write_text("\n".join(json.dumps(line) for line in lines))
    result = call("tokenize", tmp_path / "m.json", "--out", tmp_path / "out", "--model", tiny)
    assert result.returncode == 1
    assert result.stderr.count(b"ends at 10.09 s") == 2
    rows = list(rows_of(tmp_path / "out").values())
    vocabulary = Vocabulary(tiny_codec.quantizer)
    stored = soundfile.read(tmp_path / "long.wav", dtype="float32")[0]
    for row, (start, length) in zip(rows, parts, strict=False):
        first = round(start * RATE)
        samples = stored[first : None if length is None else first + round(length * RATE)]
        np.testing.assert_array_equal(row.codes, vocabulary.to_ids(tiny_codec.encode(samples, RATE).indices[0].numpy()))


def test_long_files_are_encoded_as_they_are_read(
    call: Run, tmp_path: Path, tiny: Path, tiny_codec: Codec, clip: tuple[np.ndarray, int]
) -> None:
    audio = np.tile(clip[0], 13)  # 131 s
    soundfile.write(tmp_path / "long.flac", np.stack([audio, 0.5 * audio], axis=1), RATE)
    assert call("tokenize", tmp_path / "long.flac", "--out", tmp_path / "out", "--model", tiny).returncode == 0
    stored = soundfile.read(tmp_path / "long.flac", dtype="float32")[0].mean(axis=1)
    expected = tiny_codec.encode(stored, RATE).indices[0].numpy()
    np.testing.assert_array_equal(
        rows_of(tmp_path / "out")["long"].codes, Vocabulary(tiny_codec.quantizer).to_ids(expected)
    )


def start(*arguments: str | Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "q2d2cli", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.DEVNULL,
    )


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kills"), [("parquet", 2), ("npy", 1)])
def test_killed_it_goes_on_where_it_stopped(
    call: Run, tmp_path: Path, tiny: Path, clip: tuple[np.ndarray, int], name: str, kills: int
) -> None:
    write_clips(tmp_path / "corpus", clip[0], 60)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    options = ["--model", tiny, "--format", name, "--shard-clips", "2", "--quiet"]
    assert call("tokenize", tmp_path / "corpus", "--out", whole, *options).returncode == 0
    for number in range(1, kills + 1):
        process = start("tokenize", tmp_path / "corpus", "--out", killed, *options)
        manifest = killed / "manifest.jsonl"
        while process.poll() is None and (not manifest.exists() or manifest.read_bytes().count(b"\n") < 5 * number):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    lines = manifest.read_bytes()
    manifest.write_bytes(lines + b'{"kind": "shard", "un')  # killed while it wrote a line
    (killed / "data" / ".shard-000029.parquet.x.partial").write_bytes(b"half")
    assert call("tokenize", "--verify", killed).returncode == 1 or b"finished" in lines
    assert call("tokenize", tmp_path / "corpus", "--out", killed, *options).returncode == 0
    assert files_of(killed) == files_of(whole)
    assert call("tokenize", "--verify", killed).returncode == 0
    assert manifest.read_bytes().startswith(lines)  # nothing was done twice
    assert set(manifest.read_bytes().splitlines()[1:]) == set((whole / "manifest.jsonl").read_bytes().splitlines()[1:])


def test_bad_clips_are_named_and_the_others_are_there(
    call: Run, tmp_path: Path, tiny: Path, corpus: tuple[Path, dict[str, np.ndarray]]
) -> None:
    folder, clips = corpus
    (folder / "broken.wav").write_bytes(b"RIFF")
    soundfile.write(folder / "nan.wav", np.full(100, np.nan), RATE, subtype="FLOAT")
    lines = [json.dumps({"path": f"{name}.wav"}) for name in clips]
    lines += ['{"path": "missing.wav"}', '{"path": "broken.wav"', '{"text": "no path"}', "[]"]
    lines += ['{"path": "broken.wav"}', '{"path": "nan.wav"}', lines[0], '{"path": "a/clip-000.wav", "offset": "x"}']
    (folder / "m.jsonl").write_text("\n".join(lines))
    result = call("tokenize", folder / "m.jsonl", "--out", tmp_path / "out", "--model", tiny)
    assert result.returncode == 1
    words = result.stderr.decode()
    for reason in (
        "missing.wav does not exist",
        "line 10 is no JSON",
        "line 11 names no file",
        "line 12 is no JSON object",
        "cannot read",
        "nan.wav holds a NaN",
        "is named twice",
        "line 16 has an offset",
    ):
        assert reason in words
    assert "Traceback" not in words
    assert rows_of(tmp_path / "out").keys() == clips.keys()
    assert len(TokenFolder(tmp_path / "out").records[0].rejected) == 8
    assert call("tokenize", "--verify", tmp_path / "out").returncode == 0


def test_a_list_of_paths_and_names_that_are_not_utf_8(
    call: Run, tmp_path: Path, tiny: Path, corpus: tuple[Path, dict[str, np.ndarray]]
) -> None:
    folder, clips = corpus
    (folder / os.fsdecode(b"\xff.wav")).write_bytes((folder / "a" / "clip-000.wav").read_bytes())
    lines = [b"# all", *(f"{name}.wav".encode() for name in clips), b"\xff.wav", b"gone.wav"]
    (folder / "all.txt").write_bytes(b"\n".join(lines))
    result = call("tokenize", folder / "all.txt", "--out", tmp_path / "out", "--model", tiny)
    assert result.returncode == 1
    assert b"gone.wav does not exist" in result.stderr
    assert rows_of(tmp_path / "out").keys() == {*clips, "\\xff"}
    assert call("tokenize", "--verify", "100%", tmp_path / "out").returncode == 0
    assert call("detokenize", tmp_path / "out", "--out", tmp_path / "wavs").returncode == 0


def test_files_that_differ_in_their_suffix_only(call: Run, tmp_path: Path, tiny: Path) -> None:
    for name in ("x.wav", "x.flac", "y.wav"):
        soundfile.write(tmp_path / name, np.zeros(500), RATE)
    assert call("tokenize", tmp_path, "--out", tmp_path / "out", "--model", tiny).returncode == 0
    assert rows_of(tmp_path / "out").keys() == {"x.wav", "x.flac", "y"}


def test_checks_find_what_is_damaged(
    call: Run, tmp_path: Path, tiny: Path, corpus: tuple[Path, dict[str, np.ndarray]]
) -> None:
    folder, _ = corpus
    out = tmp_path / "out"
    assert call("tokenize", folder, "--out", out, "--model", tiny, "--shard-clips", "3").returncode == 0
    shard, manifest = out / "data" / "shard-000001.parquet", out / "manifest.jsonl"
    good, lines = shard.read_bytes(), manifest.read_bytes()

    def problem() -> str:
        result = call("tokenize", "--verify", out)
        assert result.returncode == 1
        return result.stderr.decode()

    shard.write_bytes(good[:-1])
    assert "shard-000001.parquet has bytes" in problem()
    shard.write_bytes(good[:100] + bytes([good[100] ^ 1]) + good[101:])
    assert "the SHA-256" in problem()
    shard.unlink()
    assert "cannot read" in problem()
    shard.write_bytes(good)
    (out / "data" / "more.parquet").write_bytes(good)
    assert "more.parquet belongs to no shard" in problem()
    (out / "data" / "more.parquet").unlink()
    manifest.write_bytes(b"\n".join(lines.split(b"\n")[:2]) + b"\n")
    assert "is not finished, 1 of 3 shards are there" in problem()
    manifest.write_bytes(lines.replace(b'"clips": 3', b'"clips": 4', 1))
    assert "has 3 clips" in problem()
    manifest.write_bytes(b"{}\n" + lines)
    assert "line 1 is damaged" in problem()
    manifest.write_bytes(lines)
    # The advice works: without its line a shard is made again.
    shard.write_bytes(b"")
    manifest.write_bytes(b"".join(line for line in lines.splitlines(True) if b'"unit": 1' not in line))
    assert call("tokenize", folder, "--out", out, "--model", tiny, "--shard-clips", "3").returncode == 0
    assert shard.read_bytes() == good
    assert call("tokenize", "--verify", out).returncode == 0
    # Other recordings under the same names give other ids.
    for path in folder.rglob("*.wav"):
        soundfile.write(path, soundfile.read(path)[0][::-1], RATE)
    result = call("tokenize", "--verify", "1%", out)
    assert result.returncode == 1
    assert b"gives other ids now" in result.stderr


def test_ids_outside_the_vocabulary(call: Run, tmp_path: Path, tiny: Path, corpus: tuple[Path, Any]) -> None:
    folder, clips = corpus
    out = tmp_path / "out"
    assert call("tokenize", folder, "--out", out, "--model", tiny).returncode == 0
    shard = out / "data" / "shard-000000.parquet"
    table = pyarrow.parquet.read_table(shard)
    codes = table.column("codes").to_pylist()
    codes[0][3] = 60_000
    codes[1] = codes[1][:-1]
    codes[2] = codes[2][:2]
    field = table.schema.field("codes")
    pyarrow.parquet.write_table(table.set_column(1, field, pyarrow.array(codes, field.type)), shard)
    for command in (["detokenize", out, "--out", tmp_path / "wavs"], ["tokenize", "--verify", out]):
        assert call(*command).returncode == 1
    words = call("detokenize", out, "--out", tmp_path / "wavs").stderr.decode()
    names = sorted(clips)
    assert f"clip {names[0]}: id 60000 at position 3 is outside the vocabulary" in words
    assert f"clip {names[1]}: ids of shape" in words
    assert f"clip {names[2]}: 1 frames hold 0.002 s" in words
    assert len(list((tmp_path / "wavs").rglob("*.wav"))) == len(clips) - 3


def test_a_clip_cannot_be_written_elsewhere(call: Run, tmp_path: Path, tiny: Path, corpus: tuple[Path, Any]) -> None:
    (tmp_path / "m.jsonl").write_text(json.dumps({"path": "corpus/a/clip-000.wav", "id": "../../evil"}))
    for name in ("parquet", "npy"):
        assert (
            call("tokenize", tmp_path / "m.jsonl", "-o", tmp_path / name, "-m", tiny, "--format", name).returncode == 0
        )
        assert call("detokenize", tmp_path / name, "-o", tmp_path / name / "wavs").returncode == 0
        assert (tmp_path / name / "wavs" / "evil.wav").exists()


def test_what_cannot_be_done_ends_in_one_line(call: Run, tmp_path: Path, tiny: Path, corpus: tuple[Path, Any]) -> None:
    folder, _ = corpus
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.txt").write_text("\n")
    out = tmp_path / "out"
    cases = [
        (["tokenize", tmp_path / "empty", "-o", out], "no audio found in"),
        (["tokenize", tmp_path / "empty.txt", "-o", out], "the list is empty"),
        (["tokenize", tmp_path / "no", "-o", out], "does not exist"),
        (["tokenize", folder], "needs a corpus and --out DIR"),
        (["tokenize", folder, "-o", out, "--format", "pickle"], "unknown format 'pickle'"),
        (["tokenize", folder, "-o", out, "--ids", "triple"], "unknown ids 'triple'"),
        (["tokenize", folder, "-o", out, "--engine", "steam"], "unknown engine 'steam'"),
        (["tokenize", folder, "-o", folder / "a" / "clip-000.wav"], "cannot make folder"),
        (["tokenize", "--verify", out], "has no manifest.jsonl"),
        (["tokenize", "--verify", "120%", out], "at most 100%"),
        (["tokenize", "--verify", "1%"], "--verify takes one folder"),
        (["detokenize", out, "--out", tmp_path / "w"], "has no manifest.jsonl"),
    ]
    for command, words in cases:
        result = call(*command, *(["--model", tiny] if command[0] == "tokenize" else []))
        assert result.returncode == 2, command
        assert words in result.stderr.decode()
        assert result.stderr.count(b"\n") == 1
    assert not out.exists()
    assert call("tokenize", folder, "-o", out, "-m", tiny).returncode == 0
    for options, words in (
        (["--ids", "frame"], "was begun with other ids"),
        (["--format", "npy"], "was begun with another format"),
        (["--shard-clips", "5"], "was begun with another corpus"),
    ):
        result = call("tokenize", folder, "-o", out, "-m", tiny, *options)
        assert (result.returncode, words in result.stderr.decode()) == (2, True)
    (folder / "more.wav").write_bytes((folder / "a" / "clip-000.wav").read_bytes())
    assert b"a corpus that has changed" in call("tokenize", folder, "-o", out, "-m", tiny).stderr
    with locked(out):
        result = call("tokenize", folder, "-o", out, "-m", tiny)
    assert result.returncode == 2
    assert b"another q2d2 tokenize is writing to" in result.stderr


def test_a_full_disk_leaves_what_was_whole(call: Run, tmp_path: Path, tiny: Path, clip: tuple[np.ndarray, int]) -> None:
    write_clips(tmp_path / "corpus", clip[0], 5)
    soundfile.write(tmp_path / "corpus" / "b" / "long.wav", np.tile(clip[0], 4), RATE)
    command = ["tokenize", tmp_path / "corpus", "--out", tmp_path / "out", "--model", tiny, "--shard-clips", "2"]
    command += ["--format", "megatron"]
    process = subprocess.run(
        [sys.executable, "-m", "q2d2cli", *map(str, command)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
        capture_output=True,
        check=False,
    )
    assert process.returncode == 1
    assert b"cannot write" in process.stderr
    assert b"Traceback" not in process.stderr
    assert not list((tmp_path / "out").rglob("*.partial"))
    assert len(TokenFolder(tmp_path / "out").records) == 2
    assert call(*command).returncode == 0
    assert len(rows_of(tmp_path / "out")) == 6


specs = st.one_of(
    st.lists(st.sampled_from([3, 5, 7, 9, 11]), min_size=2, max_size=8)
    .filter(lambda levels: len(levels) % 2 == 0)
    .map(lambda levels: QuantizerSpec("rhombic", tuple(levels))),
    st.lists(st.integers(2, 12), min_size=1, max_size=6).map(lambda levels: QuantizerSpec("fsq", tuple(levels))),
)


@given(spec=specs, ids=st.sampled_from(["pair", "frame"]), frames=st.integers(0, 20), seed=st.integers(0, 2**32 - 1))
def test_ids_and_back(spec: QuantizerSpec, ids: str, frames: int, seed: int) -> None:
    vocabulary = Vocabulary(spec, ids)
    rng = np.random.default_rng(seed)
    indices = np.stack([rng.integers(0, size, frames) for size in spec.sizes], axis=1)
    codes = vocabulary.to_ids(indices)
    assert len(codes) == frames * vocabulary.per_frame
    assert not len(codes) or 0 <= codes.min() <= codes.max() < vocabulary.size
    np.testing.assert_array_equal(Vocabulary.read(vocabulary.describe()).to_indices(codes), indices)
    if frames:
        wrong = codes.astype(np.int64)
        wrong[seed % len(wrong)] = vocabulary.size
        with pytest.raises(ValueError, match=f"id {vocabulary.size} at position {seed % len(wrong)} is outside"):
            vocabulary.to_indices(wrong)
