"""Checkpoints: round trip, finding, damage."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY, Run

from q2d2cli import Codec, Q2D2Error, UsageError, checkpoints
from q2d2cli.container.coding import library
from q2d2cli.models.model import CodecModel


def test_round_trip_in_16_bits(tmp_path: Path) -> None:
    model = CodecModel(TINY)
    checkpoints.save(tmp_path / "m", TINY, model.state_dict())
    checkpoints.write_config(checkpoints.Checkpoint(tmp_path / "m", TINY, {"stoi": 0.9}, coded_rate=756.25))
    checkpoint = checkpoints.find(str(tmp_path / "m"))
    assert checkpoint.config == TINY
    assert (checkpoint.metrics, checkpoint.coded_rate) == ({"stoi": 0.9}, 756.2)
    assert checkpoint.fingerprint() == hashlib.sha256(checkpoint.weights.read_bytes()).digest()[:8]
    for name, tensor in checkpoints.load(checkpoint).state_dict().items():
        torch.testing.assert_close(tensor, model.state_dict()[name].half().float(), rtol=0, atol=0)


def test_weights_that_overflow_are_not_exported(tmp_path: Path) -> None:
    state = CodecModel(TINY).state_dict()
    state["quantizer.project_in.bias"] = torch.full_like(state["quantizer.project_in.bias"], 1e6)
    with pytest.raises(Q2D2Error, match="not finite in 16 bits"):
        checkpoints.save(tmp_path / "m", TINY, state)
    assert not (tmp_path / "m" / "model.safetensors").exists()


def test_weights_of_another_architecture_are_refused(tiny: Path, tmp_path: Path) -> None:
    other = TINY.model_copy(update={"feature_dim": 24})
    checkpoints.save(tmp_path / "m", other, CodecModel(other).state_dict())
    (tmp_path / "m" / "model.safetensors").write_bytes((tiny / "model.safetensors").read_bytes())
    with pytest.raises(Q2D2Error, match=r"does not fit config\.json"):
        checkpoints.load(checkpoints.find(str(tmp_path / "m")))


def test_shipped_models_are_here_and_small() -> None:
    names = [checkpoint.config.name for checkpoint in checkpoints.available()]
    assert "speech-3k-v5" in names
    for checkpoint in checkpoints.available():
        assert checkpoint.folder.name == checkpoint.config.name
        assert checkpoint.weights.stat().st_size <= 32e6
        assert {"pesq", "stoi"} <= checkpoint.metrics.keys()
        assert (checkpoint.folder / "README.md").is_file()


def test_cards_name_the_files_beside_them() -> None:
    """A student's card has its own weights and the context model of its teacher's tokens."""
    for checkpoint in checkpoints.available():
        card = (checkpoint.folder / "README.md").read_text()
        row = next(line for line in card.splitlines() if line.startswith("| weights |"))
        weights, context = re.findall(r"`(.*?)`", row)
        assert weights == checkpoint.fingerprint().hex()
        assert context in {
            library.load(path).fingerprint.hex()
            for other in checkpoints.available()
            for path in other.folder.glob("context*.safetensors")
        }


def test_a_name_without_a_version_is_the_newest_that_is_here(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (2, 9, 10):
        (tmp_path / f"voice-v{number}").mkdir()
        for path in tiny.iterdir():
            (tmp_path / f"voice-v{number}" / path.name).write_bytes(path.read_bytes())
    monkeypatch.setenv("Q2D2_MODELS", str(tmp_path))
    assert checkpoints.find("voice").folder.name == "voice-v10"
    assert checkpoints.find("voice-v9").folder.name == "voice-v9"
    # One that bears the very name comes first.
    (tmp_path / "voice-v2").rename(tmp_path / "voice")
    assert checkpoints.find("voice").folder.name == "voice"
    with pytest.raises(UsageError, match="no model 'voice-v3'"):
        checkpoints.find("voice-v3")


def test_files_of_earlier_weights_say_what_to_fetch(run: Run, tiny: Path) -> None:
    """Fingerprints of weights that the project's history holds."""
    known = json.loads((ROOT / "checkpoints" / "earlier.json").read_text())
    assert all(len(bytes.fromhex(key)) == 8 and len(entry["revision"]) == 40 for key, entry in known.items())
    here = {checkpoint.fingerprint().hex() for checkpoint in checkpoints.available()}
    earlier = next(key for key in known if key not in here)
    codec = Codec.from_pretrained(tiny, device="cpu")
    codec.name, codec.fingerprint = "speech-3k", bytes.fromhex(earlier)
    folder = tiny.parent / "files"
    folder.mkdir(exist_ok=True)
    codec.encode(torch.zeros(4800), 24_000).save(folder / "old.q2d", overwrite=True)
    result = run("decode", folder / "old.q2d", "out.wav")
    assert result.returncode in (1, 2)
    message = result.stderr.decode()
    assert message.count("\n") == 1
    assert known[earlier]["revision"] in message
    assert known[earlier]["folder"] in message


def test_unknown_names_say_what_is_here() -> None:
    with pytest.raises(UsageError, match=r"no model 'nope' here \(available: .*speech-3k"):
        checkpoints.find("nope")
