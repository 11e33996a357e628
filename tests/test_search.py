"""The search for better tokens: what it gains on real speech, and what it must leave alone."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import CLIP, ROOT, TINY, Run

from q2d2cli import Codec, Q2D2Error, Tokens, UsageError, checkpoints
from q2d2cli.audio import Resampler
from q2d2cli.container.coding import library
from q2d2cli.evaluation.codecs import open_subject
from q2d2cli.losses import MelLoss, PesqLoss
from q2d2cli.models.config import QuantizerConfig
from q2d2cli.models.model import CodecModel
from q2d2cli.search import Search
from q2d2cli.training.scores import measure
from q2d2cli.transcode import encode_file

RATE = 24_000
TORCH = ("--runtime", "torch")
"""A search needs gradients, whatever $Q2D2_RUNTIME says."""


@pytest.fixture(scope="module")
def voice(clip: tuple[np.ndarray, int]) -> np.ndarray:
    """Three seconds at the models' rate, in which the encoder leaves much to find."""
    return Resampler(clip[1], RATE, 1).push(clip[0][None], last=True)[0, 2 * RATE : 5 * RATE]


def quality(codec: Codec, tokens: Tokens, voice: np.ndarray) -> dict[str, float]:
    decoded, original = codec.decode(tokens), torch.from_numpy(voice)[None]
    return {**measure(("pesq", "stoi"), RATE, original, decoded), "mel": MelLoss(RATE)(decoded, original).item()}


@pytest.fixture(scope="module")
def at_once(speech: Codec, voice: np.ndarray) -> dict[str, float]:
    return quality(speech, speech.encode(voice, RATE), voice)


@pytest.mark.slow
@pytest.mark.parametrize("chunk_seconds", [None, 1.0])
def test_speech_gets_nearer_to_the_recording(
    speech: Codec, voice: np.ndarray, at_once: dict[str, float], chunk_seconds: float | None
) -> None:
    searched = quality(speech, speech.encode(voice, RATE, chunk_seconds, effort=10), voice)
    assert searched["pesq"] > at_once["pesq"] + 0.1
    assert searched["stoi"] > at_once["stoi"] - 0.003
    assert searched["mel"] < at_once["mel"] - 0.01


@pytest.mark.slow
def test_what_is_gained_is_gained_wherever_the_frames_begin(speech: Codec, voice: np.ndarray) -> None:
    disturbance, original = PesqLoss(RATE), torch.from_numpy(voice)[None]
    at_once, searched = (speech.decode(speech.encode(voice, RATE, effort=effort)) for effort in (0, 10))
    gains = [
        (disturbance(at_once, original, shift) - disturbance(searched, original, shift)).item()
        for shift in (0, 0.25, 0.5, 0.75)
    ]
    assert min(gains) > 0.45 * max(gains)


def test_no_effort_takes_what_the_encoder_gives(tiny_codec: Codec, voice: np.ndarray) -> None:
    assert torch.equal(
        tiny_codec.encode(voice, RATE, effort=0).indices, tiny_codec.model.encode(torch.from_numpy(voice)[None])
    )


def test_known_frames_stay(tiny_codec: Codec, voice: np.ndarray) -> None:
    audio = torch.from_numpy(voice[None, : 48 * 500])
    known = torch.randint(0, 9, (1, 100, 2))
    found = Search(tiny_codec.model, 3)(audio, known)
    assert found.shape == (1, 500, 2)
    assert torch.equal(found[:, :100], known)
    assert not torch.equal(found, tiny_codec.model.encode(audio))


def test_pieces_of_any_size_give_the_same_tokens(tiny_codec: Codec, voice: np.ndarray) -> None:
    expected = tiny_codec.encode(voice, RATE, 0.7, effort=2)
    encoder = tiny_codec.stream_encoder(RATE, chunk_seconds=0.7, effort=2)
    parts = [part for i in range(0, len(voice), 5003) for part in encoder.push(voice[None, i : i + 5003])]
    indices = np.concatenate([*parts, *encoder.finish()], axis=1)
    assert (indices == expected.indices.numpy()).mean() > 0.999
    assert indices.shape == tuple(expected.indices.shape)


def test_each_channel_is_searched_alone(tiny_codec: Codec, voice: np.ndarray) -> None:
    pair = np.stack([voice[:RATE], 0.1 * voice[RATE : 2 * RATE]])
    together = tiny_codec.encode(pair, RATE, effort=3).indices
    for channel in range(2):
        alone = tiny_codec.encode(pair[channel], RATE, effort=3).indices[0]
        assert (together[channel] == alone).double().mean() > 0.99


def test_silence_stays_silence(speech: Codec) -> None:
    silence = np.zeros(RATE, np.float32)
    assert speech.decode(speech.encode(silence, RATE, effort=4)).square().mean().sqrt() < 1e-3


def test_no_click_at_the_ends_and_pauses_stay_silent(speech: Codec, voice: np.ndarray) -> None:
    at, edge = int(1.3 * RATE), RATE // 50
    pause = np.concatenate([voice[at - RATE // 2 : at], np.zeros(RATE, np.float32), voice[at : at + RATE // 2]])
    after = speech.decode(speech.encode(pause, RATE, effort=4)).numpy()[0]
    for ends, near in ((slice(0, edge), slice(0, 5 * edge)), (slice(-edge, None), slice(-5 * edge, None))):
        assert np.abs(after[ends]).max() < 3 * (np.abs(pause[near]).max() + 0.002)
    assert np.sqrt(np.mean(after[RATE // 2 + RATE // 4 : RATE // 2 + 3 * RATE // 4] ** 2)) < 1e-3


def test_a_short_word_gets_nearer_too(speech: Codec, voice: np.ndarray) -> None:
    word = np.pad(voice[15_000:21_000], (0, 1200))
    original, mel = torch.from_numpy(word)[None], MelLoss(RATE)
    plain, searched = (speech.decode(speech.encode(word, RATE, effort=effort)) for effort in (0, 6))
    assert mel(searched, original) < mel(plain, original)


@pytest.mark.parametrize("samples", [1, 100, 5000])
def test_clips_shorter_than_the_losses_windows(tiny_codec: Codec, voice: np.ndarray, samples: int) -> None:
    tokens = tiny_codec.encode(voice[:samples], RATE, effort=2)
    assert tiny_codec.decode(tokens).shape == (1, samples)


def test_inside_inference_mode_and_without_traces_on_the_model(tiny_codec: Codec, voice: np.ndarray) -> None:
    with torch.inference_mode():
        inside = tiny_codec.encode(voice[:RATE], RATE, effort=2).indices
    assert torch.equal(inside, tiny_codec.encode(voice[:RATE], RATE, effort=2).indices)
    assert all(parameter.grad is None for parameter in tiny_codec.model.parameters())


@pytest.fixture(scope="module")
def picky(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a context model that finds every third point cheap."""
    folder = tmp_path_factory.mktemp("picky") / "picky"
    shutil.copytree(tiny, folder)
    tables = {}
    for j, size in enumerate(TINY.quantizer.spec().sizes):
        tables[f"table.{j}"] = np.tile(np.where(np.arange(size) % 3, 1, 99), (size + 1, 1)).astype(np.uint16)
    fingerprint = checkpoints.fingerprint(folder / checkpoints.WEIGHTS_NAME)
    library.save(folder / checkpoints.CONTEXT_NAME, "static", {"step": np.zeros(1, np.int32), **tables}, fingerprint)
    return folder


def coded_bytes(tokens: Tokens) -> int:
    file = io.BytesIO()
    tokens.save(file)
    return file.tell()


def test_bits_that_weigh_more_are_fewer(picky: Path, voice: np.ndarray) -> None:
    codec = Codec.from_pretrained(picky, "cpu")
    cheap = []
    for weight in (0.0, 3.0, 100.0):
        indices = codec.encode(voice[:RATE], RATE, effort=5, rate_weight=weight).indices
        cheap.append((indices % 3 == 0).double().mean().item())
    assert cheap[2] > cheap[1] + 0.01 > cheap[0] + 0.02


@pytest.mark.slow
def test_speech_takes_fewer_bits_and_still_gets_nearer(
    speech: Codec, voice: np.ndarray, at_once: dict[str, float]
) -> None:
    tokens = speech.encode(voice, RATE, effort=5, rate_weight=2.0)
    assert coded_bytes(tokens) < 0.98 * coded_bytes(speech.encode(voice, RATE))
    assert quality(speech, tokens, voice)["pesq"] > at_once["pesq"]


def test_lambda_on_the_command_line(run: Run, picky: Path, tmp_path: Path, voice: np.ndarray) -> None:
    source, target, cheap = tmp_path / "a.wav", tmp_path / "a.q2d", {}
    soundfile.write(source, voice[: RATE // 2], RATE)
    for weight in ("0", "100"):
        done = run("encode", source, target, "-m", picky, "--force", *TORCH, "--effort", "3", "--lambda", weight)
        assert done.returncode == 0, done.stderr
        cheap[weight] = (Tokens.load(target).indices % 3 == 0).double().mean()
    assert cheap["100"] > cheap["0"] + 0.1


def test_lambda_that_cannot_be(run: Run, picky: Path, tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "voices"
    folder.mkdir()
    for name in ("a", "b"):
        shutil.copy(CLIP, folder / f"{name}.wav")
    for options, words in (
        (("--lambda", "1"), "give an effort above 0"),
        (("--effort", "2", "--lambda", "inf"), "the rate weight (lambda) is inf"),
        (("--effort", "2", "--lambda", "nan"), "--lambda"),
        (("--effort", "2", "--lambda", "-1"), "--lambda"),
        (("--effort", "2", "--lambda", "1", "--model", tiny), "saves nothing in a packed payload"),
        (("--effort", "2", "--lambda", "1", "--robust"), "saves nothing in a robust payload"),
    ):
        done = run("encode", folder, "--out-dir", tmp_path / "out", "--model", picky, *TORCH, *options)
        assert (done.returncode, done.stderr.decode().count("\n")) == (2, 1), done.stderr
        assert words in done.stderr.decode()
    assert not list((tmp_path / "out").glob("*"))


def test_errors(tiny_codec: Codec, voice: np.ndarray) -> None:
    with pytest.raises(UsageError, match="effort is -1"):
        tiny_codec.encode(voice, RATE, effort=-1)
    fsq = CodecModel(TINY.model_copy(update={"quantizer": QuantizerConfig(kind="fsq", levels=(5, 5, 3, 3))}))
    with pytest.raises(UsageError, match="fsq"):
        Search(fsq, 1)


def test_a_missing_package_is_named() -> None:
    code = (
        "import sys; sys.modules['torch_pesq'] = None\n"
        "from q2d2cli.__main__ import main\n"
        "sys.argv[1:] = ['encode', sys.argv[1], '-', '--effort', '1', *sys.argv[2:]]; main()"
    )
    parts = [sys.executable, "-c", code, CLIP, *TORCH]
    result = subprocess.run(parts, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    lines = result.stderr.strip().splitlines()
    assert lines == ["q2d2: an effort above 0 needs torch_pesq: pip install 'q2d2[search]'"]
    assert not result.stdout


def test_the_command(run: Run, tiny: Path, tmp_path: Path, voice: np.ndarray) -> None:
    source, target = tmp_path / "voice.wav", tmp_path / "voice.q2d"
    soundfile.write(source, voice[:RATE], RATE)
    done = run("encode", source, target, "--model", tiny, *TORCH, "--effort", "2", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["frames"] == 500
    searched = Tokens.load(target)
    assert run("encode", source, target, "--model", tiny, *TORCH, "--force").returncode == 0
    assert not torch.equal(searched.indices, Tokens.load(target).indices)
    assert run("encode", source, target, *TORCH, "--effort", "-1", "--force").returncode == 2


def test_progress_tells_of_every_round(tiny_codec: Codec, tmp_path: Path, voice: np.ndarray) -> None:
    soundfile.write(tmp_path / "voice.wav", voice[:RATE], RATE)
    told: list[tuple[float, float | None]] = []
    encode_file(
        tiny_codec,
        tmp_path / "voice.wav",
        tmp_path / "v.q2d",
        lambda done, total, _: told.append((done, total)),
        effort=4,
    )
    assert told == [(0.25, 1.0), (0.5, 1.0), (0.75, 1.0), (1.0, 1.0), (1.0, 1.0)]


def test_eval_names_the_effort(tiny: Path, picky: Path, tiny_codec: Codec, voice: np.ndarray) -> None:
    plain, searched = (open_subject(f"q2d2:{tiny}{effort}", "cpu") for effort in ("", ":2"))
    weighed = open_subject(f"q2d2:{picky}:2:1.5", "cpu")
    assert weighed.name == "tiny, effort 2, lambda 1.5"
    assert ":2:1.5:context" in weighed.identity
    with pytest.raises(UsageError, match="saves nothing"):
        open_subject(f"q2d2:{tiny}:2:1.5", "cpu")
    assert (plain.name, searched.name) == ("tiny", "tiny, effort 2")
    assert plain.identity != searched.identity
    tokens = tiny_codec.encode(voice[:RATE], RATE, effort=2).indices[0].numpy()
    assert np.array_equal(searched.reconstruct(voice[:RATE], RATE, Path("x.wav")).indices, tokens)


def test_eval_refuses_an_effort_that_is_none(tiny: Path) -> None:
    with pytest.raises((UsageError, Q2D2Error)):
        open_subject(f"q2d2:{tiny}:much", "cpu")
