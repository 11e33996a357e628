"""Training: a tiny run from audio to a checkpoint that encodes, resume, and bad configurations."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from conftest import CLIP, ROOT, Run

from q2d2cli import checkpoints
from q2d2cli.audio import Resampler
from q2d2cli.errors import UsageError
from q2d2cli.losses import ComplexStftLoss, EnergyLoss, LevelLoss, LinesLoss, MelLoss, PesqLoss, stft
from q2d2cli.models.config import ModelConfig
from q2d2cli.models.model import CodecModel
from q2d2cli.training.clip import clip_frames
from q2d2cli.training.config import DataConfig, DiscriminatorConfig, read_config
from q2d2cli.training.corpus import validation_crops
from q2d2cli.training.data import FileCorpus, FilesCorpus, MemoryCorpus
from q2d2cli.training.discriminators import Discriminators
from q2d2cli.training.loop import make_accelerator
from q2d2cli.training.scores import measure
from q2d2cli.training.trainer import Trainer, more_dimensions, start_from


@pytest.mark.slow
def test_train_stop_resume_and_use(run: Run, config: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    content = yaml.safe_load(config.read_text())
    content["data"]["crop_seconds"] = 0.4
    content["loss"] = {"pesq": 0.05, "lines": 0.1, "energy": 0.1}
    content["optim"]["frame_clip"] = 2.0
    config.write_text(yaml.safe_dump(content))
    result = run("train", "-c", config, "-o", out)
    assert result.returncode == 0, result.stderr.decode()
    assert "broken.wav" in result.stderr.decode()
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    losses = [entry["mel"] for entry in log if "mel" in entry]
    assert losses[-1] < 0.8 * losses[0]
    assert any("d" in entry for entry in log)
    assert all({"pesq_loss", "lines_loss", "energy_loss"} <= entry.keys() for entry in log if "mel" in entry)
    assert [entry["step"] for entry in log if 0 < (entry.get("stoi") or 0) < 1] == [30, 60]
    assert all(entry["skipped"] == 0 for entry in log if "skipped" in entry)

    # The best checkpoint is a model like any other.
    assert run("encode", CLIP, "a.q2d", "-m", out / "best").returncode == 0
    assert run("decode", "a.q2d", "a.wav", "-m", out / "best").returncode == 0

    # A run is not overwritten; it goes on from where it stood, to more steps.
    result = run("train", "-c", config, "-o", out)
    assert result.returncode == 2
    assert "already holds a run" in result.stderr.decode()
    longer = yaml.safe_load(config.read_text())
    longer["steps"] = 80
    config.write_text(yaml.safe_dump(longer))
    assert run("train", "-c", config, "-o", out, "--resume").returncode == 0
    resumed = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert resumed[: len(log)] == log
    assert resumed[-1]["step"] == 80

    # What ran is written down, and export makes a shippable model of it.
    assert yaml.safe_load((out / "config.yaml").read_text())["steps"] == 80
    target, test = tmp_path / "models" / "tiny", tmp_path / "data"
    assert run("export", out, target, "--test", tmp_path / "nowhere").returncode == 2
    assert not target.exists(), "nothing is written that cannot be measured"
    result = run("export", out, target, "--test", test, "--metrics", "pesq,stoi", "--with-discriminators")
    assert result.returncode == 0, result.stderr.decode()
    assert "broken.wav" in result.stderr.decode()
    assert run("export", out, target, "--test", test).returncode == 2, "it is not overwritten"
    judges = checkpoints.read_safetensors(target / "discriminators.safetensors")
    assert {tensor.dtype for tensor in judges.values()} == {torch.float16}
    card = (target / "README.md").read_text()
    assert "80 steps" in card
    assert "PESQ flatters this model" in card
    assert "| original | – | – |" in card
    assert (target / "validation.svg").read_text().startswith("<svg")
    assert (target / "training.yaml").read_bytes() == (out / "config.yaml").read_bytes()
    assert json.loads((target / "config.json").read_text())["metrics"]["stoi"] > 0

    # Fine-tuning: from those weights, discriminators included, with encoder and quantizer frozen.
    second = tmp_path / "second"
    result = run(
        "train", "-c", config, "-o", second, "--init", target, "--freeze", "encoder,quantizer", "--set", "steps=20"
    )
    assert result.returncode == 0, result.stderr.decode()
    assert "discriminator weights" in result.stderr.decode()
    before, after = (checkpoints.read_safetensors(f / "model.safetensors") for f in (target, second / "best"))
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]) == (not name.startswith("decoder")), name

    quick = ("--metrics", "stoi")

    # Between two runs from the same weights: their mean, and the card says so.
    mean = tmp_path / "mean" / "tiny"
    result = run("export", second, mean, "--test", test, *quick, "--average-with", target, "--share", "0.25")
    assert result.returncode == 0, result.stderr.decode()
    for name, tensor in checkpoints.read_safetensors(mean / "model.safetensors").items():
        middle = 0.25 * before[name].double() + 0.75 * after[name].double()
        assert torch.allclose(tensor.double(), middle, rtol=2**-11, atol=2**-25), name
    theirs = checkpoints.find(str(target)).fingerprint().hex()
    row = f"| average | 75% the weights of this run, 25% those of tiny `{theirs}` |"
    assert row in (mean / "README.md").read_text()
    assert "| average |" not in card
    assert run("export", second, mean, "--test", test, "--force", "--share", "0.25").returncode == 2

    # Another width: what fits is taken, and the rest is named.
    wider = ["--set", "model.decoder.hidden=48", "--set", "steps=2"]
    result = run("train", "-c", config, "-o", tmp_path / "third", "--init", target, *wider)
    assert result.returncode == 0, result.stderr.decode()
    assert "decoder.blocks.0.pwconv1.weight" in result.stderr.decode()
    nothing = tmp_path / "none" / "tiny"
    result = run("export", tmp_path / "third", nothing, "--test", test, "--average-with", target)
    assert result.returncode == 2
    assert "decoder.hidden is" in result.stderr.decode()
    assert not nothing.exists()

    # Under a name of its own.
    result = run("export", second, tmp_path / "models" / "mine", "--test", test)
    assert result.returncode == 2
    assert "--name" in result.stderr.decode()
    result = run("export", second, tmp_path / "models" / "mine", "--test", test, *quick, "--name", "mine")
    assert result.returncode == 0, result.stderr.decode()
    mine = checkpoints.find(str(tmp_path / "models" / "mine"))
    assert mine.config.name == "mine"
    assert read_config(mine.folder / "training.yaml").model == mine.config
    assert (mine.folder / "README.md").read_text().startswith("# mine\n")
    result = run("export", second, tmp_path / "models" / "a b", "--test", test, "--name", "a b")
    assert result.returncode == 2
    assert "model.name" in result.stderr.decode()


def test_a_deeper_model_starts_as_the_one_it_is_made_from() -> None:
    shallow = checkpoints.load(checkpoints.find("speech-7k"))
    content = shallow.config.model_dump()
    content["encoder"]["layers"] += 1
    content["decoder"]["layers"] += 2
    config = ModelConfig.model_validate(content)
    deep = CodecModel(config).eval()
    notes = start_from("speech-7k", deep, Discriminators(DiscriminatorConfig()), as_exported=True)
    assert "encoder.blocks.6.gamma" in notes[1]
    audio = torch.from_numpy(soundfile.read(CLIP, dtype="float32")[0][None, :36_000])
    with torch.inference_mode():
        tokens = shallow.encode(audio)
        assert torch.equal(deep.encode(audio), tokens)
        assert torch.equal(deep.decode(tokens), shallow.decode(tokens))
    # Nothing keeps the new blocks that way.
    deep.train()(audio)[0].square().sum().backward()
    assert deep.decoder.blocks[6].gamma.grad.abs().max() > 0


def test_a_model_of_more_dimensions_starts_as_the_one_it_is_made_from() -> None:
    narrow = checkpoints.load(checkpoints.find("speech-7k"))
    content = narrow.config.model_dump()
    content["quantizer"]["levels"] = [*content["quantizer"]["levels"], 5, 3]
    wide = CodecModel(ModelConfig.model_validate(content)).eval()
    notes = start_from("speech-7k", wide, Discriminators(DiscriminatorConfig()), as_exported=True)
    assert notes == [f"{len(wide.state_dict())} of {len(wide.state_dict())} weights from {narrow.config.name}"]
    audio = torch.from_numpy(soundfile.read(CLIP, dtype="float32")[0][None, :36_000])
    with torch.inference_mode():
        tokens = wide.encode(audio)
        assert torch.equal(tokens[..., :3], narrow.encode(audio))
        assert len(tokens[..., 3].unique()) > 1
        torch.testing.assert_close(wide.decode(tokens), narrow.decode(tokens[..., :3]), rtol=0, atol=1e-4)
    # The new dimensions are heard as soon as training finds a use for them.
    wide.train()(audio)[0].square().sum().backward()
    assert wide.quantizer.project_out.weight.grad[:, -2:].abs().min() > 0
    # Other levels in front would be other tokens: nothing of the quantizer is taken.
    content["quantizer"]["levels"] = [5, 3, 9, 9, 9, 9, 7, 7]
    (_, new, *_) = start_from(
        "speech-7k", CodecModel(ModelConfig.model_validate(content)), Discriminators(DiscriminatorConfig())
    )
    assert "quantizer.project_in.weight" in new
    # A layer norm over the dimensions would change the old ones with the new.
    normed = [m.config.quantizer.model_copy(update={"projection": "layernorm"}) for m in (narrow, wide)]
    assert more_dimensions(*normed, narrow.state_dict(), wide.state_dict()) == {}


def test_no_frame_has_more_than_its_share_of_the_gradient() -> None:
    layer = torch.nn.Linear(3, 4)
    clip_frames(layer, 2.0)
    x, weights = torch.randn(2, 5, 3), torch.rand(2, 5, 4) + 0.5
    weights[0, 0] *= 100
    weights[1, 4] *= 0.01
    output = layer(x)
    assert torch.equal(output, torch.nn.functional.linear(x, layer.weight, layer.bias))
    (output * weights).sum().backward()
    median = weights.norm(dim=-1).median()
    expected = weights.clone()
    expected[0, 0] *= 2 * median / weights[0, 0].norm()
    torch.testing.assert_close(layer.bias.grad, expected.sum((0, 1)))
    torch.testing.assert_close(layer.weight.grad, torch.einsum("bti,btj->ij", expected, x))

    # Hardly any frame has a gradient: those that have keep theirs.
    layer.zero_grad()
    layer(x)[0, 0].sum().backward()
    assert layer.bias.grad.tolist() == [1.0] * 4


def test_overrides_and_printed_configuration(run: Run, config: Path, tmp_path: Path) -> None:
    levels = "model.quantizer.levels=[9,9,7,7,7,7]"
    result = run("train", "-c", config, "--set", levels, "--set", "optim.lr=1e-4", "--print-config")
    printed = yaml.safe_load(result.stdout)
    assert printed["model"]["quantizer"]["levels"] == [9, 9, 7, 7, 7, 7]
    assert printed["optim"]["lr"] == 1e-4
    assert printed["discriminator"]["period"]["weight"] == 0
    # What is printed is itself a configuration.
    (tmp_path / "again.yaml").write_bytes(result.stdout)
    assert run("train", "-c", tmp_path / "again.yaml", "--print-config").stdout == result.stdout
    for bad, words in (
        ("optim.lr", "path.to.key=value"),
        ("optim.rl=1", "optim.rl"),
        ("loss.pesq=1", "at least 0.35"),
        ("steps.x=1", "no keys"),
    ):
        result = run("train", "-c", config, "--set", bad, "--print-config")
        assert result.returncode == 2
        assert words in result.stderr.decode()
    assert run("train", "-c", config).returncode == 2


def test_discriminators_learn_to_tell_real_from_fake() -> None:
    torch.manual_seed(0)
    config = DiscriminatorConfig.model_validate(
        {
            "start": 0.5,
            "period": {"weight": 0.5, "channels": 2, "periods": [2, 3]},
            "resolution": {"weight": 1, "channels": 4, "windows": [256]},
            "band": {"weight": 1, "channels": 4, "sizes": [256]},
        }
    )
    judges = Discriminators(config)
    assert judges.weights == {"period": 0.5, "resolution": 1, "band": 1}
    time = torch.arange(4001) / 24_000
    real = 0.3 * torch.sin(2 * torch.pi * 200 * time).expand(4, -1)
    fake = 0.1 * torch.randn(4, 4001)
    optimizer = torch.optim.AdamW(judges.parameters(), 2e-3)
    losses = []
    for _ in range(30):
        loss = judges.loss(judges(real), judges(fake))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(2 * 2.5, rel=0.2)
    assert losses[-1] < 0.5 * losses[0]
    for name, parameter in judges.named_parameters():
        assert parameter.grad is not None, name
    assert judges.generator_loss(judges(fake)) > judges.generator_loss(judges(real))
    assert judges.feature_matching_loss(judges(real), judges(real)) == 0
    with pytest.raises(ValueError, match="weight 0"):
        DiscriminatorConfig.model_validate({"start": 0.4})
    # What is never trained is not built.
    assert not Discriminators(config.model_copy(update={"start": 1.0})).state_dict()


def test_configurations_of_earlier_versions_are_read_as_far_as_they_can_be_run() -> None:
    old = {"stft": {"weight": 1.0, "channels": 16, "windows": [2048]}, "frame": {"weight": 0.0}}
    config = DiscriminatorConfig.model_validate({"start": 1.0, "period": {"weight": 0.0, "periods": [2]}, **old})
    assert config.period.sizes == (2,)
    assert DiscriminatorConfig.model_validate(config.model_dump(mode="json")) == config
    with pytest.raises(ValueError, match="are gone"):
        DiscriminatorConfig.model_validate({"start": 0.4, **old})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"modle": {}}, ["modle"]),
        ({"model": {"quantizer": {"levels": [8, 8]}}}, ["model.quantizer", "level 8"]),
        ({"optim": {"lr": -1}}, ["optim.lr"]),
        ({"steps": None}, ["steps or minutes"]),
        ({"freeze": ["encoder", "decoder", "quantizer"]}, ["freeze", "leave one"]),
        ({"loss": {"rate_bits": 5.0}}, ["rate_bits", "loss.rate"]),
        ({"loss": {"rate": 0.1, "rate_bits": 20.0}}, ["rate_bits", "below"]),
        ({"loss": {"rate": 0.1}, "model": {"quantizer": {"kind": "vq", "levels": [16]}}}, ["loss.rate", "vq"]),
        ({"data": {"train": "/nowhere", "valid": "/nowhere"}}, ["/nowhere"]),
    ],
)
def test_bad_configurations_are_named(
    run: Run, config: Path, tmp_path: Path, change: dict[str, object], words: list[str]
) -> None:
    content = yaml.safe_load(config.read_text())
    config.write_text(yaml.safe_dump({**content, **change}))
    result = run("train", "-c", config, "-o", tmp_path / "run")
    assert result.returncode == 2
    assert result.stderr.decode().count("\n") == 1
    for word in words:
        assert word in result.stderr.decode()


def test_missing_configuration(run: Run, tmp_path: Path) -> None:
    result = run("train", "-c", tmp_path / "none.yaml", "-o", tmp_path / "run")
    assert result.returncode == 2
    assert "none.yaml" in result.stderr.decode()
    result = run("train", "-c", CLIP, "-o", tmp_path / "run")
    assert result.returncode == 2
    assert "not valid YAML" in result.stderr.decode()


def test_crops_have_the_levels_asked_for(tmp_path: Path) -> None:
    (tmp_path / "clip.wav").write_bytes(CLIP.read_bytes())
    corpus = MemoryCorpus(tmp_path, 24_000)
    config = DataConfig(train=tmp_path, valid=tmp_path, level_mean=-30, level_std=0, silence=0)
    crops = corpus.crops(200, 24_000, config, np.random.default_rng(0))
    levels = 10 * torch.log10(crops.square().mean(1))
    assert crops.abs().max() < 1
    assert levels.median().item() == pytest.approx(-30, abs=0.1)
    quiet = corpus.crops(50, 24_000, config.model_copy(update={"silence": 1.0}), np.random.default_rng(0))
    assert quiet.abs().max() < 0.01


def test_validation_hears_recordings_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "clip.wav").write_bytes(CLIP.read_bytes())
    corpus = MemoryCorpus(tmp_path, 24_000)
    plain = DataConfig(train=tmp_path, valid=tmp_path)
    # Every share there is, also of what may be added later; `balance` changes how often a recording comes.
    shares = [name for name, key in DataConfig.model_fields.items() if key.default == 0.0 and name != "balance"]
    assert {"noise", "band", "tilt", "speed", "tones"} <= set(shares)
    for name in shares:
        augmented = plain.model_copy(update={name: 1.0})
        batches = [corpus.crops(4, 24_000, config, np.random.default_rng(0)) for config in (plain, augmented)]
        assert not torch.equal(*batches), name
        assert torch.equal(validation_crops(corpus, plain), validation_crops(corpus, augmented)), name


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="asks Linux what the processor can do")
def test_bfloat16_only_where_the_processor_has_it(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = "bf16" in Path("/proc/cpuinfo").read_text() and os.environ.get("Q2D2_BFLOAT16") != "0"
    for overrides, wanted in ((("bf16=true",), there), (("bf16=false",), False)):
        trainer = Trainer(read_config(config, overrides), make_accelerator("cpu"))
        assert trainer.bf16 == wanted
        assert any("bfloat16" in note for note in trainer.notes) == (overrides == ("bf16=true",) and not there)
    monkeypatch.setenv("Q2D2_BFLOAT16", "0")
    assert not Trainer(read_config(config, ("bf16=true",)), make_accelerator("cpu")).bf16


def test_losses_are_zero_for_equal_signals_and_grow_with_distance() -> None:
    torch.manual_seed(0)
    signal = torch.randn(2, 8000) * 0.1
    for loss in (MelLoss(24_000), EnergyLoss(24_000), LevelLoss(24_000), LinesLoss(24_000), ComplexStftLoss()):
        near, far = (loss(signal + e * torch.randn(2, 8000), signal) for e in (0.001, 0.1))
        assert loss(signal, signal) == 0
        assert 0 < near < far
    # The complex loss hears a sign flip, the mel loss does not.
    assert MelLoss(24_000)(-signal, signal) < 1e-5
    assert ComplexStftLoss()(-signal, signal) > 0.1
    # An unknown phase makes it prefer silence, unless only phase counts.
    other = torch.randn(2, 8000) * 0.1
    for phase_only in (False, True):
        loss = ComplexStftLoss(0.6, phase_only)
        loud, quiet = (loss(gain * other, signal).item() for gain in (1.0, 0.3))
        assert (loud == pytest.approx(quiet, rel=0.01)) if phase_only else (loud > 1.1 * quiet)


def test_the_cut_ends_of_a_crop_are_no_steps() -> None:
    tone = torch.sin(torch.arange(8000) * 0.05)[None]
    spectrum = stft(tone, torch.hann_window(512))[0].abs()
    assert spectrum.shape == (1 + 8000 // 128, 257)
    above = spectrum[:, 50:].amax(1)
    assert above[0] < 0.01 * spectrum.max()
    assert above[-1] < 0.01 * spectrum.max()


def test_energy_loss_is_least_at_the_right_level_whatever_the_fine_structure() -> None:
    torch.manual_seed(0)
    target, other = (0.05 * torch.randn(2, 24_000) for _ in range(2))
    losses = {gain: EnergyLoss(24_000)(gain * other, target).item() for gain in (0.5, 0.8, 1.0, 1.25, 2.0)}
    assert min(losses, key=losses.__getitem__) == 1.0
    assert losses[0.5] == pytest.approx(math.log(2), abs=0.02)


def test_level_loss_hears_the_level_of_the_whole_and_nothing_else() -> None:
    torch.manual_seed(0)
    target, other = (0.05 * torch.randn(2, 24_000) for _ in range(2))
    loss = LevelLoss(24_000)
    assert loss(0.5 * target, target) == pytest.approx(math.log(2), abs=0.01)
    # As unsure as noise is, window by window, and syllables in other places, too.
    assert loss(other, target) < 0.02
    syllables = torch.linspace(0, 8 * torch.pi, 24_000).sin().abs()
    pair = syllables.roll(3000) * other, syllables * target
    assert loss(*pair) < 0.03 < EnergyLoss(24_000)(*pair)
    # Only what is too faint to matter may have any level.
    frequencies = torch.fft.rfftfreq(24_000, 1 / 24_000)
    high = torch.fft.irfft(torch.fft.rfft(other) * (frequencies > 8000))
    low = torch.fft.irfft(torch.fft.rfft(target) * (frequencies < 7000))
    assert loss(low + 0.003 * high, low) < 1e-4
    assert loss(low + high, low) > 0.1


def test_lines_loss_hears_lines_where_noise_should_be_and_no_other_difference() -> None:
    torch.manual_seed(0)
    target, noise = (0.05 * torch.randn(2, 48_000) for _ in range(2))
    # The same 150 samples again and again: as loud, but lines 160 Hz apart.
    lines = 0.05 * torch.randn(2, 150).repeat(1, 320)
    loss = LinesLoss(24_000)
    assert loss(lines, target) > 0.6
    assert loss(noise, target) < 0.03
    assert loss(2 * noise, target) == pytest.approx(loss(noise, target).item(), rel=0.01)
    # Any distance of lines counts, and fainter ones in noise, too.
    close = 0.05 * torch.randn(2, 80).repeat(1, 600)
    assert loss(close, target) > 0.6
    assert loss(noise + 0.5 * close, target) > 2 * loss(noise, target)
    # Above 5 kHz mel bands are too wide to tell.
    frequencies = torch.fft.rfftfreq(48_000, 1 / 24_000)
    high = [torch.fft.irfft(torch.fft.rfft(signal) * (frequencies > 5000)) for signal in (target, noise, lines)]
    mel = MelLoss(24_000)
    assert mel(high[2], high[0]) < 2 * mel(high[1], high[0])
    assert loss(high[2], high[0]) > 4 * loss(high[1], high[0])
    # What repeats in the recording itself is no fault; silence has nothing that could repeat.
    assert loss(lines + 0.001 * noise, lines) < 0.01
    assert loss(torch.zeros(2, 48_000), torch.zeros(2, 48_000)) == 0
    assert loss(lines, target).isfinite()
    # Every band from 2 kHz up counts, nothing below.
    below = torch.fft.irfft(torch.fft.rfft(lines) * (frequencies < 1900))
    assert loss(target + below, target) < 0.03


def test_pesq_loss_falls_as_pesq_rises_and_bears_silence() -> None:
    torch.manual_seed(0)
    audio, rate = soundfile.read(CLIP, dtype="float32")
    speech = torch.from_numpy(audio[: 3 * rate])[None]
    loss, noise = PesqLoss(rate), torch.randn_like(speech)
    assert loss(speech, speech) < 1e-6
    noisy = [speech + level * noise for level in (0.001, 0.01, 0.1)]
    losses = [loss(estimate, speech).item() for estimate in noisy]
    scores = [measure(["pesq"], rate, speech, estimate)["pesq"] for estimate in noisy]
    assert losses == sorted(losses)
    assert scores == sorted(scores, reverse=True)
    # 4.5 less the disturbance is raw PESQ; P.862.2 maps it. The two leave time alignment apart, so roughly.
    for value, score in zip(losses, scores, strict=True):
        assert 0.999 + 4 / (1 + math.exp(-1.3669 * (4.5 - value) + 3.8224)) == pytest.approx(score, abs=0.5)
    # Frames may begin elsewhere: as if the signals came later.
    later = [torch.cat([torch.zeros(1, round(0.008 * rate)), signal], dim=1) for signal in (noisy[2], speech)]
    assert loss(noisy[2], speech, 0.5).item() == pytest.approx(loss(*later).item(), abs=0.01)
    assert abs(loss(noisy[2], speech).item() - loss(*later).item()) > 0.01
    # A click costs as much at the ends as elsewhere.
    for place in (slice(0, 100), slice(rate, rate + 100), slice(-100, None)):
        clicked = noisy[0].clone()
        clicked[:, place] += 0.5 * noise[:, place]
        assert loss(clicked, speech) > losses[0] + 0.1
    # Silence has no level to bring to PESQ's: no loss and no gradient, instead of NaN.
    batch = torch.cat([speech, torch.zeros_like(speech), speech])
    estimate = torch.cat([noisy[1], 1e-5 * noise, torch.zeros_like(speech)]).requires_grad_()
    loss(estimate, batch).backward()
    assert estimate.grad is not None
    assert estimate.grad[0].abs().max() > 0
    assert estimate.grad[1:].abs().max() == 0


def test_corpora_in_memory_and_on_disk_hold_the_same(tmp_path: Path) -> None:
    audio, rate = soundfile.read(CLIP, dtype="float32")
    for name, samples, at in (("a.wav", audio, rate), ("b.flac", np.stack([audio, audio], 1)[: 2 * rate], 44_100)):
        soundfile.write(tmp_path / name, samples, at)
    (tmp_path / "c.wav").write_bytes(b"RIFF")
    (tmp_path / "list.txt").write_text("a.wav\nb.flac\n\nc.wav\nmissing.wav\n")
    corpora = [kind(tmp_path / "list.txt", 24_000) for kind in (MemoryCorpus, FileCorpus)]
    for corpus in corpora:
        assert corpus.files == 2
        assert [path.name for path in corpus.broken] == ["c.wav", "missing.wav"]
        assert corpus.seconds == pytest.approx(len(audio) / rate + 2 * rate / 44_100, abs=0.01)
    # A place is a share of the whole; the whole begins with the first file.
    whole = torch.from_numpy(Resampler(rate, 24_000, 1).push(audio[None], last=True)[0])
    in_memory, on_disk = (corpus.read(np.array([0.0, 0.3]), 24_000) for corpus in corpora)
    torch.testing.assert_close(in_memory[0], whole[:24_000], atol=1e-4, rtol=0)
    torch.testing.assert_close(on_disk[0, :23_900], whole[:23_900], atol=1e-4, rtol=0)
    start = int(0.3 * corpora[1].seconds * rate) * 24_000 // rate
    torch.testing.assert_close(on_disk[1, 100:-100], whole[start + 100 : start + 23_900], atol=1e-2, rtol=0)
    assert corpora[1].read(np.array([0.999999]), 10 * 24_000).shape == (1, 240_000)


@pytest.mark.parametrize("kind", [MemoryCorpus, FileCorpus])
@pytest.mark.parametrize(("balance", "expected"), [(0.0, 0.1), (0.5, 0.25), (1.0, 0.5)])
def test_balance_draws_short_folders_more_often(
    tmp_path: Path, kind: type[FilesCorpus], balance: float, expected: float
) -> None:
    # The first folder has a tenth of all audio; a sample's value says where it is.
    rate = 24_000
    for folder, value, files in (("a", 0.25, 2), ("b", 0.5, 9)):
        (tmp_path / folder).mkdir()
        for number in range(files):
            seconds = 2 if folder == "b" else 1
            soundfile.write(tmp_path / folder / f"{number}.wav", np.full(seconds * rate, value), rate)
    corpus = kind(tmp_path, rate, balance=balance)
    places = corpus.draw(np.random.default_rng(0), 4000)
    assert places.min() >= 0
    assert places.max() < 1
    drawn = corpus.read(places, 1)[:, 0]
    assert (drawn < 0.3).float().mean().item() == pytest.approx(expected, abs=0.03)


def test_processes_get_their_share_of_the_same_crops(tmp_path: Path) -> None:
    (tmp_path / "clip.wav").write_bytes(CLIP.read_bytes())
    corpus = MemoryCorpus(tmp_path, 24_000)
    config = DataConfig(train=tmp_path, valid=tmp_path)
    whole = corpus.crops(6, 1000, config, np.random.default_rng(3))
    parts = [corpus.crops(6, 1000, config, np.random.default_rng(3), slice(i, i + 3)) for i in (0, 3)]
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("kind", [MemoryCorpus, FileCorpus])
def test_files_with_nan_and_empty_files_are_named(tmp_path: Path, kind: type[FilesCorpus]) -> None:
    audio, rate = soundfile.read(CLIP, dtype="float32", frames=48_000)
    soundfile.write(tmp_path / "good.wav", audio, rate)
    audio[20_000] = np.nan
    soundfile.write(tmp_path / "nan.wav", audio, rate, subtype="FLOAT")
    audio[20_000] = np.inf
    soundfile.write(tmp_path / "infinite.wav", np.stack([audio, audio], 1), rate, subtype="FLOAT")
    soundfile.write(tmp_path / "empty.wav", audio[:0], rate)
    corpus = kind(tmp_path, 24_000)
    crops = corpus.read(np.linspace(0, 0.999, 50), 24_000)
    assert crops.isfinite().all()
    reasons = {Path(path).name: reason for path, reason in corpus.broken.items()}
    assert set(reasons) == {"nan.wav", "infinite.wav", "empty.wav"}
    for name in ("nan.wav", "infinite.wav"):
        assert f"a NaN or infinite sample at {20_000 / rate:.3f} s" in reasons[name]
    assert "holds no samples" in reasons["empty.wav"]
    for name in ("good", "nan", "infinite"):
        (tmp_path / f"{name}.wav").unlink()
    with pytest.raises(UsageError, match=r"none of the 1 files.*holds no samples"):
        kind(tmp_path, 24_000)


LOSSES = ("mel", "stft", "d", "adv", "fm", "rate_bits", "rate_weight")


def entries(folder: Path) -> dict[int, dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {line["step"]: {k: line[k] for k in LOSSES if k in line} for line in lines if "mel" in line}


@pytest.mark.slow
def test_two_processes_are_one_with_twice_the_batch(config: Path, tmp_path: Path) -> None:
    (tmp_path / "data" / "broken.wav").unlink()
    # A low learning rate: a code that float noise flips must not send the runs different ways.
    slow = ["optim.lr=1e-4", "optim.muon_lr=1e-4", "bf16=false", "steps=16", "log_every=2", "discriminator.start=0.25"]
    slow += ["loss.rate=0.01", "loss.rate_bits=4"]
    common = ["train", "-c", config, "--device", "cpu", *(word for setting in slow for word in ("--set", setting))]
    single = ["-m", "q2d2cli", *common, "-o", tmp_path / "one", "--set", "optim.batch_size=4"]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "q2d2cli"]
    double = [*launch, *common, "-o", tmp_path / "two", "--set", "optim.batch_size=2"]
    for arguments in (single, double):
        result = subprocess.run(
            [sys.executable, *map(str, arguments)],
            capture_output=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            timeout=300,
            check=False,
        )
        assert result.returncode == 0, result.stderr.decode()
    one, two = entries(tmp_path / "one"), entries(tmp_path / "two")
    assert list(one) == list(two) == list(range(2, 17, 2))
    assert {"fm", "rate_bits", "rate_weight"} <= one[16].keys()
    for step, losses in one.items():
        assert losses == pytest.approx(two[step], rel=2e-3), step


@pytest.mark.slow
def test_killed_run_goes_on_exactly(run: Run, config: Path, tmp_path: Path) -> None:
    (tmp_path / "data" / "broken.wav").unlink()
    assert run("train", "-c", config, "-o", tmp_path / "whole").returncode == 0
    killed = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, "-m", "q2d2cli", "train", "-c", config, "-o", killed],
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    deadline = time.monotonic() + 120
    while not (killed / "state.pt").exists():
        assert time.monotonic() < deadline, "nothing was saved"
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    result = run("train", "-c", config, "-o", killed, "--resume")
    assert result.returncode == 0, result.stderr.decode()
    expected, actual = entries(tmp_path / "whole"), entries(killed)
    assert actual == expected
