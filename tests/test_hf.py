"""`Q2D2Model`: the conventions of transformers, the codes and the audio of `Codec`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    DacConfig,
    DacFeatureExtractor,
    DacModel,
    EncodecConfig,
    EncodecFeatureExtractor,
    EncodecModel,
    MimiConfig,
    MimiModel,
)

from q2d2cli import Codec
from q2d2cli.hf import Q2D2Config, Q2D2FeatureExtractor, Q2D2Model

Clip = tuple[np.ndarray, int]


@pytest.fixture(scope="module")
def model(tiny: Path) -> Q2D2Model:
    return Q2D2Model.from_pretrained(tiny)


@pytest.fixture(scope="module")
def saved(model: Q2D2Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "tiny"
    model.save_pretrained(folder)
    Q2D2FeatureExtractor(model.config.sampling_rate).save_pretrained(folder)
    return folder


def test_codes_and_audio_are_the_codecs(model: Q2D2Model, tiny_codec: Codec, clip: Clip) -> None:
    audio = torch.from_numpy(clip[0][24_000:48_123])
    tokens = tiny_codec.encode(audio, 24_000)
    encoded = model.encode(audio[None, None])
    assert torch.equal(encoded.audio_codes[0].T, tokens.indices[0])
    assert encoded.audio_codes_mask is None
    decoded = model.decode(encoded.audio_codes).audio_values
    assert decoded.shape == (1, 1, tokens.indices.shape[1] * TINY.hop)
    torch.testing.assert_close(decoded[0, 0, : len(audio)], tiny_codec.decode(tokens)[0])
    whole = model(audio[None, None])
    assert torch.equal(whole.audio_codes, encoded.audio_codes)
    assert whole.audio_values.shape == (1, 1, len(audio))
    # Codes can be learned from: no tensor of inference mode.
    table = torch.nn.Embedding(model.config.codebook_size, 4)
    table(encoded.audio_codes).sum().backward()


def test_padding_changes_nothing(model: Q2D2Model, clip: Clip) -> None:
    clips = [clip[0][24_000:31_000], clip[0][:5000]]
    inputs = Q2D2FeatureExtractor(24_000)(clips, sampling_rate=24_000, return_tensors="pt")
    assert inputs["input_values"].shape == (2, 1, 7000)
    encoded = model.encode(**inputs)
    counts = [-(-len(audio) // TINY.hop) for audio in clips]
    assert encoded.audio_codes_mask.sum(-1).tolist() == counts
    decoded = model.decode(encoded.audio_codes, inputs["padding_mask"]).audio_values
    assert decoded.shape == (2, 1, 7000)
    for number, (audio, count) in enumerate(zip(clips, counts, strict=True)):
        alone = model.encode(torch.from_numpy(audio)[None, None]).audio_codes
        assert torch.equal(encoded.audio_codes[number, :, :count], alone[0])
        assert not encoded.audio_codes[number, :, count:].any()
        expected = model.decode(alone).audio_values[0, 0, : len(audio)]
        torch.testing.assert_close(decoded[number, 0, : len(audio)], expected)
        assert not decoded[number, 0, len(audio) :].any()
    codes, mask = model.encode(**inputs, return_dict=False)
    assert torch.equal(codes, encoded.audio_codes)
    assert torch.equal(mask, encoded.audio_codes_mask)


def test_the_auto_classes_load_what_was_saved(saved: Path, model: Q2D2Model, clip: Clip) -> None:
    loaded = AutoModel.from_pretrained(saved)
    assert type(loaded) is Q2D2Model
    assert not loaded.training
    for (name, mine), (other, theirs) in zip(model.named_buffers(), loaded.named_buffers(), strict=True):
        assert name == other
        assert torch.equal(mine, theirs), name
    audio = torch.from_numpy(clip[0][:24_000])[None, None]
    assert torch.equal(loaded.encode(audio).audio_codes, model.encode(audio).audio_codes)
    torch.testing.assert_close(loaded(audio).audio_values, model(audio).audio_values)
    config = AutoConfig.from_pretrained(saved)
    assert type(config) is Q2D2Config
    assert config.model == TINY
    assert (config.sampling_rate, config.hop_length, config.num_quantizers) == (24_000, 48, 2)
    assert config.codebook_sizes == (41, 13)
    assert type(AutoFeatureExtractor.from_pretrained(saved)) is Q2D2FeatureExtractor


def test_what_does_not_fit_is_named(model: Q2D2Model) -> None:
    with pytest.raises(ValueError, match=r"expected \(batch, 1, samples\)"):
        model.encode(torch.zeros(1, 2, 100))
    with pytest.raises(ValueError, match="padding_mask has shape"):
        model.encode(torch.zeros(1, 1, 100), torch.ones(1, 99))
    with pytest.raises(ValueError, match="pad clips on the right"):
        model.encode(torch.zeros(1, 1, 3), torch.tensor([[0, 1, 1]]))
    with pytest.raises(ValueError, match="is empty"):
        model.encode(torch.zeros(1, 1, 3), torch.zeros(1, 3))
    with pytest.raises(ValueError, match="index 41 is out of range"):
        model.decode(torch.full((1, 2, 5), 41))
    with pytest.raises(ValueError, match="expected \\(batch, num_quantizers, frames\\)"):
        model.decode(torch.zeros(2, 5, dtype=torch.long))
    with pytest.raises(ValueError, match="colour"):
        Q2D2Config(codec={"colour": "blue"})
    with pytest.raises(TypeError, match="the model is float16: keep it in float32"):
        Q2D2Model(model.config).half().encode(torch.zeros(1, 1, 100).half())


def test_one_script_runs_over_four_codecs(saved: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    small = {"num_filters": 4, "upsampling_ratios": [4, 2], "codebook_size": 16}
    width = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    models = {
        "encodec": (
            EncodecModel(EncodecConfig(**small, hidden_size=16, codebook_dim=16, num_lstm_layers=1)),
            EncodecFeatureExtractor(sampling_rate=24_000),
        ),
        "dac": (
            DacModel(
                DacConfig(
                    encoder_hidden_size=8,
                    decoder_hidden_size=32,
                    downsampling_ratios=[2, 4],
                    upsampling_ratios=[4, 2],
                    n_codebooks=2,
                    codebook_size=16,
                    codebook_dim=4,
                )
            ),
            DacFeatureExtractor(sampling_rate=16_000, hop_length=8),
        ),
        "mimi": (
            MimiModel(
                MimiConfig(
                    **small,
                    **width,
                    codebook_dim=16,
                    vector_quantization_hidden_dimension=16,
                    num_key_value_heads=2,
                    head_dim=8,
                    num_quantizers=4,
                    frame_rate=1500,
                    upsample_groups=16,
                )
            ),
            EncodecFeatureExtractor(sampling_rate=24_000),
        ),
    }
    for name, (codec, extractor) in models.items():
        codec.save_pretrained(tmp_path / name)
        extractor.save_pretrained(tmp_path / name)
    result = subprocess.run(
        [
            sys.executable,
            ROOT / "tests" / "examples" / "audio_tokenizers.py",
            *map(str, (tmp_path / n for n in models)),
            saved,
        ],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    names = [line.partition(":")[0] for line in result.stdout.splitlines()]
    assert names == ["EncodecModel", "DacModel", "MimiModel", "Q2D2Model"]
