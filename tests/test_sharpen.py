"""Sharpening a decoder: peaks and valleys, levels, and what `q2d2 export --sharpen` writes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import CLIP, ROOT, Run

from q2d2cli import checkpoints
from q2d2cli.audio import read_mono
from q2d2cli.models.model import CodecModel
from q2d2cli.training.config import read_config
from q2d2cli.training.discriminators import Discriminators
from q2d2cli.training.sharpen import filter_matrix, sharpen, unsharpened
from q2d2cli.training.trainer import start_from

RATE = 24_000


def speech(seconds: float = 4.0) -> torch.Tensor:
    return torch.from_numpy(read_mono(CLIP, RATE)[: int(seconds * RATE)])


def decoded(model: CodecModel, audio: torch.Tensor) -> torch.Tensor:
    return model.decode(model.encode(audio[None]))[0, : len(audio)]


def recipe_on(config: Path, recipe: str) -> dict[str, Any]:
    """A shipped recipe with the little data of `config`."""
    content: dict[str, Any] = yaml.safe_load((ROOT / "examples/speech" / recipe).read_text())
    content["data"] = {**yaml.safe_load(config.read_text())["data"], "crop_seconds": 0.5}
    return content


def begun_run(config: Path, folder: Path, recipe: str, best: Path) -> dict[str, Any]:
    """A run of a shipped recipe in `folder` that has just been started with these weights; its configuration."""
    content = recipe_on(config, recipe)
    shutil.copytree(best, folder / "best")
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
    (folder / "log.jsonl").write_text(json.dumps({"step": 1, "minutes": 0.1}) + "\n")
    return content


def contrast(audio: torch.Tensor) -> float:
    """How far log magnitudes are from the mean of a few hundred Hz around them, in loud frames."""
    spectrum = torch.stft(audio, 512, window=torch.hann_window(512), return_complex=True).abs()
    loud = spectrum[:, spectrum.sum(0) > 0.3 * spectrum.sum(0).max()]
    matrix = filter_matrix(len(loud), 31, 1.0) - torch.eye(len(loud), dtype=torch.float64)
    return (matrix @ (loud.double() + 1e-5).log()).std().item()


def test_flat_spectra_stay_flat_and_peaks_rise_by_their_part() -> None:
    matrix = filter_matrix(40, 9, 0.1)
    assert torch.allclose(matrix @ torch.full((40,), -3.0, dtype=torch.float64), torch.tensor(-3.0).double())
    peak = torch.zeros(40, dtype=torch.float64)
    peak[20] = 9.0
    around = matrix @ peak
    assert around[20].item() == pytest.approx(9 + 0.1 * (9 - 1))
    assert around[16].item() == pytest.approx(-0.1)
    assert around[15].item() == 0
    # At the ends the mean is of what there is.
    peak = torch.zeros(40, dtype=torch.float64)
    peak[0] = 5.0
    assert (matrix @ peak)[0].item() == pytest.approx(5 + 0.1 * (5 - 1))


@pytest.mark.parametrize("name", ["speech-1k", "speech-3k", "speech-7k"])
def test_sharpened_speech_has_more_contrast_and_the_same_level(name: str) -> None:
    checkpoint = checkpoints.find(name)
    model, audio = checkpoints.load(checkpoint), speech()
    codes, before = model.encode(audio[None]), decoded(model, audio)
    sharpen(model, 0.1, [audio])
    assert torch.equal(model.encode(audio[None]), codes)
    after = decoded(model, audio)
    assert 1.03 < contrast(after) / contrast(before) < 1.2
    louder = 10 * (after.square().sum() / before.square().sum()).log10().item()
    assert abs(louder) < 0.3


def test_export_sharpens_and_says_so(run: Run, config: Path, tmp_path: Path) -> None:
    started, own = tmp_path / "run", checkpoints.find("speech-3k")
    recipe = begun_run(config, started, "speech-3k.yaml", own.folder)
    as_trained = json.loads((started / "best/config.json").read_text())
    as_trained.pop("sharpened")
    (started / "best/config.json").write_text(json.dumps(as_trained))
    test = tmp_path / "test"
    test.mkdir()
    shutil.copy(CLIP, test)

    target = tmp_path / "clear"
    options = ("--test", test, "--metrics", "stoi", "--name", "clear", "--quiet")
    result = run("export", started, target, *options, "--sharpen", "0.1")
    assert result.returncode == 0, result.stderr.decode()
    assert "| sharpened | by 0.1 (`q2d2 export --sharpen`) |" in (target / "README.md").read_text()
    before, after = (checkpoints.read_safetensors(folder / "model.safetensors") for folder in (own.folder, target))
    changed = {key for key in before if not torch.equal(before[key].float(), after[key].float())}
    assert changed == {"decoder.head.out.weight", "decoder.head.out.bias"}
    half = len(before["decoder.head.out.bias"]) // 2
    assert torch.equal(before["decoder.head.out.bias"][half:], after["decoder.head.out.bias"][half:]), "phases stay"

    # What trains on from there begins with the decoder as it was, but for 16 bits.
    exported = checkpoints.open_checkpoint(target)
    assert exported.sharpened is not None
    assert exported.sharpened.amount == 0.1
    again = unsharpened(exported)
    for key in changed:
        assert torch.allclose(again[key], before[key].float(), atol=2e-3)
        assert (after[key].float() - before[key].float()).abs().max() > 2e-2

    # Levels are set by the run's validation data.
    recipe["data"]["valid"] = str(tmp_path / "nowhere")
    (started / "config.yaml").write_text(yaml.safe_dump(recipe))
    result = run("export", started, target, *options, "--sharpen", "0.1", "--force")
    assert (result.returncode, result.stderr.decode().count("\n")) == (2, 1)
    assert "nowhere" in result.stderr.decode()


def test_training_on_undoes_it_unless_the_decoder_is_frozen() -> None:
    own = checkpoints.find("speech-7k")
    assert own.sharpened is not None
    config = read_config(ROOT / "examples/speech/speech-7k.yaml")
    model, judges = CodecModel(config.model), Discriminators(config.discriminator)
    as_shipped = checkpoints.load(own).decoder.head.out.bias

    start_from("speech-7k", model, judges, as_exported=True)
    assert torch.equal(model.decoder.head.out.bias, as_shipped)
    start_from("speech-7k", model, judges)
    assert not torch.equal(model.decoder.head.out.bias, as_shipped)
    # As before in level: what sharpening took from it is back.
    audio = speech()
    level = [decoded(m, audio).square().mean() for m in (model, checkpoints.load(own))]
    assert abs(10 * (level[0] / level[1]).log10().item()) < 0.3


def test_a_frozen_decoder_is_not_sharpened_twice(run: Run, config: Path, tmp_path: Path) -> None:
    own = checkpoints.find("speech-3k")
    recipe, trained = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(yaml.safe_dump({**recipe_on(config, "speech-3k.yaml"), "tensorboard": False}))
    options = ("--set", "minutes=null", "--set", "optim.batch_size=1")
    begin = ("--init", "speech-3k", "--freeze", "decoder", "--set", "steps=1")
    for turn in (begin, ("--resume", "--set", "freeze=[decoder]", "--set", "steps=2")):
        result = run("train", "-c", recipe, "-o", trained, "-q", *options, *turn)
        assert result.returncode == 0, result.stderr.decode()
        assert checkpoints.open_checkpoint(trained / "best").sharpened == own.sharpened

    assert own.sharpened is not None
    before = unsharpened(own)
    for sharper, amount in ((("--sharpen", "0.2"), 0.2), ((), own.sharpened.amount)):
        target = tmp_path / str(amount)
        result = run(
            "export", trained, target, "--name", str(amount), "--test", CLIP, "--metrics", "stoi", "-q", *sharper
        )
        assert result.returncode == 0, result.stderr.decode()
        exported = checkpoints.open_checkpoint(target)
        assert exported.sharpened is not None
        assert exported.sharpened.amount == amount
        for key, tensor in unsharpened(exported).items():
            if key.startswith("decoder"):
                assert torch.allclose(tensor, before[key], atol=2e-3), key
    assert exported.sharpened == own.sharpened


def test_a_student_has_no_decoder_to_sharpen(run: Run, config: Path, tmp_path: Path) -> None:
    started, small = tmp_path / "run", checkpoints.find("speech-3k-small")
    begun_run(config, started, "distill-3k.yaml", small.folder)
    result = run("export", started, tmp_path / "speech-3k-small", "--test", CLIP, "--sharpen", "0.1")
    assert result.returncode == 2
    assert small.lender is not None
    assert f"has {small.lender.model}'s" in result.stderr.decode()
    assert not (tmp_path / "speech-3k-small").exists()
