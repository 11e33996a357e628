"""The example language-model, tiny: tokenize with texts, train, sample, decode; alone and with text in front."""

from __future__ import annotations

import json
import os
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
@pytest.mark.parametrize("text", [False, True])
def test_a_tiny_model_learns_and_speaks(
    call: Run, tmp_path: Path, tiny: Path, clip: tuple[np.ndarray, int], text: bool
) -> None:
    clips = write_clips(tmp_path / "voices", clip[0], 40)
    lines = [json.dumps({"file": f"{name}.wav", "text": name}) for name in clips]
    (tmp_path / "voices" / "meta-0.jsonl").write_text("\n".join(lines))
    tokens, trained, wav = tmp_path / "tokens", tmp_path / "run", tmp_path / "out.wav"
    assert call("tokenize", tmp_path / "voices" / "meta-0.jsonl", "--out", tokens, "--model", tiny).returncode == 0
    option = ["--text"] if text else []
    sizes = ["--dim", "32", "--layers", "2", "--heads", "2", "--context", "96", "--steps", "60", "--rate", "1e-2"]
    sizes += ["--held-out", "b/"]
    result = script("train.py", tokens, "--out", trained, *option, *sizes)
    assert result.returncode == 0, result.stderr
    scores = json.loads(result.stdout.splitlines()[-1])
    assert scores["bits_per_second"] < scores["bits_per_second_if_all_were_as_likely"]
    if not text:
        table = script("compare.py", trained, "--codec", tiny)
        assert table.returncode == 0, table.stderr
        even, alone, context, own = table.stdout.splitlines()[-1].split(" | ")[3:7]
        assert float(own) < float(even)
        assert float(alone) < float(even)
        assert context == "–"
        assert script("train.py", tokens, "--out", trained, "--held-out", "c/").returncode == 2
    say = ["--say", "a/clip"] if text else []
    assert script("speak.py", trained, wav, "--codec", tiny, "--seconds", "0.05", *say).returncode == 0
    audio, rate = soundfile.read(wav)
    assert rate == 24_000
    assert 0 < len(audio) <= 0.05 * rate
    assert np.isfinite(audio).all()
    assert script("speak.py", trained, wav, *([] if text else ["--say", "no"])).returncode == 2
