"""The public API on real speech: chunking, exact lengths, levels, errors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY

from q2d2cli import Codec, Q2D2Error, Tokens, UsageError, checkpoints
from q2d2cli.audio import Resampler
from q2d2cli.evaluation.metrics import SPEECH_RATE, stoi
from q2d2cli.models.config import (
    ModelConfig,
    QuantizerConfig,
    SeanetEncoderConfig,
    SpectralEncoderConfig,
    VocosDecoderConfig,
)
from q2d2cli.models.model import CodecModel

Clip = tuple[np.ndarray, int]


@pytest.fixture(scope="session")
def long_speech(clip: Clip) -> np.ndarray:
    """35 s at 24 kHz; every repetition is different by its level and its offset to the frames."""
    audio = Resampler(clip[1], 24_000, 1).push(clip[0][None], last=True)[0]
    return np.concatenate([audio, 0.5 * audio[:-37], 0.25 * audio[11:], 0.7 * audio[: 5 * 24_000]])


@pytest.mark.parametrize("seconds", [1.0, 5.0, 30.0])
def test_chunks_give_the_tokens_of_the_whole_file(speech: Codec, long_speech: np.ndarray, seconds: float) -> None:
    whole = speech.encode(long_speech, 24_000, chunk_seconds=None)
    chunked = speech.encode(long_speech, 24_000, chunk_seconds=seconds)
    agreement = (whole.tokens == chunked.tokens).double().mean().item()
    assert agreement >= 0.999
    # The same holds on the way back: no click where two chunks meet.
    difference = speech.decode(whole, chunk_seconds=None) - speech.decode(whole, chunk_seconds=seconds)
    assert difference.abs().max() < 1e-4


def test_pieces_of_any_size_give_the_same_tokens_and_audio(tiny_codec: Codec, clip: Clip) -> None:
    audio, rate = clip[0][None, :40_000], clip[1]
    expected = tiny_codec.encode(audio, rate, chunk_seconds=None)
    rng = np.random.default_rng(1)
    encoder = tiny_codec.stream_encoder(rate, chunk_seconds=0.1)
    parts, position = [], 0
    while position < audio.shape[1]:
        size = int(rng.integers(0, 4000))
        parts += encoder.push(audio[:, position : position + size])
        position += size
    parts += encoder.finish()
    indices = np.concatenate(parts, axis=1)
    assert (indices == expected.indices.numpy()).mean() >= 0.999
    assert indices.shape == tuple(expected.indices.shape)

    decoder = tiny_codec.stream_decoder(expected.header, chunk_seconds=0.1)
    pieces, position = [], 0
    while position < expected.indices.shape[1]:
        size = int(rng.integers(1, 200))
        pieces += decoder.push(expected.indices.numpy()[:, position : position + size])
        position += size
    pieces += decoder.finish(expected.num_samples)
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), tiny_codec.decode(expected, None), atol=1e-5)


@pytest.mark.parametrize(
    "encoder",
    [
        ModelConfig().encoder,
        SpectralEncoderConfig(dim=16, hidden=16, layers=3, stride=3, window=576),
        SpectralEncoderConfig(dim=16, hidden=16, layers=3, tokens=2),
        SeanetEncoderConfig(filters=4, lstm_layers=0),
        SeanetEncoderConfig(strides=(6, 5, 5, 3), filters=2, lstm_layers=0),
    ],
)
def test_encoder_context_covers_its_receptive_field(encoder: SeanetEncoderConfig | SpectralEncoderConfig) -> None:
    torch.manual_seed(0)
    strided = encoder.strides == (6, 5, 5, 3) if isinstance(encoder, SeanetEncoderConfig) else encoder.stride == 3
    hop = 450 if strided else 144
    model = CodecModel(ModelConfig(hop=hop, feature_dim=8, encoder=encoder)).double()
    context = model.encoder_context
    assert context is not None
    frames, at = 4 * context + 9, 2 * context + 4
    audio = torch.randn(1, frames * hop, dtype=torch.float64)
    nudged = audio.clone()
    # Everything beyond the context changes, and the frame must not notice.
    nudged[:, : (at - context) * hop] += 1
    nudged[:, (at + context + 1) * hop :] -= 1
    with torch.inference_mode():
        if not isinstance(encoder, SeanetEncoderConfig):
            model = model.float()
        a, b = (model.encoder(x.to(next(model.parameters()).dtype))[0, at] for x in (audio, nudged))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


@pytest.mark.parametrize("framing", [{}, {"stride": 3, "window": 64}, {"tokens": 2, "window": 192}])
def test_decoder_context_is_its_receptive_field(framing: dict[str, int]) -> None:
    torch.manual_seed(0)
    decoder = VocosDecoderConfig(dim=16, hidden=16, layers=3, **framing)
    model = CodecModel(ModelConfig(hop=48, feature_dim=8, decoder=decoder))
    context = model.decoder_context
    assert context is not None
    at, before, after = 2 * context, 0, 0
    # Of tokens that share an inner frame the first sees further ahead, the last further back.
    for token in range(at, at + decoder.tokens):
        features = torch.randn(1, 4 * context, 8, requires_grad=True)
        model.decoder(features)[0, token * 48 : (token + 1) * 48].abs().sum().backward()
        assert features.grad is not None
        touched = features.grad[0].abs().sum(-1).nonzero().flatten()
        before, after = max(before, int(token - touched.min())), max(after, int(touched.max() - token))
    assert context - decoder.tokens < min(before, after) <= max(before, after) <= context


@pytest.mark.parametrize("samples", [24_000, 24_000 + 72, 24_000 + 100, 70, 1])
def test_tokens_that_share_inner_frames_do_not_depend_on_chunks(clip: Clip, samples: int) -> None:
    torch.manual_seed(0)
    config = ModelConfig(
        hop=72,
        feature_dim=16,
        encoder=SpectralEncoderConfig(dim=16, hidden=16, layers=3, tokens=2),
        decoder=VocosDecoderConfig(dim=16, hidden=16, layers=3, tokens=2),
    )
    codec = Codec(CodecModel(config).eval(), b"12345678")
    audio = clip[0][24_000 : 24_000 + samples]
    whole = codec.encode(audio, 24_000, None)
    assert whole.indices.shape[1] == -(-samples // 72)
    expected = codec.decode(whole, None)
    assert expected.shape == (1, samples)
    for chunk in (0.1, 0.111, 0.333):
        chunked = codec.encode(audio, 24_000, chunk)
        assert (whole.indices == chunked.indices).float().mean() > 0.999
        torch.testing.assert_close(codec.decode(whole, chunk), expected, rtol=0, atol=1e-5)


def test_unbounded_layers_have_no_context(clip: Clip) -> None:
    config = ModelConfig(
        hop=48,
        feature_dim=32,
        encoder=SeanetEncoderConfig(strides=(4, 3, 2, 2), filters=2, lstm_layers=1),
        decoder=VocosDecoderConfig(dim=32, hidden=32, layers=1, attention=True, norm_embeddings=4),
    )
    codec = Codec(CodecModel(config).eval(), b"12345678")
    assert codec.model.encoder_context is None
    assert codec.model.decoder_context is None
    # They get everything at once, whatever the chunk size.
    audio, rate = clip[0][:20_000], clip[1]
    whole, chunked = codec.encode(audio, rate, None), codec.encode(audio, rate, 0.1)
    assert torch.equal(whole.indices, chunked.indices)
    assert codec.decode(whole, 0.1).shape == (1, 20_000)


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 24000, 32000, 44100, 48000, 96000, 44101, 1000, 384000])
def test_every_length_comes_back_exactly(tiny_codec: Codec, rate: int) -> None:
    hop = tiny_codec.config.hop
    rng = np.random.default_rng(0)
    for length in (1, 2, hop - 1, hop, hop + 1, 1000):
        for channels in range(1, min(length, 2) + 1):
            waveform = rng.normal(0, 0.1, (channels, length)).astype(np.float32)
            tokens = tiny_codec.encode(waveform, rate)
            assert tokens.indices.shape[1] == -(-length * 24_000 // (rate * hop))
            assert tiny_codec.decode(tokens).shape == (channels, length)


@pytest.mark.parametrize("length", [1, 143, 144, 145])
def test_lengths_around_the_hop_with_the_shipped_model(speech: Codec, clip: Clip, length: int) -> None:
    waveform = torch.from_numpy(clip[0][20_000 : 20_000 + length])
    for rate in (24_000, clip[1]):
        assert speech.decode(speech.encode(waveform, rate)).shape == (1, length)


@pytest.mark.parametrize(
    ("kind", "levels"),
    [
        ("hexagonal", (5, 5)),
        ("fsq", (8, 5, 5)),
        ("vq", (32,)),
        ("rvq", (8, 8, 8)),
        ("body-centred", (5,) * 3),
        ("e8", (3,) * 8),
    ],
)
def test_files_of_every_quantizer(clip: Clip, tmp_path: Path, kind: str, levels: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    config = TINY.model_copy(update={"name": kind, "quantizer": QuantizerConfig(kind=kind, levels=levels)})
    model = CodecModel(config)
    with torch.no_grad():
        model.encoder.out.weight.mul_(50)  # spreads the codes
    model(torch.from_numpy(clip[0][None, :24_000]))  # k-means finds the first codebooks
    checkpoints.save(tmp_path / kind, config, model.state_dict())
    codec = Codec.from_pretrained(tmp_path / kind, device="cpu")
    tokens = codec.encode(clip[0][:16_000], clip[1])
    tokens.save(tmp_path / "a.q2d")
    loaded = Tokens.load(tmp_path / "a.q2d")
    assert (loaded.header.quantizer.kind, loaded.header.quantizer.levels) == (kind, levels)
    assert torch.equal(loaded.tokens, tokens.tokens)
    assert len(loaded.tokens.unique()) > 3
    assert torch.equal(codec.decode(loaded), codec.decode(tokens))


def test_each_channel_is_coded_alone(tiny_codec: Codec, clip: Clip) -> None:
    left, right = clip[0][:16_000], clip[0][16_000:32_000]
    both = tiny_codec.encode(np.stack([left, right]), clip[1])
    assert torch.equal(both.indices[0], tiny_codec.encode(left, clip[1]).indices[0])
    assert torch.equal(both.indices[1], tiny_codec.encode(right, clip[1]).indices[0])


def test_speech_comes_back_intelligible(speech: Codec, clip: Clip) -> None:
    audio, rate = clip
    assert rate == SPEECH_RATE
    decoded = speech.decode(speech.encode(audio, rate))[0].numpy()
    quality = stoi(audio, decoded)
    assert quality is not None
    assert quality > 0.85


@pytest.mark.parametrize("gain_db", [0, -12, -24, -36])
def test_loudness_comes_back(speech: Codec, clip: Clip, gain_db: int) -> None:
    audio = clip[0] * 10 ** (gain_db / 20)
    decoded = speech.decode(speech.encode(audio, clip[1]))[0].numpy()
    assert abs(10 * np.log10((decoded**2).mean() / (audio**2).mean())) < 1.5


def test_silence_comes_back_as_silence(speech: Codec) -> None:
    decoded = speech.decode(speech.encode(np.zeros(48_000, np.float32), 24_000))
    assert decoded.abs().max() < 10 ** (-60 / 20)


def test_token_ids_make_the_round_trip(tiny_codec: Codec, clip: Clip) -> None:
    tokens = tiny_codec.encode(clip[0][:12_000], clip[1])
    ids = tokens.tokens
    assert ids.min() >= 0
    assert ids.max() < tiny_codec.quantizer.codebook_size
    again = tiny_codec.tokens(ids, num_samples=12_000, sample_rate=clip[1])
    assert torch.equal(again.indices, tokens.indices)
    assert torch.equal(tiny_codec.decode(again), tiny_codec.decode(tokens))
    assert tiny_codec.decode(tiny_codec.tokens(ids[0])).shape == (1, ids.shape[1] * tiny_codec.config.hop)
    with pytest.raises(UsageError, match="fewer than 99999"):
        tiny_codec.tokens(ids, num_samples=99_999)
    with pytest.raises(ValueError, match=str(tiny_codec.quantizer.codebook_size)):
        tiny_codec.tokens(torch.tensor([tiny_codec.quantizer.codebook_size]))


def test_saved_tokens_load_without_the_model(tiny_codec: Codec, clip: Clip, tmp_path: Path) -> None:
    tokens = tiny_codec.encode(np.stack([clip[0][:9001], clip[0][1:9002]]), clip[1])
    tokens.save(tmp_path / "a.q2d")
    loaded = Tokens.load(tmp_path / "a.q2d")
    assert loaded.header == tokens.header
    assert torch.equal(loaded.indices, tokens.indices)
    assert (loaded.num_samples, loaded.sample_rate) == (9001, clip[1])
    with pytest.raises(UsageError, match="cannot read"):
        Tokens.load(tmp_path / "none.q2d")


def test_other_weights_are_refused(tiny_codec: Codec, clip: Clip) -> None:
    tokens = tiny_codec.encode(clip[0][:1000], clip[1])
    foreign = Tokens(tokens.indices, replace(tokens.header, fingerprint=b"\0" * 8, model="other"))
    with pytest.raises(Q2D2Error, match="encoded with model 'other', weights 0000000000000000"):
        tiny_codec.decode(foreign)


@pytest.mark.parametrize(
    ("waveform", "message"),
    [
        (np.zeros(0, np.float32), "empty"),
        (np.zeros((2, 0), np.float32), "empty"),
        (np.array([0, np.nan], np.float32), "NaN"),
        (np.array([0, np.inf], np.float32), "infinite"),
    ],
)
def test_bad_data_is_refused(tiny_codec: Codec, waveform: np.ndarray, message: str) -> None:
    with pytest.raises(Q2D2Error, match=message):
        tiny_codec.encode(waveform, 16_000)


@pytest.mark.parametrize(
    "waveform",
    [
        np.zeros((1, 1, 5), np.float32),
        np.float32(0.5),
        np.zeros(5, np.int8),
        np.zeros(5, np.int64),
        np.zeros(5, np.uint16),
        np.zeros(5, bool),
        np.zeros(5, complex),
        np.array(["a", "b"]),
        torch.zeros(5, dtype=torch.bool),
        torch.zeros(()),
    ],
)
def test_wrong_shape_or_type_is_refused(tiny_codec: Codec, waveform: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected floating point"):
        tiny_codec.encode(waveform, 16_000)


def test_devices(tiny: Path) -> None:
    assert Codec.from_pretrained(tiny, device="cpu").device.type == "cpu"
    assert Codec.from_pretrained(tiny).device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(UsageError, match="unknown device 'nonsense'"):
        Codec.from_pretrained(tiny, device="nonsense")
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="'cuda' is not available here"):
            Codec.from_pretrained(tiny, device="cuda")
