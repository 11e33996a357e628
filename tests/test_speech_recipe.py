"""The recipe of the speech models in examples/speech: the corpus that its scripts lay out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import ROOT

SCRIPTS = ROOT / "examples" / "speech"
sys.path.insert(0, str(SCRIPTS))

import curve  # noqa: E402 - scripts beside the recipe, no package
import prepare  # noqa: E402
import synthesize  # noqa: E402

VOICES = ("kncrfuq", "kaeehsg", "kajhqhb", "kajuznj", "kakzycc", "kampsrn", "kanptqd", "kauuxdd", "kawtvtt", "kazzyrf")


EXPECTED = ["valid", "test", "train", "train", "train", "train", "train", "valid", "train", "train"]


def voices_of(split: str, count: int) -> list[str]:
    """Names of voices that go there."""
    return [name for name in (f"voice-{i}" for i in range(1000)) if prepare.voice_split(name) == split][:count]


def generate(folder: Path, voices: list[str], clip: tuple[np.ndarray, int]) -> None:
    """A folder as synthesize.py leaves it."""
    with (folder / "meta-0.jsonl").open("a", encoding="utf-8") as meta:
        for voice in voices:
            (folder / voice).mkdir()
            for number in range(2):
                name = f"{voice}/{number:02d}.opus"
                soundfile.write(folder / name, clip[0][:24_000], 24_000, format="OGG", subtype="OPUS")
                meta.write(json.dumps({"file": name, "text": f"“{voice}” says {number}", "seconds": 1.0}) + "\n")


def test_a_fixed_tenth_of_the_voices_goes_to_each_of_valid_and_test() -> None:
    names = [f"{a}{b}{c}" for a in "klmnp" for b in "aeiou" for c in range(40)]
    splits = [prepare.voice_split(name) for name in names]
    assert 0.07 < splits.count("test") / len(names) < 0.13
    assert 0.07 < splits.count("valid") / len(names) < 0.13
    # Where a voice is must never change: models are tested on voices that they have not heard.
    assert [prepare.voice_split(name) for name in VOICES] == EXPECTED


def test_generated_speech_is_laid_out_by_voice_and_stays_where_it_is(
    tmp_path: Path, clip: tuple[np.ndarray, int]
) -> None:
    packages, generated, out = (tmp_path / name for name in ("packages", "generated", "out"))
    for package in prepare.PACKAGES:
        (packages / package).mkdir(parents=True)
    generated.mkdir()
    command = [sys.executable, SCRIPTS / "prepare.py", out, "--packages", packages, "--generated", generated]
    nothing = subprocess.run(command, capture_output=True, check=False, text=True)
    assert nothing.returncode == 2
    assert "no clips" in nothing.stderr

    generate(generated, [voices_of(split, 1)[0] for split in ("train", "valid", "test")], clip)
    subprocess.run(command, check=True, capture_output=True)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.flac")}
    assert {path.parts[-3] for path in before} == {"train", "valid", "test"}
    for path in before:
        assert path.parent.name.removeprefix("generated-") in voices_of(path.parts[-3], 1)
        assert soundfile.info(path).samplerate == prepare.SAMPLE_RATE
    texts = [json.loads(line) for line in (out / "texts.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {out / entry["file"] for entry in texts} == set(before)
    assert all(Path(entry["file"]).parts[1].removeprefix("generated-") in entry["text"] for entry in texts)

    generate(generated, voices_of("train", 3)[1:] + voices_of("test", 2)[1:], clip)
    subprocess.run(command, check=True, capture_output=True)
    after = {path: path.stat().st_mtime_ns for path in out.rglob("*.flac")}
    assert len(after) == len(before) + 6
    assert {path: after[path] for path in before} == before
    summary = json.loads((out / "corpus.json").read_text())
    assert sorted(len(summary[split]) for split in ("train", "valid", "test")) == [1, 2, 3]


def test_the_same_voice_twice_is_refused(tmp_path: Path, clip: tuple[np.ndarray, int]) -> None:
    packages = tmp_path / "packages"
    for package in prepare.PACKAGES:
        (packages / package).mkdir(parents=True)
    command = [sys.executable, SCRIPTS / "prepare.py", tmp_path / "out", "--packages", packages]
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        generate(tmp_path / name, ["same"], clip)
        command += ["--generated", tmp_path / name]
    result = subprocess.run(command, capture_output=True, check=False, text=True)
    assert result.returncode == 2
    assert "the same voice" in result.stderr
    assert not (tmp_path / "out").exists()


def test_sentences_can_be_read_aloud() -> None:
    text = """It was a dark and stormy night, and “nobody” was\n  about. See http://example.org/~a for more. NATO
    knew of it before anybody else did, they say. Too short. The rain didn't stop before the morning came!
    Call 555 for more than a hundred good reasons to stay. It is an opportunity -- S. Paige, so they say."""
    assert list(synthesize.sentences(text)) == [
        'It was a dark and stormy night, and "nobody" was about.',
        "The rain didn't stop before the morning came!",
    ]


def test_voices_of_each_part_are_mixed_of_its_own(tmp_path: Path) -> None:
    bases = [f"{accent}{sex}_{name}" for accent in "ab" for sex in "fm" for name in ("one", "two", "three")]
    bases += [name for names in synthesize.BASES.values() for name in names]
    made = [voice for voice, _ in zip(synthesize.voices(3, bases), range(300), strict=False)]
    assert made[:50] == [voice for voice, _ in zip(synthesize.voices(3, bases), range(50), strict=False)]
    used: dict[str, set[str]] = {"train": set(), "valid": set(), "test": set()}
    for voice in made:
        assert 1 <= len(voice.weights) <= 3
        assert abs(sum(voice.weights.values()) - 1) < 0.01
        used[prepare.voice_split(voice.name)] |= set(voice.weights)
    assert used["test"] == set(synthesize.BASES["test"])
    assert used["valid"] == set(synthesize.BASES["valid"])
    assert used["train"] == set(bases) - used["test"] - used["valid"]
    assert {voice.language for voice in made} == {"en-us", "en-gb"}


class Hum:
    """In place of Kokoro, which tests cannot fetch: three seconds that hang on text, voice and speed alone."""

    styles = dict.fromkeys(["af_one", "am_two", *synthesize.BASES["test"], *synthesize.BASES["valid"]])
    left = 10**9
    """Clips until it is stopped."""

    def __init__(self, folder: Path) -> None:
        assert folder.is_dir()

    def say(self, text: str, voice: synthesize.Voice, speed: float) -> np.ndarray:
        if not Hum.left:
            raise KeyboardInterrupt
        Hum.left -= 1
        pitch = 100 + len(text) + 50 * speed + len(voice.weights)
        return np.sin(2 * np.pi * pitch * np.arange(3 * 24_000) / 24_000).astype(np.float32)


def test_generated_speech_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packages = tmp_path / "packages"
    (packages / "fortunes").mkdir(parents=True)
    sayings = [f"The {word} never came back to the harbour in that year." for word in "abcdefghijklmnopqrstuvwxyz"]
    (packages / "fortunes/all.u8").write_text("\n%\n".join(sayings))
    monkeypatch.setattr(synthesize, "fetch", lambda folder: None)
    monkeypatch.setattr(synthesize, "Speaker", Hum)

    def make(out: Path) -> dict[str, bytes]:
        command = ["synthesize.py", out, "--packages", packages, "--hours", "0.01"]
        monkeypatch.setattr(sys, "argv", [str(word) for word in command])
        assert synthesize.main() == 0
        return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}

    whole = make(tmp_path / "whole")
    assert sum(name.endswith(".opus") for name in whole) == 12
    stopped = tmp_path / "stopped"
    monkeypatch.setattr(Hum, "left", 5)
    with pytest.raises(KeyboardInterrupt):
        make(stopped)
    meta = stopped / "meta-0.jsonl"
    meta.write_text(meta.read_text()[:-20])  # as a stop in the middle of a line leaves it
    monkeypatch.setattr(Hum, "left", 8)  # those of the five stay but the one whose line is cut
    again = make(stopped)
    assert again.keys() == whole.keys()
    assert again["meta-0.jsonl"] == whole["meta-0.jsonl"]
    for name in whole.keys() - {"meta-0.jsonl"}:
        assert np.array_equal(*(soundfile.read(folder / name)[0] for folder in (stopped, tmp_path / "whole")))


def test_a_model_joins_the_curve_with_what_its_runs_heard(
    tmp_path: Path, config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, steps in (("one", 300), ("two", 900)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_bytes(config.read_bytes())  # batches of 2 crops of 0.2 s
        (tmp_path / name / "log.jsonl").write_text(json.dumps({"step": steps, "minutes": 1}) + "\n")
    record, picture, results = (tmp_path / name for name in ("curve.json", "curve.svg", "results.json"))
    first = {"name": "tiny", "round": 1, "steps": 3600, "batch": 10, "crop_seconds": 0.5, "stoi": 0.9, "wer_heard": 9}
    record.write_text(json.dumps({"tiny": [first]}))
    scores = {"stoi": {"mean": 0.9123}, "wer": {"mean": 3.21}, "pesq": {"mean": None}}
    found = {"codecs": [{"name": "tiny-v2", "datasets": {"all": scores}}], "texts": 3}
    results.write_text(json.dumps(found))

    def call(*more: str | Path) -> str:
        command = ["curve.py", "--record", record, "--out", picture, *more]
        monkeypatch.setattr(sys, "argv", [str(word) for word in command])
        assert curve.main() == 0
        return capsys.readouterr().out

    added = ("--add", "tiny-v2", "--round", "2", "--results", results)
    lines = call(*added, "--run", tmp_path / "one", "--run", tmp_path / "two").splitlines()
    # 1200 steps of 2 crops of 0.2 s after five hours; scores against texts are apart from those without.
    assert "| tiny-v2 | 2 | 5.1 | – | 3.2 | 0.912 | – | – |" in lines
    assert lines[-1] == "| the last run, per 10 hours | | | – | – | +0.900 | – | – |"
    assert picture.read_text().count(">tiny<") == 1
    # Again takes its place; without texts it is the other kind.
    results.write_text(json.dumps({**found, "texts": 0}))
    assert "| tiny-v2 | 2 | 5.0 | – | – | 0.912 | – | 3.2 |" in call(*added, "--run", tmp_path / "one").splitlines()
    assert len(json.loads(record.read_text())["tiny"]) == 2
    # A cool-down of the same run, later: what the one before has in the record is not heard twice.
    found["codecs"].append({"name": "tiny-v3", "datasets": {"all": scores}})
    results.write_text(json.dumps(found))
    later = ("--add", "tiny-v3", "--round", "3", "--results", results, "--run", tmp_path / "two")
    lines = call(*later, "--counted", "300").splitlines()
    assert json.loads(record.read_text())["tiny"][2]["steps"] == 600
    assert "| tiny-v3 | 3 | 5.1 | – | 3.2 | 0.912 | – | – |" in lines

    (tmp_path / "two/config.yaml").write_text(config.read_text().replace("batch_size: 2", "batch_size: 3"))
    for wrong, words in (
        ((*added, "--run", tmp_path / "one", "--run", tmp_path / "two"), "different batches"),
        (
            ("--add", "other", "--round", "2", "--results", results, "--run", tmp_path / "one"),
            "does not have scores of other",
        ),
        ((*later, "--counted", "900"), "nothing is left"),
        (added, "needs --round, --run"),
    ):
        before = record.read_bytes()
        with pytest.raises(SystemExit, match="2"):
            call(*wrong)
        assert words in capsys.readouterr().err
        assert record.read_bytes() == before


def test_the_record_is_what_the_curve_shows() -> None:
    record = json.loads(curve.RECORD.read_text())
    assert curve.to_json(record) == curve.RECORD.read_text()
    notes = (ROOT / "docs/training-notes.md").read_text()
    assert curve.table(record) in notes
