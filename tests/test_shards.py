"""Training from tar shards: passes, shuffling, shares of processes, exact resume, broken members."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import CLIP, ROOT, Run

from q2d2cli.errors import Q2D2Error, UsageError
from q2d2cli.training.config import DataConfig
from q2d2cli.training.data import open_corpus
from q2d2cli.training.shards import ShardCorpus

RATE = 24_000
CROP = 2400
FILES = 12
STEP = 1e-6


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def ramp(number: int, samples: int = 3 * CROP + 500) -> bytes:
    """A file in which every sample says where it is from: ten times the file's number in percent, and rising."""
    audio = np.float32(0.05 * (number + 1)) + np.float32(STEP) * np.arange(samples, dtype=np.float32)
    buffer = io.BytesIO()
    soundfile.write(buffer, audio, RATE, format="WAV", subtype="FLOAT")
    return buffer.getvalue()


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Four shards of three files, each long enough for three crops, and a text beside each."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for shard in range(4):
        numbers = range(3 * shard, 3 * shard + 3)
        write_tar(
            folder / f"s-{shard:02}.tar",
            {f"{n}.wav": ramp(n) for n in numbers} | {f"{n}.txt": b"words" for n in numbers},
        )
    return folder


def draw(corpus: ShardCorpus, count: int) -> torch.Tensor:
    return corpus.read(np.zeros(count), CROP)


def numbers(crops: torch.Tensor) -> list[int]:
    """The file that each crop is from."""
    return [int(value * 20 + 1e-3) - 1 for value in crops[:, 0].tolist()]


def corpus(folder: Path, **settings: int) -> ShardCorpus:
    return ShardCorpus([str(folder / "s-{00..03}.tar")], RATE, **{"buffer": 8, **settings})


def test_a_pass_has_every_file_once_in_another_order(shards: Path) -> None:
    stream = corpus(shards)
    first, second = draw(stream, 3 * FILES), draw(stream, 3 * FILES)
    for crops in (first, second):
        assert sorted(numbers(crops)) == sorted(3 * list(range(FILES)))
        # Each crop is one stretch of its file, and those of a file lie side by side.
        torch.testing.assert_close(
            crops[:, 1:] - crops[:, :-1], torch.full((3 * FILES, CROP - 1), STEP), atol=5e-8, rtol=0
        )
        assert len({round(value, 6) for value in crops[:, 0].tolist()}) == 3 * FILES
    assert numbers(first) != numbers(second)
    assert numbers(first) != sorted(numbers(first))
    assert stream.position == (1, 3 * FILES)
    assert not stream.broken
    assert torch.equal(draw(corpus(shards), 3 * FILES), first)
    assert not torch.equal(draw(corpus(shards, seed=1), 3 * FILES), first)


@pytest.mark.parametrize("before", [0, 5, 36, 50])
def test_a_stream_goes_on_where_it_stood(shards: Path, before: int) -> None:
    whole = draw(corpus(shards), before + 20)
    stopped = corpus(shards)
    if before:
        draw(stopped, before)
    again = corpus(shards)
    again.position = stopped.position
    assert torch.equal(draw(again, 20), whole[before:])


def test_processes_share_the_shards(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shares = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        shares.append(numbers(draw(corpus(shards, processes=2), 3 * FILES // 2)))
    assert sorted(shares[0] + shares[1]) == sorted(3 * list(range(FILES)))
    assert not set(shares[0]) & set(shares[1])
    with pytest.raises(UsageError, match="4 shards for 5 processes"):
        corpus(shards, processes=5)


def test_broken_members_and_shards_are_named_and_passed_over(shards: Path) -> None:
    good = ramp(0)
    cut = bytearray(good)
    cut[-4 * CROP :] = np.full(CROP, np.nan, "<f4").tobytes()
    write_tar(
        shards / "s-00.tar", {"junk.wav": b"RIFF", "fine.wav": good, "empty.wav": ramp(1, 0), "nan.wav": bytes(cut)}
    )
    whole = (shards / "s-01.tar").read_bytes()
    (shards / "s-01.tar").write_bytes(whole[: len(whole) // 2])
    (shards / "s-02.tar").write_bytes(b"this is no tar file" * 100)
    stream = corpus(shards)
    seen = numbers(draw(stream, 100))
    assert {0, 3, 9, 10, 11} <= set(seen) <= {0, 3, 4, 9, 10, 11}
    named = {Path(name).name for name in stream.broken}
    assert named == {"s-00.tar:junk.wav", "s-00.tar:empty.wav", "s-00.tar:nan.wav", "s-01.tar", "s-02.tar"}
    assert len(stream.broken) == len(named), "each is named once"


def test_shards_without_audio_end_the_run(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"a.txt": b"words", "b.wav": b"RIFF"})
    with pytest.raises(Q2D2Error, match="no audio could be read"):
        draw(ShardCorpus([str(tmp_path / "a.tar")], RATE), 1)


def test_short_files_and_other_rates_become_crops(tmp_path: Path) -> None:
    audio, rate = soundfile.read(CLIP, dtype="float32")
    members = {}
    for name, samples, at, container in (("a.wav", audio[:800], 8000, "WAV"), ("b.flac", audio, rate, "FLAC")):
        buffer = io.BytesIO()
        soundfile.write(buffer, samples, at, format=container)
        members[name] = buffer.getvalue()
    write_tar(tmp_path / "a.tar", members)
    config = DataConfig(train=str(tmp_path), valid=tmp_path, silence=0, level_std=0, level_mean=-30, shuffle_buffer=4)
    stream = open_corpus(config, RATE, "cpu")
    crops = stream.crops(40, RATE // 2, config, np.random.default_rng(0))
    assert crops.shape == (40, RATE // 2)
    assert stream.summary == "1 shards of audio"
    # 800 samples at 8 kHz are 0.1 s, then zeros.
    short = crops[(crops[:, 2500:] == 0).all(1)]
    assert 1 <= len(short) < 10
    assert (short[:, :2300].abs().amax(1) > 0).all()


@pytest.mark.parametrize(
    ("train", "words"),
    [
        ("nowhere-{0..2}.tar", "nowhere-0.tar does not exist"),
        (["s-00.tar", "clips"], "clips is not a tar shard"),
        ("shards-{0..2.tar", "cannot understand shards"),
    ],
)
def test_wrong_shards_are_named(run: Run, config: Path, tmp_path: Path, train: object, words: str) -> None:
    result = run("train", "-c", config, "-o", tmp_path / "run", "--set", f"data.train={json.dumps(train)}")
    assert result.returncode == 2, result.stderr.decode()
    assert words in result.stderr.decode()
    assert "Traceback" not in result.stderr.decode()


def test_shards_are_not_balanced(run: Run, config: Path, tmp_path: Path) -> None:
    settings = ("--set", "data.train=s-00.tar", "--set", "data.balance=0.5")
    result = run("train", "-c", config, "-o", tmp_path / "run", *settings)
    assert result.returncode == 2
    assert "data.balance needs folders of files, and tar shards have none: set it to 0" in result.stderr.decode()
    assert "Traceback" not in result.stderr.decode()


@pytest.mark.slow
def test_two_processes_train_from_shards_and_go_on_exactly(config: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tars"
    folder.mkdir()
    audio, rate = soundfile.read(CLIP, dtype="int16")
    for shard in range(2):
        members = {"broken.wav": b"RIFF"} if shard else {}
        for part in range(3):
            buffer = io.BytesIO()
            soundfile.write(buffer, audio[part * rate : (part + 2 + shard) * rate], rate, format="FLAC")
            members[f"{shard}{part}.flac"] = buffer.getvalue()
        write_tar(folder / f"t{shard}.tar", members)
    settings = [f"data.train={folder}", "data.shuffle_buffer=10", "steps=30", "save_every=10", "validate_every=100"]

    def train(out: Path, *more: str) -> str:
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "q2d2cli", "train"]
        changes = [word for setting in settings for word in ("--set", setting)]
        result = subprocess.run(
            [sys.executable, *launch, "-c", config, "-o", out, "--device", "cpu", *changes, *more],
            capture_output=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            timeout=300,
            check=False,
        )
        assert result.returncode == 0, result.stderr.decode()
        return result.stderr.decode()

    def losses(out: Path) -> list[tuple[int, float]]:
        lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        return [(line["step"], line["mel"]) for line in lines if "mel" in line]

    said = train(tmp_path / "whole")
    assert "t1.tar:broken.wav" in " ".join(said.split()).replace(" ", "")
    assert "2 shards" in said
    assert [step for step, _ in losses(tmp_path / "whole")] == [10, 20, 30]

    # From the state before the last: the same steps again, to the same losses.
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    (tmp_path / "again" / "state-20.pt").replace(tmp_path / "again" / "state.pt")
    train(tmp_path / "again", "--resume")
    assert losses(tmp_path / "again")[-1] == losses(tmp_path / "whole")[-1]
    assert len(losses(tmp_path / "again")) == 4
