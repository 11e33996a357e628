"""The example language-model, tiny: tokenize with texts, train, sample, decode; alone and with texts to say."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import ROOT, Run
from corpus_parts import write_clips

EXAMPLE = ROOT / "examples" / "language-model"


def script(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, EXAMPLE / name, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("text", ["none", "letters"])
def test_a_tiny_model_learns_and_speaks(
    call: Run,
    tmp_path: Path,
    tiny: Path,
    clip: tuple[np.ndarray, int],
    text: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clips = write_clips(tmp_path / "voices", clip[0], 40)
    lines = [json.dumps({"file": f"{name}.wav", "text": f"voice {name[0]}"}) for name in clips]
    (tmp_path / "voices" / "meta-0.jsonl").write_text("\n".join(lines))
    tokens, trained, wav = tmp_path / "tokens", tmp_path / "run", tmp_path / "out.wav"
    assert call("tokenize", tmp_path / "voices" / "meta-0.jsonl", "--out", tokens, "--model", tiny).returncode == 0
    option = ["--text", text] if text != "none" else []
    sizes = ["--dim", "32", "--layers", "2", "--steps", "60", "--rate", "1e-2"]
    sizes += ["--held-out", "b/"]
    result = script("train.py", tokens, "--out", trained, *option, *sizes)
    assert result.returncode == 0, result.stderr
    scores = json.loads(result.stdout.splitlines()[-1])
    assert scores["bits_per_second"] < scores["bits_per_second_if_all_were_as_likely"]
    table = script("compare.py", trained, "--codec", tiny)
    assert table.returncode == 0, table.stderr
    spelled, _, even, alone, context, own = table.stdout.splitlines()[-1].split(" | ")[1:7]
    assert spelled == text
    assert float(own) < float(even)
    assert float(alone) < float(even)
    assert context == "–"
    say = ["--say", "A clip!"] if option else []
    assert script("speak.py", trained, wav, "--codec", tiny, "--seconds", "0.05", *say).returncode == 0
    audio, rate = soundfile.read(wav)
    assert rate == 24_000
    assert 0 < len(audio) <= 0.05 * rate
    assert np.isfinite(audio).all()
    if text == "none":
        assert script("speak.py", trained, wav, "--say", "no").returncode == 2
        return
    monkeypatch.setenv("Q2D2_RECOGNIZER", "tiny.en")
    checked = script("speak.py", trained, "--codec", tiny, "--check", "1")
    assert checked.returncode == 0, checked.stderr
    said, copied = checked.stdout.splitlines()[-2:]
    assert re.match(r"said: \d+ of 2 words heard right, word error rate ", said)
    assert re.match(r"decoded from the recordings' tokens: \d+ of 2 words heard right, ", copied)


def test_clips_without_texts(call: Run, tmp_path: Path, tiny: Path, clip: tuple[np.ndarray, int]) -> None:
    write_clips(tmp_path / "voices", clip[0], 2)
    assert call("tokenize", tmp_path / "voices", "--out", tmp_path / "tokens", "--model", tiny).returncode == 0
    result = script("train.py", tmp_path / "tokens", "--out", tmp_path / "run", "--text", "letters")
    assert result.returncode == 2
    assert "0 of 0 clips have ids that begin with 'test/'" in result.stderr


def test_frames_are_found_that_say_a_symbol(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLE)
    alignment = importlib.import_module("alignment")
    rng = np.random.default_rng(0)
    usual = rng.integers(0, 30, (8, 2))  # of each symbol, in each pair
    texts, clips, truth = [], [], []
    for _ in range(60):
        text = rng.integers(0, 8, 12)
        path = np.repeat(np.arange(12), rng.integers(1, 9, 12))
        clip = np.where(rng.random((len(path), 2)) < 0.7, usual[text[path]], rng.integers(0, 30, (len(path), 2)))
        texts.append(text)
        clips.append(clip)
        truth.append(path)
    table = alignment.learn_alignment(texts, clips, [30, 30], 8)
    found = alignment.align(table, texts, clips)
    for text, path in zip(texts, found, strict=True):
        assert path[0] == 0
        assert path[-1] == len(text) - 1
        assert set(np.diff(path)) <= {0, 1}
    assert np.mean(np.concatenate(found) == np.concatenate(truth)) > 0.8
