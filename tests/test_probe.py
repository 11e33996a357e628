"""Semantic probe: classes that differ are told apart, labels without meaning are not; data sets as they come."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import CLIP, ROOT, Run

from q2d2cli import Codec
from q2d2cli.errors import Q2D2Error, UsageError
from q2d2cli.evaluation import manifests
from q2d2cli.evaluation.manifests import Item
from q2d2cli.evaluation.probe import check, classify, embed, probe_codes, split
from q2d2cli.evaluation.statistics import half_width

SCRIPTS = ROOT / "examples" / "probe"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
sys.path.insert(0, str(SCRIPTS))

import label  # noqa: E402 - a script, no package

SECONDS = 0.5


def crops(count: int) -> tuple[list[np.ndarray], int]:
    """Consecutive crops of the clip, and their rate."""
    audio, rate = soundfile.read(CLIP, dtype="float32")
    length = int(SECONDS * rate)
    assert count * length <= len(audio)
    return [audio[i * length : (i + 1) * length] for i in range(count)], rate


def write(path: Path, audio: np.ndarray, rate: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, audio, rate)
    return path


@pytest.fixture(scope="module")
def voices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `plain` and `high` of 10 crops each: a voice, and other words of it raised by a fifth."""
    root = tmp_path_factory.mktemp("voices")
    pieces, rate = crops(20)
    for number, piece in enumerate(pieces):
        # Another rate in the header plays it faster and higher.
        name, factor = ("plain", 1.0) if number % 2 else ("high", 1.5)
        write(root / name / f"{number:02}.wav", piece, int(rate * factor))
    return root


def test_other_voices_are_told_apart_and_shuffled_labels_are_not(speech: Codec, voices: Path) -> None:
    items = manifests.class_folders(voices)
    done: list[int] = []
    result = probe_codes(speech, items, folds=5, seed=0, progress=done.append)
    assert done == list(range(1, 21))
    assert result["files"] == 20
    assert result["chance"] == 0.5
    assert result["groups"] is None
    assert result["accuracy"]["mean"] >= 0.8
    assert {label: entry["files"] for label, entry in result["classes"].items()} == {"high": 10, "plain": 10}
    recognized = np.mean([entry["recognized"] for entry in result["classes"].values()])
    assert recognized == pytest.approx(result["accuracy"]["mean"])
    assert probe_codes(speech, items, folds=5, seed=0) == result

    means = []
    for seed in range(8):
        labels = np.random.default_rng(seed).permutation([item.label for item in items])
        mixed = [replace(item, label=str(label)) for item, label in zip(items, labels, strict=True)]
        means.append(probe_codes(speech, mixed, folds=5, seed=seed)["accuracy"]["mean"])
    assert 0.3 < np.mean(means) < 0.7


def test_embedding_is_the_time_average_of_what_the_decoder_gets(tiny_codec: Codec, tmp_path: Path) -> None:
    # Long enough for several passes of the network.
    audio, rate = soundfile.read(CLIP, dtype="float32")
    path = write(tmp_path / "long.wav", np.concatenate([audio] * 3), rate)
    written, _ = soundfile.read(path, dtype="float32")
    tokens = tiny_codec.encode(written, rate, chunk_seconds=None)
    features = tiny_codec.model.quantizer.decode(tokens.indices)[0].detach().numpy()
    embedding = embed(tiny_codec, Item(path, "x"))
    assert embedding.shape == (16,)
    np.testing.assert_allclose(embedding, features.mean(axis=0), atol=1e-4)
    # Channels are averaged.
    stereo = write(tmp_path / "stereo.wav", np.stack([audio, audio], axis=1), rate)
    mono = write(tmp_path / "mono.wav", audio, rate)
    np.testing.assert_allclose(
        embed(tiny_codec, Item(stereo, "x")), embed(tiny_codec, Item(mono, "x")), rtol=0, atol=1e-4
    )


def test_groups_are_kept_apart() -> None:
    # The embedding names the group, and the group alone decides the class: known groups would be all right, left
    # out ones cannot be.
    random = np.random.default_rng(0)
    groups = np.repeat([f"g{i}" for i in range(10)], 6)
    centres = random.standard_normal((10, 10)) * 5
    embeddings = np.repeat(centres, 6, axis=0) + random.standard_normal((60, 10)) * 0.01
    labels = np.repeat(random.permutation(["a", "b"] * 5), 6)
    _, mixed = classify(embeddings, labels, split(labels, None, folds=5, seed=0))
    _, apart = classify(embeddings, labels, split(labels, groups, folds=5, seed=0))
    assert np.mean(mixed) == 1
    assert np.mean(apart) < 0.9
    # Where a group is all of a class, no fold can leave two classes to learn from.
    with pytest.raises(UsageError, match="groups cannot be spread over 2 folds"):
        split(np.repeat(["a", "b"], 6), groups[:12], folds=2, seed=0)


def test_interval_by_hand() -> None:
    # Standard error 0.1 / sqrt(4); the 97.5% point of Student's t with 3 degrees of freedom is 3.182.
    scores = [0.5, 0.7, 0.5, 0.7]
    assert half_width(scores) == pytest.approx(3.182 * np.sqrt(0.04 / 3) / 2, rel=1e-3)
    assert half_width([0.9, 0.9]) == 0


def test_checks() -> None:
    def items(*labels: str, groups: list[str] | None = None) -> list[Item]:
        return [Item(Path(str(i)), label, groups[i] if groups else None) for i, label in enumerate(labels)]

    check(items("a", "a", "b", "b"), 2)
    check(items("a", "a", "b", "b", groups=["1", "2", "1", "2"]), 2)
    with pytest.raises(UsageError, match="all files are of class 'a'"):
        check(items("a", "a"), 2)
    with pytest.raises(UsageError, match=r"class 'b' has fewer files \(2\) than there are folds \(5\): use --folds 2"):
        check(items(*"aaaaabb"), 5)
    with pytest.raises(UsageError, match=r"class 'b' has fewer files \(1\) than there are folds \(5\): add files"):
        check(items(*"aaaaab"), 5)
    with pytest.raises(UsageError, match=r"fewer groups \(2\) than folds \(3\): use --folds 2"):
        check(items("a", "a", "b", "b", groups=["1", "2", "1", "2"]), 3)


def test_files_that_cannot_be_read(tiny_codec: Codec, voices: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.wav"
    bad.write_bytes(b"RIFF....")
    items = manifests.class_folders(voices)
    result = probe_codes(tiny_codec, [Item(bad, "high"), *items, Item(tmp_path / "none.wav", "plain")], folds=2)
    assert result["files"] == 20
    assert ["bad.wav" in result["skipped"][0], "none.wav" in result["skipped"][1]] == [True, True]
    with pytest.raises(Q2D2Error, match=r"none of the 4 files could be read: .*bad\.wav"):
        probe_codes(tiny_codec, [Item(bad, label) for label in "aabb"], folds=2)
    with pytest.raises(Q2D2Error, match=r"class 'high' has fewer files \(1\).*bad\.wav"):
        probe_codes(tiny_codec, [Item(bad, "high"), *items[9:]], folds=2)


# Data sets, with the names their files have.


def test_ravdess(tmp_path: Path) -> None:
    (piece,), rate = crops(1)
    for copy in ("", "copy/"):
        for actor in (1, 2):
            for emotion in (1, 6, 8):
                name = f"{copy}Actor_{actor:02}/03-01-{emotion:02}-01-02-01-{actor:02}.wav"
                write(tmp_path / name, piece, rate)
    write(tmp_path / "readme.wav", piece, rate)
    items = label.ravdess(tmp_path)
    # Each once, though there are two copies.
    assert len(items) == 6
    assert Counter(item.label for item in items) == {"neutral": 2, "fearful": 2, "surprised": 2}
    assert {item.group for item in items} == {"actor 01", "actor 02"}
    fearful = next(item for item in items if item.path.name == "03-01-06-01-02-01-02.wav")
    assert (fearful.label, fearful.group) == ("fearful", "actor 02")


def test_emovo(tmp_path: Path) -> None:
    (piece,), rate = crops(1)
    for name in ("f1/dis-f1-b1", "f1/gio-f1-d2", "m3/neu-m3-l4", "m3/tri-m3-n5"):
        write(tmp_path / "EMOVO" / f"{name}.wav", piece, rate)
    found = {item.path.stem: (item.label, item.group) for item in label.emovo(tmp_path)}
    assert found == {
        "dis-f1-b1": ("disgust", "f1"),
        "gio-f1-d2": ("joy", "f1"),
        "neu-m3-l4": ("neutral", "m3"),
        "tri-m3-n5": ("sadness", "m3"),
    }


def test_audiomnist(tmp_path: Path) -> None:
    (piece,), rate = crops(1)
    for name in ("01/0_01_0", "01/9_01_49", "60/3_60_7"):
        write(tmp_path / "data" / f"{name}.wav", piece, rate)
    found = {item.path.stem: (item.label, item.group) for item in label.audiomnist(tmp_path)}
    assert found == {
        "0_01_0": ("0", "speaker 01"),
        "9_01_49": ("9", "speaker 01"),
        "3_60_7": ("3", "speaker 60"),
    }


def test_slurp(tmp_path: Path) -> None:
    (piece,), rate = crops(1)

    def entry(number: int, intent: str, *files: str) -> str:
        recordings = [{"file": file, "wer": 0.0, "status": "correct"} for file in files]
        return json.dumps({"slurp_id": number, "intent": intent, "scenario": "x", "recordings": recordings})

    lists = tmp_path / "dataset" / "slurp"
    lists.mkdir(parents=True)
    train = [entry(1, "alarm_set", "audio-1.flac", "audio-1-headset.flac"), entry(2, "play_music", "audio-2.flac")]
    (lists / "train.jsonl").write_text("\n".join(train) + "\n")
    (lists / "test.jsonl").write_text(entry(3, "alarm_set", "audio-3.flac", "audio-not-here.flac"))
    with pytest.raises(UsageError, match="no audio found"):
        label.slurp(tmp_path)
    for name in ("audio-1", "audio-1-headset", "audio-2", "audio-3", "audio-of-no-list"):
        write(tmp_path / "audio" / "slurp_real" / f"{name}.flac", piece, rate)
    found = {item.path.stem: (item.label, item.group) for item in label.slurp(tmp_path)}
    assert found == {
        "audio-1": ("alarm_set", "1"),
        "audio-1-headset": ("alarm_set", "1"),
        "audio-2": ("play_music", "2"),
        "audio-3": ("alarm_set", "3"),
    }
    for damage in ('{"slurp_id": 4', "[]", '{"slurp_id": 1, "intent": "a", "recordings": [{}]}', "7"):
        (lists / "devel.jsonl").write_text(train[0] + "\n" + damage)
        with pytest.raises(UsageError, match=r"devel\.jsonl, line 2"):
            label.slurp(tmp_path)


def test_folder_of_another_data_set(voices: Path) -> None:
    for name in ("ravdess", "emovo", "audiomnist", "slurp"):
        with pytest.raises(UsageError, match="is it another data set"):
            label.DATASETS[name](voices)


def test_manifest(tmp_path: Path) -> None:
    manifest = tmp_path / "labels.csv"
    manifest.write_text("label,path,note\na,x/1.wav,\nb,/abs/2.wav,hm\n")
    assert manifests.read_manifest(manifest) == [
        Item(tmp_path / "x/1.wav", "a"),
        Item(Path("/abs/2.wav"), "b"),
    ]
    assert manifests.read_manifest(manifest, Path("/data"))[0].path == Path("/data/x/1.wav")
    # With a byte order mark, as spreadsheets write it.
    manifest.write_bytes("\ufeffpath,label,group\n1.wav,a,eva\n2.wav,b,ana\n".encode())
    assert [item.group for item in manifests.read_manifest(manifest)] == ["eva", "ana"]
    for text, words in (
        ("path,class\n1.wav,a\n", "no column 'label'"),
        ("", "no column 'path'"),
        ("path,label\n", "names no files"),
        ("path,label\n1.wav,a\n2.wav\n", "line 3 has no label"),
        ("path,label,group\n1.wav,a,eva\n2.wav,b,\n", "line 3 has no group"),
    ):
        manifest.write_text(text)
        with pytest.raises(UsageError, match=words):
            manifests.read_manifest(manifest)
    manifest.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="no CSV file"):
        manifests.read_manifest(manifest)
    with pytest.raises(UsageError, match="cannot read"):
        manifests.read_manifest(tmp_path / "none.csv")


def test_command(run: Run, tiny: Path, voices: Path, tmp_path: Path) -> None:
    result = run("probe", voices, "-m", tiny, "--json", "--seed", 1)
    assert (result.returncode, result.stderr) == (0, b"")
    facts = json.loads(result.stdout)
    assert (facts["files"], facts["folds"], facts["seed"]) == (20, 5, 1)
    assert len(facts["accuracy"]["folds"]) == 5
    assert 0 <= facts["accuracy"]["mean"] <= 1

    # A manifest with groups, one file of which is not there.
    rows = [
        f"{path.relative_to(voices)},{path.parent.name},{number % 4}"
        for number, path in enumerate(sorted(voices.rglob("*.wav")))
    ]
    manifest = tmp_path / "labels.csv"
    manifest.write_text("\n".join(["path,label,group", *rows, "gone.wav,high,1"]))
    result = run("probe", voices, "--manifest", manifest, "-m", tiny, "--folds", 3)
    assert result.returncode == 1
    assert "gone.wav does not exist" in result.stderr.decode()
    text = result.stdout.decode()
    for words in ("4 groups kept apart", "recognized", "plain", "chance 50.0%", "20 files, 1 skipped"):
        assert words in text


def test_command_with_a_data_set(run: Run, tiny: Path, tmp_path: Path) -> None:
    pieces, rate = crops(12)
    for number, piece in enumerate(pieces):
        speaker = number % 3 + 1
        write(tmp_path / "data" / f"{speaker:02}" / f"{number // 6}_{speaker:02}_{number}.wav", piece, rate)
    labels = tmp_path / "labels.csv"
    script = [sys.executable, SCRIPTS / "label.py"]
    with labels.open("w") as file:
        subprocess.run([*script, "audiomnist", tmp_path], stdout=file, check=True, env=ENVIRONMENT)
    refused = subprocess.run([*script, "emovo", tmp_path], capture_output=True, check=False, env=ENVIRONMENT)
    assert refused.returncode == 1
    assert refused.stderr.count(b"\n") == 1
    assert b"named like dis-f1-b1.wav" in refused.stderr
    result = run("probe", tmp_path, "--manifest", labels, "-m", tiny, "--folds", 3, "--json")
    assert result.returncode == 0, result.stderr.decode()
    facts = json.loads(result.stdout)
    assert facts["groups"] == 3
    assert {label: entry["files"] for label, entry in facts["classes"].items()} == {"0": 6, "1": 6}


def test_command_refuses(run: Run, tiny: Path, voices: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "labels.csv"
    manifest.write_text("path,label\n1.wav,a\n")
    (tmp_path / "empty").mkdir()
    for arguments, words in (
        (["--folds", "3"], "name a folder of class folders"),
        ([tmp_path / "none"], "is not a folder"),
        ([tmp_path / "empty"], "no audio found"),
        ([voices / "plain"], "lies in no class folder"),
        ([voices, "--folds", "11"], "class 'high' has fewer files (10) than there are folds (11): use --folds 10"),
        ([voices, "--folds", "1"], "--folds"),
        (["--manifest", manifest], "all files are of class 'a'"),
        ([voices, "-m", "speech-9k"], "speech-9k"),
    ):
        model = [] if "-m" in arguments else ["-m", tiny]
        result = run("probe", *arguments, *model)
        text = result.stderr.decode()
        assert (result.returncode, result.stdout, text.count("\n")) == (2, b"", 1), text
        assert words in text
