"""The recognizer that losses and heads listen with: the library's own hidden states, words, and training by it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soxr
import torch
import yaml
from conftest import Run

from q2d2cli.errors import Q2D2Error, UsageError
from q2d2cli.hearing import Hearing, find
from q2d2cli.losses import MelLoss, WordsLoss
from q2d2cli.training.config import DiscriminatorConfig, read_config
from q2d2cli.training.discriminators import Discriminators, Heads
from q2d2cli.training.loop import make_accelerator
from q2d2cli.training.trainer import Trainer


@pytest.fixture(scope="module")
def hearing() -> Hearing:
    return Hearing("tiny.en", 24_000)


@pytest.fixture(scope="module")
def audio(clip: tuple[np.ndarray, int]) -> torch.Tensor:
    samples, rate = clip
    return torch.from_numpy(soxr.resample(samples[: 3 * rate], rate, 24_000))[None]


def test_hidden_states_are_those_of_the_recognizers_own_library(hearing: Hearing, audio: torch.Tensor) -> None:
    ctranslate2 = pytest.importorskip("ctranslate2")
    with torch.no_grad():
        mine = hearing(audio)
    model = ctranslate2.models.Whisper(str(find("tiny.en").parent), device="cpu", compute_type="float32")
    mel = np.ascontiguousarray(hearing.mel(audio).numpy())
    theirs = np.array(model.encode(ctranslate2.StorageView.from_array(mel), to_cpu=True))
    assert len(mine) == 5
    assert mine[-1].shape == theirs.shape == (1, 150, 384)
    assert np.abs(mine[-1].numpy() - theirs).max() < 1e-3


def test_rates_hear_the_same(hearing: Hearing, clip: tuple[np.ndarray, int], audio: torch.Tensor) -> None:
    samples, rate = clip
    slow = Hearing("tiny.en", rate).mel(torch.from_numpy(samples[: 3 * rate])[None])
    fast = hearing.mel(audio)
    assert slow.shape == fast.shape
    assert (slow - fast)[..., 5:-5].abs().mean() < 0.01
    with pytest.raises(UsageError, match="22050"):
        Hearing("tiny.en", 22_050)


def test_words_loss_hears_what_spectra_do_not(hearing: Hearing, audio: torch.Tensor) -> None:
    loss, mel = WordsLoss(hearing), MelLoss(24_000)
    assert loss(audio, audio) == 0
    torch.manual_seed(0)
    noise = 0.003 * torch.randn_like(audio)
    # Other words in the same voice are farther off than noise is, though a spectrogram says the contrary.
    other = audio.roll(audio.shape[-1] // 2, dims=1)
    assert loss(other, audio) > 2 * loss(audio + noise, audio)
    assert mel(other, audio) < 2 * mel(audio + noise, audio)
    estimate = (audio + noise).requires_grad_()
    loss(estimate, audio).backward()
    assert estimate.grad is not None
    assert estimate.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in hearing.parameters())


def test_heads_tell_decoded_from_recorded_within_a_few_steps(hearing: Hearing, audio: torch.Tensor) -> None:
    torch.manual_seed(0)
    real = audio[:, : 2 * 21_600].reshape(2, -1)
    layers = [[h.detach() for h in hearing(x)] for x in (real, real + 0.01 * torch.randn_like(real))]
    heads = Heads(hearing.dims, 32)
    optimizer = torch.optim.AdamW(heads.parameters(), 1e-3, betas=(0.5, 0.9))
    losses = []
    for _ in range(30):
        loss = heads.loss(heads([torch.cat(pair) for pair in zip(*layers, strict=True)]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(2, abs=0.3)
    assert losses[-1] < 0.7
    assert heads.generator_loss(heads(layers[0])) < heads.generator_loss(heads(layers[1]))


@pytest.mark.slow
def test_training_with_words_and_heads(config: Path, tmp_path: Path, run: Run) -> None:
    content = yaml.safe_load(config.read_text())
    content |= {"loss": {"words": 10.0}, "discriminator": {"features": {"weight": 1.0, "width": 8}}, "bf16": False}
    content |= {"steps": 4, "validate_every": 4, "save_every": 2, "log_every": 1, "validate_metrics": []}
    config.write_text(yaml.safe_dump(content))
    out = tmp_path / "run"
    assert run("train", "-c", config, "-o", out, "--set", "tensorboard=false").returncode == 0
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert {"words", "d_features", "adv_features"} <= set(lines[0])
    assert lines[-1]["valid_words"] > 0
    # Heads go on where they were, and into another run.
    first = read_config(config)
    trainer = Trainer(first, make_accelerator("cpu"), str(out / "best"))
    assert any("discriminator weights" in note for note in trainer.notes)
    before = {name: tensor.clone() for name, tensor in trainer.discriminator.state_dict().items()}
    assert before
    trainer.train_step(0.1 * torch.randn(2, 4800))
    assert all(not torch.equal(tensor, before[name]) for name, tensor in trainer.discriminator.state_dict().items())
    again = Trainer(first, make_accelerator("cpu"))
    again.restore(trainer.state())
    assert again.heads_steps == 1
    for name, tensor in again.discriminator.state_dict().items():
        assert torch.equal(tensor, trainer.discriminator.state_dict()[name])


def test_missing_and_damaged_recognizers_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nobody"):
        Hearing("nobody", 24_000)
    for content in (b"", b"\x06\0\0\0", b"\x05\0\0\0" + bytes(100), find("tiny.en").read_bytes()[:5000]):
        (tmp_path / "model.bin").write_bytes(content)
        with pytest.raises(Q2D2Error, match=r"model\.bin"):
            Hearing(str(tmp_path), 24_000)


def test_heads_are_built_only_with_a_weight() -> None:
    assert Discriminators(DiscriminatorConfig(), [384]).features is None
