"""Metrics against the libraries, codecs side by side, `q2d2 eval` from folder to report."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
import torch
from conftest import CLIP, Run

from q2d2cli import checkpoints
from q2d2cli.audio import read_original
from q2d2cli.container.packing import pack
from q2d2cli.errors import Q2D2Error, UsageError
from q2d2cli.evaluation.clips import find_clips, spread
from q2d2cli.evaluation.codecs import open_subject
from q2d2cli.evaluation.metrics import METRICS, basis, score
from q2d2cli.evaluation.plots import rate_quality, spectrogram, used_band
from q2d2cli.evaluation.report import example, examples
from q2d2cli.evaluation.scoring import is_current, score_clip
from q2d2cli.evaluation.statistics import summarize
from q2d2cli.evaluation.subjects import CodecSubject, FolderSubject
from q2d2cli.evaluation.tables import score_table, to_html, to_markdown, to_rich

RATE = 16_000


@pytest.fixture(scope="module")
def pair() -> tuple[np.ndarray, np.ndarray]:
    """Three seconds of speech and the same with noise and a dull filter, `(samples,)` at 16 kHz."""
    speech = soundfile.read(CLIP, dtype="float32")[0][RATE : 4 * RATE]
    noise = np.random.default_rng(0).normal(0, 0.004, len(speech)).astype(np.float32)
    return speech, np.convolve(speech, [0.25, 0.5, 0.25], "same").astype(np.float32) + noise


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Two folders of real speech, one file too short and one silent, one that is no audio."""
    audio, rate = soundfile.read(CLIP, dtype="float32")
    folder = tmp_path / "corpus"
    for name, piece in {
        "a/one.wav": audio[: 2 * rate],
        "a/two.wav": audio[2 * rate : 4 * rate],
        "b/three.wav": audio[4 * rate : 6 * rate],
        "b/short.wav": audio[: rate // 20],
        "b/silent.wav": np.zeros(rate, np.float32),
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / name, piece, rate)
    (folder / "b/broken.wav").write_bytes(b"RIFF and nothing more")
    return folder


def test_pesq_and_stoi_are_the_libraries(pair: tuple[np.ndarray, np.ndarray]) -> None:
    from pesq import pesq
    from pystoi import stoi

    scores = score(["pesq", "stoi"], *pair, RATE).values
    assert scores["pesq"] == pytest.approx(pesq(RATE, *pair, "wb"), abs=1e-6)
    assert scores["stoi"] == pytest.approx(stoi(*pair, RATE), abs=1e-6)


def test_vuv_f1_is_torchcrepe(pair: tuple[np.ndarray, np.ndarray]) -> None:
    import librosa
    import torchaudio
    import torchcrepe

    voiced = []
    cut = [x[RATE // 2 : RATE + 200] for x in pair]
    for x in cut:
        _, periodicity = torchcrepe.predict(
            torch.from_numpy(x)[None], RATE, fmin=50, fmax=550, model="full", return_periodicity=True, pad=False
        )
        # WavTokenizer's own steps, its spectrogram by torchaudio.
        power = torchaudio.functional.spectrogram(
            torch.from_numpy(x), 0, torch.hann_window(1024), 1024, 160, 1024, 2.0, False, center=False
        ).numpy()
        frequencies = librosa.fft_frequencies(sr=RATE, n_fft=1024)[1:]
        level = librosa.perceptual_weighting(power[1:], frequencies).mean(0) - 20
        voiced.append((periodicity[0].numpy() >= 0.21) & (level >= -60))
    hits = (voiced[0] & voiced[1]).sum()
    precision, recall = hits / voiced[1].sum(), hits / voiced[0].sum()
    expected = 2 * precision * recall / (precision + recall)
    assert 0.5 < expected < 1  # neither trivial nor perfect
    assert METRICS["vuv_f1"].score(*cut) == pytest.approx(expected, abs=0.01)


def test_level_error_is_what_a_gain_makes() -> None:
    speech = np.random.default_rng(0).normal(0, 0.1, 24_000).astype(np.float32)
    level = METRICS["level"].score
    assert level(speech, speech) == 0
    assert level(speech, 0.5 * speech) == pytest.approx(6.02, abs=0.01)
    assert level(speech, 2 * speech) == pytest.approx(6.02, abs=0.01)
    assert level(speech, 0 * speech) == 100
    assert level(0 * speech, speech) is None


def test_lines_are_a_fixed_delay_where_the_recording_has_noise() -> None:
    rng = np.random.default_rng(0)
    speech, noise = rng.normal(0, 0.05, (2, 48_000))
    buzz = np.tile(rng.normal(0, 0.05, 150), 320)
    lines = METRICS["lines"].score
    assert lines(speech, speech) == pytest.approx(0, abs=1e-9)
    assert lines(speech, noise) < 0.05
    assert 0.8 < lines(speech, buzz) < 1.05
    assert 0.2 < lines(speech, 0.7 * buzz + 0.7 * noise) < 0.8
    # A buzz that the recording has, and silence, are no faults.
    assert lines(buzz, buzz + 0.01 * noise) < 0.05
    assert abs(lines(0 * speech, 0 * speech)) < 0.05
    assert lines(speech[:2000], speech[:2000]) is None


def test_si_sdr_of_a_known_mixture() -> None:
    rng = np.random.default_rng(0)
    speech, noise = rng.normal(size=(2, 16_000)).astype(np.float32)
    speech -= speech.mean()
    noise -= noise.mean()
    noise -= (noise @ speech) / (speech @ speech) * speech
    noise *= np.linalg.norm(speech) / np.linalg.norm(noise)
    assert METRICS["si_sdr"].score(speech, 3 * speech + 0.3 * noise) == pytest.approx(20.0, abs=1e-3)


def test_mel_distance_is_a_log_distance(pair: tuple[np.ndarray, np.ndarray]) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 24_000).astype(np.float32)
    assert METRICS["mel"].score(noise, noise) == 0
    assert METRICS["mel"].score(noise, 2 * noise) == pytest.approx(np.log(2), abs=1e-4)


def test_dnsmos_hears_noise(pair: tuple[np.ndarray, np.ndarray]) -> None:
    clean = METRICS["dnsmos"].score(pair[0], pair[0])
    noisy = METRICS["dnsmos"].score(pair[0], pair[0] + np.random.default_rng(0).normal(0, 0.05, len(pair[0])))
    assert clean is not None
    assert noisy is not None
    assert clean > noisy + 0.5


def test_long_signals_are_scored_in_pieces(pair: tuple[np.ndarray, np.ndarray]) -> None:
    long = [np.tile(x, 20) for x in pair]  # a minute
    short, whole = (score(["pesq"], *signals, RATE).values["pesq"] for signals in (pair, long))
    assert whole == pytest.approx(short, abs=0.4)


@pytest.mark.parametrize("length", [0, 100, 3000])
def test_metrics_are_undefined_rather_than_wrong_on_short_or_silent_signals(length: int) -> None:
    silence = np.zeros(max(length, 1), np.float32)
    for name in ("pesq", "stoi", "si_sdr"):
        assert METRICS[name].score(silence, silence) is None


def test_summaries() -> None:
    assert summarize([1.0, None, 3.0]) == {"mean": 2.0, "interval95": pytest.approx(12.7062, abs=1e-4), "n": 2}
    assert summarize([None]) == {"mean": None, "interval95": None, "n": 0}


def test_twenty_codecs_look_different_in_a_plot() -> None:
    mean = {"mean": 1.0, "interval95": 0.1}
    codecs = [
        {"name": f"codec {i}", "identity": str(i), "bit_rate": 1000.0 + i, "datasets": {"all": {"pesq": mean}}}
        for i in range(20)
    ]
    figure = rate_quality({"codecs": codecs, "metrics": ["pesq"]})
    assert figure is not None
    looks = {(c.lines[0].get_marker(), c.lines[0].get_color()) for c in figure.axes[0].containers}
    assert len(looks) == 20


def test_a_limit_takes_evenly_from_every_folder(corpus: Path) -> None:
    chosen = spread([clip.path for clip in find_clips(corpus)], 1)
    assert {path.parent.name for path in chosen} == {"a", "b"}
    assert len(chosen) == 2


def test_a_list_of_paths(corpus: Path) -> None:
    listing = corpus / "files.txt"
    listing.write_text(f"a/one.wav\n\n{corpus / 'b/three.wav'}\n")
    assert [clip.path for clip in find_clips(listing)] == [corpus / "a/one.wav", corpus / "b/three.wav"]


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg")
@pytest.mark.parametrize(("spec", "kbps"), [("opus:8", (6, 9)), ("codec2:3200", (3.1, 3.3)), ("speex:8", (7, 9))])
def test_external_codecs_come_back_in_time(spec: str, kbps: tuple[float, float]) -> None:
    speech, rate = soundfile.read(CLIP, dtype="float32")
    result = open_subject(spec, "cpu").reconstruct(speech, rate, Path("clip.wav"))
    assert result.audio.shape == speech.shape
    assert result.size.payload_bits is not None
    assert kbps[0] < result.size.payload_bits / 1000 / (len(speech) / rate) < kbps[1]
    # A delay of a frame would cost them more than this.
    assert score(["stoi"], speech, result.audio, rate).values["stoi"] > 0.85


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg")
def test_a_failing_tool_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "ffmpeg").write_text("#!/bin/sh\necho 'Unknown encoder' >&2; exit 1\n")
    (tmp_path / "ffmpeg").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(Q2D2Error, match="opus 6 kbit/s failed: Unknown encoder"):
        open_subject("opus:6", "cpu").reconstruct(np.zeros(RATE, np.float32), RATE, Path("x.wav"))


@pytest.mark.parametrize("spec", ["nosuch", "opus:x", "codec2:9999", "encodec:5", "mimi:99", "snac:2", "q2d2:nosuch"])
def test_unknown_codecs_are_named(spec: str) -> None:
    with pytest.raises(UsageError, match=re.escape(spec.partition(":")[2] or spec)):
        open_subject(spec, "cpu")


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hub cache with small models of the peers' architectures, random weights."""
    import snac
    import transformers

    torch.manual_seed(0)
    cache = tmp_path_factory.mktemp("hub")

    def place(repository: str) -> Path:
        base = cache / f"models--{repository.replace('/', '--')}"
        snapshot = base / "snapshots" / ("0" * 40)
        snapshot.mkdir(parents=True)
        (base / "refs").mkdir()
        (base / "refs" / "main").write_text("0" * 40)
        return snapshot

    encodec = transformers.EncodecConfig(num_filters=4, num_lstm_layers=1)
    transformers.EncodecModel(encodec).save_pretrained(place("facebook/encodec_24khz"))
    dac = transformers.DacConfig(
        sampling_rate=24_000,
        downsampling_ratios=[2, 4, 5, 8],
        upsampling_ratios=[8, 5, 4, 2],
        n_codebooks=32,
        encoder_hidden_size=8,
        decoder_hidden_size=32,
    )
    transformers.DacModel(dac).save_pretrained(place("descript/dac_24khz"))
    mimi = transformers.MimiConfig(num_hidden_layers=1, num_filters=4)
    transformers.MimiModel(mimi).save_pretrained(place("kyutai/mimi"))
    folder = place("hubertsiuzdak/snac_24khz")
    settings = {
        "sampling_rate": 24_000,
        "encoder_dim": 8,
        "encoder_rates": [2, 4, 8, 8],
        "decoder_dim": 64,
        "decoder_rates": [8, 8, 4, 2],
        "attn_window_size": None,
        "vq_strides": [4, 2, 1],
    }
    (folder / "config.json").write_text(json.dumps(settings))
    torch.save(snac.SNAC(**settings).state_dict(), folder / "pytorch_model.bin")
    return cache


@pytest.mark.slow
def test_neural_peers_run_and_have_their_bit_rates(run: Run, hub: Path, corpus: Path) -> None:
    specs = [part for spec in ("encodec:6", "dac:8", "mimi:8", "snac") for part in ("--codec", spec)]
    result = run(
        "eval", corpus / "a", *specs, "--metrics", "si_sdr", "--json", "-j", "1", environment={"HF_HUB_CACHE": str(hub)}
    )
    assert result.returncode == 0, result.stderr
    codecs = {codec["name"]: codec for codec in json.loads(result.stdout)["codecs"]}
    rates = {name: codec["bit_rate"] / 1000 for name, codec in codecs.items()}
    assert list(rates) == ["encodec 6.00 kbit/s", "dac 6.00 kbit/s", "mimi 1.10 kbit/s", "snac 0.98 kbit/s"]
    assert list(rates.values()) == pytest.approx([6.0, 6.0, 1.1, 0.98], abs=0.06)
    assert [codec["num_quantizers"] for codec in codecs.values()] == [8, 8, 8, 3]


def test_what_cannot_run_is_named_and_the_rest_goes_on(run: Run, corpus: Path, tiny: Path, tmp_path: Path) -> None:
    result = run(
        *("eval", corpus / "a", "--codec", f"q2d2:{tiny}", "--codec", "mimi:8", "--metrics", "utmos,stoi", "--json"),
        environment={"HF_HUB_CACHE": str(tmp_path)},
    )
    lines = result.stderr.decode().splitlines()
    assert result.returncode == 1
    assert [line for line in lines if "utmos left out" in line and "--utmos-weights" in line]
    assert [line for line in lines if "weights of mimi" in line]
    assert b"Traceback" not in result.stderr
    data = json.loads(result.stdout)
    assert data["metrics"] == ["stoi"]
    assert data["codecs"][0]["datasets"]["all"]["stoi"]["n"] == 2


def test_eval_from_folder_to_report(run: Run, corpus: Path, tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ("eval", corpus, "--codec", f"q2d2:{tiny}", "--codec", "original", "--metrics", "pesq,stoi,dnsmos,mel")
    result = run(*command, "--out", out)
    assert result.returncode == 1  # one file is broken
    assert [line for line in result.stderr.decode().splitlines() if "broken.wav" in line]
    assert "by dataset" in result.stdout.decode()

    data = json.loads((out / "results.json").read_text())
    tiny_row, original = data["codecs"]
    assert data["files"] == 5
    assert tiny_row["datasets"]["all"]["files"] == 5
    assert tiny_row["datasets"]["all"]["pesq"]["n"] == 3  # neither silence nor 50 ms
    assert tiny_row["datasets"]["a"]["pesq"]["n"] == 2
    assert original["datasets"]["all"]["pesq"]["n"] == 0
    assert original["datasets"]["all"]["dnsmos"]["n"] == 5
    assert tiny_row["tokens_per_second"] == 500
    assert tiny_row["file_bit_rate"] > tiny_row["bit_rate"]
    assert len(tiny_row["pair_entropy"]) == 2

    with (out / "scores.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 10
    mean = np.mean([float(x["stoi"]) for x in lines if x["codec"] == "tiny" and x["stoi"]])
    assert mean == pytest.approx(tiny_row["datasets"]["all"]["stoi"]["mean"], abs=1e-3)

    page = (out / "report.html").read_text()
    assert not re.search(r'(src|href)="(?!data:|#)', page)  # needs nothing from outside
    assert page.count("<audio") == 3 * 2
    assert not re.search(r">[±\s]*nan", page)
    assert (out / "rate-quality.svg").read_text().startswith("<svg")
    assert re.search(
        r"^\| tiny \| [\d.]+ \| 500\.0 \| [\d.]+ ± [\d.]+ \(n 3\) \|", (out / "table.md").read_text(), re.M
    )

    # Again: nothing is done twice, but for what has changed.
    state = out / "scores.jsonl"
    rows = [json.loads(line) for line in state.read_text().splitlines()]
    for row in rows:
        row["scores"]["stoi"] = 0.5
    state.write_text("".join(json.dumps(row) + "\n" for row in rows))
    shutil.copy(corpus / "a/two.wav", corpus / "a/one.wav")
    run(*command, "--out", out)
    again = json.loads((out / "results.json").read_text())["codecs"][0]["datasets"]
    assert again["b"]["stoi"]["mean"] == 0.5
    assert again["a"]["stoi"]["mean"] != 0.5


def test_the_report_plays_the_codes_that_were_scored(corpus: Path, tiny: Path) -> None:
    subject = open_subject(f"q2d2:{tiny}", "cpu")
    (clip,) = (c for c in find_clips(corpus) if c.path.name == "one.wav")
    (row,) = score_clip(clip, [subject], [])
    audio, rate = read_original(clip.path)
    decoded = subject.reconstruct(audio, rate, Path(row["clip"])).audio
    np.testing.assert_array_equal(example(subject, row, audio, rate), decoded)
    # A part of the clip: what comes before its end is the same.
    part = example(subject, row, audio[:rate], rate)
    assert len(part) == rate
    np.testing.assert_allclose(part[: rate // 2], decoded[: rate // 2], atol=1e-5)
    # Other codes, other sound: they do count. Without any, the clip is encoded again.
    row["codes"] = base64.b64encode(pack(np.zeros((row["frames"], 2), np.int64), subject.sizes)).decode()
    assert np.abs(example(subject, row, audio, rate) - decoded).max() > 1e-3
    row["codes"] = None
    np.testing.assert_array_equal(example(subject, row, audio, rate), decoded)


@pytest.mark.slow
def test_processes_do_not_change_scores(run: Run, corpus: Path, tiny: Path) -> None:
    results = [
        json.loads(
            run("eval", corpus, "--codec", f"q2d2:{tiny}", "--metrics", "stoi,si_sdr", "--json", "-j", jobs).stdout
        )
        for jobs in ("1", "2")
    ]
    assert results[0] == results[1]


def test_help_and_errors_name_every_metric(run: Run, tmp_path: Path) -> None:
    shown = run("eval", "--help").stdout.decode()
    refused = run("eval", "--metrics", "nonsense", tmp_path)
    assert refused.returncode == 2
    for name in (*METRICS, "rtf", "memory"):
        assert re.search(rf"\b{name}\b", shown)
        assert re.search(rf"\b{name}\b", refused.stderr.decode())


def test_pairs_of_folders(run: Run, corpus: Path, tmp_path: Path) -> None:
    (corpus / "b/broken.wav").unlink()
    degraded = tmp_path / "other-codec"
    shutil.copytree(corpus, degraded)
    audio, rate = soundfile.read(CLIP, dtype="float32")
    soundfile.write(degraded / "a/one.wav", audio[: 2 * rate + rate // 50], rate)  # a frame too long
    soundfile.write(degraded / "a/two.wav", audio[: 3 * rate], rate)  # another clip
    (degraded / "b/three.wav").unlink()
    soundfile.write(degraded / "b/three.flac", soxr.resample(audio[4 * rate : 6 * rate], rate, 44_100), 44_100)
    (degraded / "b/short.wav").unlink()
    result = run("eval", corpus, degraded, "--metrics", "pesq", "--json")
    data = json.loads(result.stdout)
    assert result.returncode == 1
    assert data["codecs"][0]["name"] == "other-codec"
    assert data["codecs"][0]["files"] == 3
    assert data["codecs"][0]["datasets"]["all"]["pesq"] == {
        "mean": pytest.approx(4.64, abs=0.02),
        "interval95": pytest.approx(0, abs=0.1),  # two values: 12.7 standard errors
        "n": 2,
    }
    lines = result.stderr.decode()
    assert "not the same clip" in lines
    assert "short.wav" in lines


def test_robust_payload_withstands_bit_errors_that_packed_does_not(run: Run, tmp_path: Path) -> None:
    command = (
        "eval",
        CLIP,
        "--codec",
        "q2d2:speech-3k",
        "--codec",
        "original",
        "--channel",
        "ber=0.003,0.01",
        "--json",
    )
    result = run(*command, "--metrics", "stoi", "--out", tmp_path / "out", "-j", "1")
    assert result.returncode == 0, result.stderr
    codecs = json.loads(result.stdout)["codecs"]
    stoi = {c["name"]: c["datasets"]["all"]["stoi"]["mean"] for c in codecs}
    name = checkpoints.find("speech-3k").config.name
    clean = stoi[name]
    for rate in ("0.003", "0.01"):
        robust, packed = (stoi[f"{name} ({mode}, bit errors {rate})"] for mode in ("robust", "packed"))
        assert clean > robust > packed + 0.01
    assert [c["bit_rate"] for c in codecs if "robust" in c["name"]] == pytest.approx([22 / 20 * 3333] * 2, rel=0.01)
    assert (tmp_path / "out/channel.svg").read_text().startswith("<svg")
    assert "Over a bad channel" in (tmp_path / "out/report.html").read_text()


@pytest.mark.slow
def test_speed_and_memory(run: Run, corpus: Path, tiny: Path) -> None:
    result = run("eval", corpus / "a", "--codec", f"q2d2:{tiny}", "--metrics", "stoi,rtf,memory", "--json")
    codec = json.loads(result.stdout)["codecs"][0]
    assert codec["rtf_encode"] > 0
    assert codec["rtf_decode"] > 0
    assert codec["memory_mb"] > 50


def test_listening_test_and_results_from_the_command(run: Run, corpus: Path, tiny: Path, tmp_path: Path) -> None:
    codecs = ("--codec", f"q2d2:{tiny}", "--codec", "q2d2:speech-3k")
    page = tmp_path / "page"
    built = run("listening", "build", corpus / "a", page, *codecs, "--limit", "1")
    assert built.returncode == 0, built.stderr
    assert str(page / "index.html") in built.stderr.decode()
    assert len(list((page / "audio").iterdir())) == 5  # reference, hidden reference, anchor, two codecs
    again = run("listening", "build", corpus / "a", page, *codecs, "--limit", "1")
    assert again.returncode == 2
    assert "not empty" in again.stderr.decode()

    listener = {
        **{
            "format": "q2d2-listening-1",
            "test": "t",
            "kind": "cmos-q",
            "title": "T",
            "listener": "Ada",
            "session": "s",
        },
        "finished": "2026-01-01T00:00:00Z",
        "ratings": [
            {"trial": "a", "system": "x", "baseline": "y", "score": 2, "position": "B", "page": 1, "seconds": 3.0}
        ],
    }
    (tmp_path / "ada.json").write_text(json.dumps(listener))
    summed = run("listening", "results", tmp_path / "ada.json", "--json")
    assert json.loads(summed.stdout)["cmos-q"]["systems"]["x"]["mean"] == 2
    assert "CMOS-Q against y" in run("listening", "results", tmp_path / "ada.json").stdout.decode()
    damaged = tmp_path / "damaged.json"
    damaged.write_text("{")
    result = run("listening", "results", damaged)
    assert result.returncode == 1
    assert result.stderr.decode().count("\n") == 1


def test_usage_errors(run: Run, corpus: Path, tmp_path: Path) -> None:
    for arguments, message in (
        (("--metrics", "pesq,nosuch"), "unknown metric 'nosuch': choose from utmos, dnsmos, pesq"),
        (("--codec", "nosuch"), "unknown codec 'nosuch'"),
        (("--channel", "ber=2"), "cannot understand --channel 'ber=2'"),
        (("--codec", "original", "--channel", "ber=0.1"), "--channel needs a model"),
        (("--metrics", "utmos", "--utmos-weights", tmp_path / "none.pt"), "no UTMOS weights at"),
    ):
        result = run("eval", corpus, *arguments)
        assert result.returncode == 2
        assert message in result.stderr.decode()
        assert result.stderr.decode().count("\n") == 1
    empty = tmp_path / "empty"
    empty.mkdir()
    for source in (empty, tmp_path / "missing"):
        result = run("eval", source)
        assert result.returncode == 2
        assert result.stderr.decode().count("\n") == 1


def test_a_clip_that_breaks_a_metric_or_a_reader_ends_nothing(run: Run, corpus: Path, tmp_path: Path) -> None:
    (corpus / "b/broken.wav").unlink()
    degraded = tmp_path / "decoded"
    shutil.copytree(corpus, degraded)
    audio, rate = soundfile.read(corpus / "a/one.wav", dtype="float32")
    soundfile.write(degraded / "a/one.wav", 0 * audio, rate)
    (degraded / "a/two.wav").write_bytes(b"RIFF")
    command = (
        "eval",
        corpus,
        degraded,
        "--metrics",
        "pesq,stoi,si_sdr,dnsmos,mel,level,lines",
        "--out",
        tmp_path / "o",
    )
    for jobs in ("2", "1"):  # again, from the state of the first
        result = run(*command, "-j", jobs)
        assert result.returncode == 1
        assert b"Traceback" not in result.stderr
        assert "two.wav" in result.stderr.decode()
    data = json.loads((tmp_path / "o/results.json").read_text())
    (codec,) = data["codecs"]
    assert codec["datasets"]["all"]["si_sdr"]["n"] == 3  # one.wav, whose decoded file is silent; three and short
    assert any("two.wav" in reason for reason in codec["failed"])
    report = (tmp_path / "o/report.html").read_text()
    assert not re.search(r">[±\s]*nan", report)


def test_a_metric_that_raises_is_a_dash_with_its_reason(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speech = soundfile.read(corpus / "a/one.wav", dtype="float32")[0]
    for broken in (lambda a, b: 1 / 0, lambda a, b: float("nan")):
        monkeypatch.setitem(METRICS, "lines", replace(METRICS["lines"], score=broken))
        scored = score(["lines", "stoi"], speech, speech, RATE)
        assert scored.values["lines"] is None
        assert scored.values["stoi"] == pytest.approx(1, abs=1e-3)
        assert set(scored.problems) == {"lines"}


def test_what_a_cached_score_depends_on_is_in_its_key(corpus: Path, tmp_path: Path) -> None:
    degraded = tmp_path / "decoded"
    shutil.copytree(corpus, degraded)
    (clip,) = (c for c in find_clips(corpus) if c.path.name == "one.wav")
    subject = FolderSubject(degraded)
    (row,) = score_clip(clip, [subject], ["stoi", "si_sdr"])
    row = json.loads(json.dumps(row))
    assert is_current(row, clip, subject, ["stoi"])
    assert is_current(row, clip, subject, ["si_sdr", "stoi"])
    assert not is_current(row, clip, subject, ["stoi", "pesq"])
    # What is said counts for the error rate alone.
    assert is_current(row, replace(clip, text="he said"), subject, ["stoi"])
    assert basis("wer", "he said") != basis("wer", "she said") != basis("wer", None)
    # Other decoded audio under the same name, then another recording.
    for folder in (degraded, corpus):
        shutil.copy(corpus / "a/two.wav", folder / "a/one.wav")
        os.utime(folder / "a/one.wav", ns=(1, 1))
        assert not is_current(row, clip, subject, ["stoi"])
        (row,) = score_clip(clip, [subject], ["stoi"])
        assert is_current(row, clip, subject, ["stoi"])


def result_of(*codecs: tuple[str, float | None, float | None]) -> dict[str, Any]:
    """A result with one metric, PESQ, of codecs by name, mean and interval."""
    entries = [
        {
            "name": name,
            "identity": name,
            "bit_rate": 1000.0,
            "num_quantizers": 1,
            "tokens_per_second": 50.0,
            "datasets": {"all": {"files": 9, "pesq": {"mean": mean, "interval95": half, "n": 9 if mean else 0}}},
        }
        for name, mean, half in codecs
    ]
    return {"metrics": ["pesq"], "codecs": entries}


@pytest.mark.parametrize(
    ("codecs", "best"),
    [
        ([("a", 2.0, 0.1), ("b", 3.0, 0.1)], "b"),
        ([("a", 2.9, 0.1), ("b", 3.0, 0.1)], None),  # within the intervals
        ([("a", 2.0, 0.1), ("b", 3.0, 0.1), ("c", 2.95, 0.2)], None),
        ([("a", 2.0, None), ("b", 3.0, None)], None),  # of single clips
        ([("a", 2.0, 0.1)], None),
        ([("a", None, None), ("b", 3.0, 0.1), ("c", 2.0, 0.1)], "b"),
        ([("original", 4.5, 0.1), ("b", 3.0, 0.1), ("c", 2.0, 0.1)], "b"),
    ],
)
def test_bold_is_what_is_better_beyond_the_intervals(
    codecs: list[tuple[str, float | None, float | None]], best: str | None
) -> None:
    table = score_table(result_of(*codecs))
    bold = [row[0].text for row in table.rows if any(cell.best for cell in row)]
    assert bold == ([best] if best else [])
    assert to_html(table).count('class="best"') == len(bold) == to_markdown(table).count("**") / 2
    from rich.console import Console

    console = Console(record=True, width=200, file=io.StringIO())
    console.print(to_rich(table))
    shown = console.export_text()
    for row in table.rows:
        for cell in row:
            assert cell.text in shown


def test_spectrograms_have_axes_and_end_where_the_recording_does() -> None:
    rng = np.random.default_rng(0)
    narrow = soxr.resample(rng.normal(0, 0.1, 8000), 8000, 48_000).astype(np.float32)
    wide = rng.normal(0, 0.1, 48_000).astype(np.float32)
    assert 4000 <= used_band(narrow, 48_000) <= 5000
    assert used_band(wide, 48_000) == 12_000
    assert used_band(wide, 16_000) == 8000
    assert used_band(0 * wide, 48_000) == 1000
    svg = spectrogram(wide, 48_000, 12_000)
    assert ">kHz</text>" in svg
    assert ">s</text>" in svg


def test_markers_stay_inside_the_plot() -> None:
    figure = rate_quality(result_of(("a", 1.0, 0.1), ("b", 4.0, 0.1)))
    assert figure is not None
    figure.draw_without_rendering()
    (axis,) = figure.axes
    (low, high), (bottom, top) = axis.get_xlim(), axis.get_ylim()
    assert low < 1.0 < high * 0.95
    assert bottom < 0.9
    assert top > 4.1


def test_decoding_is_timed_without_writing_files(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = open_subject(f"q2d2:{tiny}", "cpu")
    assert isinstance(subject, CodecSubject)
    speech = soundfile.read(CLIP, dtype="float32")[0][:RATE]
    whole = subject.reconstruct(speech, RATE, Path("x.wav"))
    assert whole.size.file_bytes is not None
    assert whole.size.payload_bits is not None
    assert 8 * whole.size.file_bytes > whole.size.payload_bits > 0
    # There is no place for temporary files, and none is asked for.
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    np.testing.assert_array_equal(subject.decode(subject.encode(speech, RATE), RATE, len(speech)), whole.audio)


def test_the_reports_buttons_switch_at_the_same_place(browser: Any, corpus: Path, tiny: Path, tmp_path: Path) -> None:
    subject = open_subject(f"q2d2:{tiny}", "cpu")
    clips = [c for c in find_clips(corpus) if c.path.name == "one.wav"]
    rows = score_clip(clips[0], [subject], ["stoi"])
    page = tmp_path / "report.html"
    page.write_text(examples({"metrics": ["stoi"]}, rows, [subject], clips), encoding="utf-8")
    browser.get(page.as_uri())
    buttons = browser.find_elements("css selector", ".switch button")
    assert [button.text for button in buttons] == ["recording", "tiny"]

    def players() -> list[list[Any]]:
        return browser.execute_script(
            "return [...document.querySelectorAll('audio')].map(a => [a.paused, a.currentTime])"
        )

    def wait_until(true: Callable[[], bool]) -> None:
        end = time.monotonic() + 60
        while not true():
            assert time.monotonic() < end
            time.sleep(0.05)

    # Slowly, so that no machine comes to the end before it clicks.
    browser.execute_script("document.querySelectorAll('audio').forEach(a => { a.playbackRate = 0.1; })")
    buttons[0].click()
    wait_until(lambda: players()[0][1] > 0.05)
    buttons[1].click()
    wait_until(lambda: players()[0][0] and not players()[1][0])
    (_, left), (_, place) = players()
    assert place > left - 0.01  # two clocks
    assert [button.get_attribute("aria-pressed") for button in buttons] == ["false", "true"]
