"""The command line through the real command: what it does, its manners, and every kind of bad input."""

from __future__ import annotations

import gc
import io
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import CLIP, ROOT, TINY, Run, one_line

from q2d2cli import Codec, Tokens, checkpoints
from q2d2cli.cli.common import loading
from q2d2cli.models.config import ModelConfig
from q2d2cli.models.model import CodecModel


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def encoded(tiny_codec: Codec, tmp_path: Path) -> Path:
    """A .q2d file of the clip, of the tiny model."""
    audio, rate = soundfile.read(CLIP, dtype="float32")
    path = tmp_path / "clip.q2d"
    tiny_codec.encode(audio, rate).save(path)
    return path


def test_clip_there_and_back_at_the_declared_rate(run: Run, tmp_path: Path) -> None:
    q2d, wav = tmp_path / "clip.q2d", tmp_path / "clip.wav"
    result = run("encode", CLIP, q2d, "--payload", "packed", "--json")
    assert result.returncode == 0, result.stderr.decode()
    summary = json.loads(result.stdout)
    assert summary["payload_bit_rate"] == pytest.approx(3333, rel=0.01)
    assert summary["q2d_bytes"] == q2d.stat().st_size
    payload = summary["frames"] * np.log2(145 * 85 * 85) / 8
    assert q2d.stat().st_size <= 1.06 * payload

    result = run("decode", q2d, wav)
    assert result.returncode == 0, result.stderr.decode()
    last = result.stderr.decode().splitlines()[-1]
    assert "10.09 s" in last
    assert "kbit/s" in last
    assert "real-time factor" in last
    before, after = soundfile.info(CLIP), soundfile.info(wav)
    assert (after.samplerate, after.channels, after.frames) == (before.samplerate, before.channels, before.frames)


def test_output_names_folders_and_force(run: Run, tiny: Path, tmp_path: Path) -> None:
    source = tmp_path / "in"
    (source / "sub").mkdir(parents=True)
    audio, rate = soundfile.read(CLIP, dtype="float32")
    soundfile.write(source / "a.wav", audio[:8000], rate)
    soundfile.write(source / "sub" / "b.flac", np.stack([audio[:8000], audio[8000:16000]], axis=1), 44_100)

    # No output name: beside the input, with the other suffix.
    assert run("encode", source / "a.wav", "-m", tiny).returncode == 0
    assert (source / "a.q2d").is_file()
    one_line(run("encode", source / "a.wav", "-m", tiny), 2, "already exists", "--force")
    assert run("encode", source / "a.wav", "-m", tiny, "--force").returncode == 0

    # A folder keeps its shape, and one bad file does not stop the others.
    (source / "broken.wav").write_bytes(b"RIFF....")
    result = run("encode", source, "--out-dir", tmp_path / "out", "-m", tiny, "--json")
    assert result.returncode == 1
    assert "broken.wav" in result.stderr.decode()
    assert len(result.stdout.splitlines()) == 2
    assert (tmp_path / "out" / "a.q2d").is_file()
    assert not (tmp_path / "out" / "broken.q2d").exists()

    result = run("decode", tmp_path / "out", "-o", tmp_path / "back", "-m", tiny, "-q")
    assert (result.returncode, result.stderr) == (0, b"")
    assert soundfile.info(tmp_path / "back" / "sub" / "b.wav").channels == 2
    assert soundfile.info(tmp_path / "back" / "sub" / "b.wav").frames == 8000

    one_line(run("encode", source / "a.wav", source / "sub" / "b.flac"), 2, "--out-dir")
    (tmp_path / "empty").mkdir()
    one_line(run("encode", tmp_path / "empty", "--out-dir", tmp_path / "out"), 2, "nothing to convert")


@pytest.mark.parametrize("suffix", ["flac", "ogg", "mp3", "aiff"])
def test_other_output_formats(run: Run, tiny: Path, encoded: Path, tmp_path: Path, suffix: str) -> None:
    target = tmp_path / f"out.{suffix}"
    result = run("decode", encoded, target, "-m", tiny)
    assert result.returncode == 0, result.stderr.decode()
    assert soundfile.info(target).samplerate == 16_000
    one_line(run("decode", encoded, tmp_path / "out.xyz", "-m", tiny), 2, ".xyz")


def test_pipes(run: Run, tiny: Path, tmp_path: Path) -> None:
    result = run("encode", "-", "-", "-m", tiny, stdin=CLIP.read_bytes())
    assert result.returncode == 0, result.stderr.decode()
    assert b"kbit/s" in result.stderr
    assert run("encode", CLIP, tmp_path / "file.q2d", "-m", tiny).returncode == 0
    (tmp_path / "pipe.q2d").write_bytes(result.stdout)
    piped, filed = Tokens.load(tmp_path / "pipe.q2d"), Tokens.load(tmp_path / "file.q2d")
    assert (piped.indices == filed.indices).double().mean() >= 0.999
    assert piped.num_samples == filed.num_samples == 161_440

    result = run("decode", "-", "-", "-m", tiny, stdin=result.stdout)
    assert result.returncode == 0, result.stderr.decode()
    assert soundfile.info(io.BytesIO(result.stdout)).duration == pytest.approx(10.09)
    # The sizes in the WAV header are unknown when it is written; what follows is the whole audio.
    assert len(result.stdout) == 44 + 2 * 161_440
    assert struct.unpack_from("<I", result.stdout, 40) == (0xFFFFFFFF,)


def test_file_without_samples_decodes_to_nothing(run: Run, tiny: Path, tiny_codec: Codec, tmp_path: Path) -> None:
    empty = Tokens(torch.empty((1, 0, 2), dtype=torch.int64), tiny_codec.header(16_000, 1, 0))
    empty.save(tmp_path / "empty.q2d")
    result = run("decode", tmp_path / "empty.q2d", tmp_path / "empty.wav", "-m", tiny)
    assert result.returncode == 0, result.stderr.decode()
    assert soundfile.info(tmp_path / "empty.wav").frames == 0
    assert run("info", tmp_path / "empty.q2d").returncode == 0


def test_flac_through_a_pipe(run: Run, tiny: Path) -> None:
    audio, rate = soundfile.read(CLIP)
    buffer = io.BytesIO()
    soundfile.write(buffer, audio, rate, format="FLAC")
    result = run("encode", "-", "-", "-m", tiny, stdin=buffer.getvalue())
    assert result.returncode == 0, result.stderr.decode()
    info = run("info", "-", "--json", stdin=result.stdout)
    assert json.loads(info.stdout)["samples"] == 161_440


def test_garbage_is_collected_after_loading() -> None:
    kept = gc.get_freeze_count()
    with loading():
        assert not gc.isenabled()
    assert gc.isenabled()
    assert gc.get_freeze_count() > kept
    gc.unfreeze()


def test_info_needs_no_model_and_no_torch(run: Run, encoded: Path) -> None:
    facts = json.loads(run("info", encoded, "--json").stdout)
    assert facts["levels"] == [5, 5, 3, 3]
    assert facts["points"] == [41, 13]
    assert facts["samples"] == 161_440
    assert facts["tokens"] == facts["frames"] == -(-161_440 * 24 // (16 * 48))
    assert facts["bytes"] == encoded.stat().st_size
    assert facts["payload_bit_rate"] == pytest.approx(500 * np.log2(41 * 13))
    text = run("info", encoded).stdout.decode()
    assert "rhombic" in text
    assert "tiny" in text
    code = "import sys; from pathlib import Path; from q2d2cli.cli.info import info; info([Path(sys.argv[1])]); "
    code += "sys.exit('torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code, encoded], cwd=ROOT, capture_output=True, check=False).returncode
        == 0
    )


def test_models(run: Run, tiny: Path) -> None:
    rows = json.loads(run("models", "--json").stdout)
    default = next(row for row in rows if row["default"])
    assert default["name"] == "speech-3k-v5"
    assert default["kbit_per_second"] == pytest.approx(3.333)
    assert default["megabytes"] <= 32
    assert all(row["coded_kbit_per_second"] < row["kbit_per_second"] for row in rows)
    table = run("models", environment={"COLUMNS": "150"}).stdout.decode()
    shown = next(line for line in table.splitlines() if line.startswith("speech-3k-v5"))
    assert f" {default['coded_kbit_per_second']:.2f} " in shown
    rows = json.loads(run("models", "--json", environment={"Q2D2_MODELS": str(tiny.parent)}).stdout)
    assert "tiny" in [row["name"] for row in rows]


def test_version_and_help(run: Run) -> None:
    assert run("--version").stdout.startswith(b"q2d2 ")
    assert b"encode" in run("--help").stdout
    one_line(run("encode", CLIP, "x.q2d", "--nonsense"), 2, "--nonsense")
    one_line(run("nonsense"), 2, "nonsense")


# Bad input: what went in, and what must be said.


def test_missing_file_and_folder(run: Run, tmp_path: Path) -> None:
    for command in ("encode", "decode", "info"):
        target = [] if command == "info" else ["out.bin"]
        one_line(run(command, tmp_path / "none.wav", *target), 2, "none.wav does not exist")
        one_line(run(command, tmp_path, *target), 2, "is a folder")
    assert leftovers(tmp_path / "cwd") == []


def wav(samples: np.ndarray, subtype: str = "FLOAT") -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, 16_000, format="WAV", subtype=subtype)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"this is text\n" * 100, ["not", "audio"]),
        (b"", ["audio"]),
        (wav(np.zeros(0)), ["is empty", "no samples"]),
        (wav(np.array([0.0, 0.1, np.nan] * 100)), ["NaN or infinite", "at 0.000 s"]),
        (wav(np.array([0.0] * 8000 + [np.inf])), ["NaN or infinite", "at 0.500 s"]),
        (wav(np.zeros((100, 65))), ["65 channels"]),
    ],
    ids=["text", "nothing", "empty", "nan", "infinite", "channels"],
)
def test_input_that_is_not_proper_audio(run: Run, tiny: Path, tmp_path: Path, content: bytes, words: list[str]) -> None:
    (tmp_path / "in.wav").write_bytes(content)
    one_line(run("encode", tmp_path / "in.wav", "out.q2d", "-m", tiny), 1, *words)
    one_line(run("encode", "-", "out.q2d", "-m", tiny, stdin=content), 1)
    assert leftovers(tmp_path / "cwd") == []


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda data: data[: len(data) // 2], ["truncated", "block"]),
        (lambda data: data[:-1], ["truncated"]),
        (lambda data: data[:20], ["truncated", "header"]),
        (lambda data: data[:2000] + bytes([data[2000] ^ 1]) + data[2001:], ["damaged", "checksum", "block 1"]),
        (lambda data: data[:30] + bytes([data[30] ^ 1]) + data[31:], ["damaged", "header"]),
        (lambda data: CLIP.read_bytes(), ["not a .q2d file", "WAV"]),
        (lambda data: data[:8] + b"\x03" + data[9:], ["version 3.0", "upgrade"]),
        (lambda data: b"", ["empty"]),
    ],
    ids=["half", "one byte short", "header only", "flipped", "flipped header", "wav", "newer", "nothing"],
)
def test_input_that_is_not_a_proper_q2d(
    run: Run, tiny: Path, encoded: Path, tmp_path: Path, damage, words: list[str]
) -> None:
    bad = tmp_path / "bad.q2d"
    bad.write_bytes(damage(encoded.read_bytes()))
    one_line(run("decode", bad, "out.wav", "-m", tiny), 1, "bad.q2d", *words)
    result = run("info", bad)
    assert result.returncode == 1
    text = result.stderr.decode()
    assert text.count("\n") == 1
    # Damage behind the header is a list, and the rest is told all the same.
    told = {"truncated": "truncated in", "block": "block"}
    for word in ["bad.q2d", *words]:
        assert told.get(word, word) in text or (not result.stdout and word in text)
    assert leftovers(tmp_path / "cwd") == []


def test_model_that_is_not_here(run: Run, tiny: Path, encoded: Path, tmp_path: Path) -> None:
    one_line(run("encode", CLIP, "out.q2d", "-m", "speech-9k"), 2, "'speech-9k'", "speech-3k", "Hub")
    one_line(run("encode", CLIP, "out.q2d", "-m", "owner/name"), 2, "'owner/name'", "network")
    # The file names a model that is not here; and other weights than the file's.
    here = sorted(checkpoint.config.name for checkpoint in checkpoints.available())
    one_line(run("decode", encoded, "out.wav"), 2, "'tiny'", f"available: {', '.join(here)}")
    one_line(run("decode", encoded, "out.wav", "-m", "speech-3k"), 1, "'tiny'", "weights")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_bytes((tiny / "config.json").read_bytes())
    one_line(run("encode", CLIP, "out.q2d", "-m", broken), 1, "model.safetensors")
    (broken / "model.safetensors").write_bytes((tiny / "model.safetensors").read_bytes()[:-100])
    one_line(run("encode", CLIP, "out.q2d", "-m", broken), 1, "damaged")
    (broken / "config.json").write_text('{"model": {"hop": -1}}')
    one_line(run("encode", CLIP, "out.q2d", "-m", broken), 1, "config.json")
    one_line(run("encode", CLIP, "out.q2d", "-m", tiny, "--device", "tpu9"), 2, "tpu9")
    assert leftovers(tmp_path / "cwd") == []


def test_folder_that_cannot_be_written(run: Run, tiny: Path, encoded: Path, tmp_path: Path) -> None:
    one_line(run("encode", CLIP, tmp_path / "no" / "out.q2d", "-m", tiny), 2, "does not exist")
    one_line(run("decode", encoded, "/proc/out.wav", "-m", tiny), 2, "/proc")
    (tmp_path / "file").write_text("")
    one_line(run("encode", CLIP, "--out-dir", tmp_path / "file", "-m", tiny), 2, "file")


def test_full_disk(tiny: Path, encoded: Path, run: Run, tmp_path: Path) -> None:
    for arguments in (["encode", CLIP, "-"], ["decode", encoded, "-"]):
        with open("/dev/full", "wb") as full:
            result = subprocess.run(
                [sys.executable, "-m", "q2d2cli", *map(str, arguments), "-m", str(tiny)],
                stdout=full,
                stderr=subprocess.PIPE,
                stdin=subprocess.DEVNULL,
                cwd=ROOT,
                check=False,
            )
        assert result.returncode == 1
        assert result.stderr == b"q2d2: cannot write to standard output: No space left on device\n"

    # A file that must not grow beyond 2 kB behaves like a disk that fills up.
    for command, source, name in (
        ("encode", CLIP, "o.q2d"),
        ("decode", encoded, "o.wav"),
        *(("decode", encoded, f"o.{suffix}") for suffix in ("flac", "ogg", "mp3", "aiff", "au", "caf", "w64", "opus")),
    ):
        result = run(command, source, name, "-m", tiny, file_limit=2000)
        one_line(result, 1, f"cannot write {name}", "File too large")
    assert leftovers(tmp_path / "cwd") == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_interrupted_run_leaves_nothing(tiny: Path, encoded: Path, tmp_path: Path, number: int) -> None:
    (tmp_path / "cwd").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "q2d2cli", "decode", "-", "out.flac", "-m", str(tiny)],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=tmp_path / "cwd",
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        # As in a terminal: tests that run in the background have it ignored, and what they start inherits that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdin
    process.stdin.write(encoded.read_bytes()[:2000])
    process.stdin.flush()
    deadline = time.monotonic() + 60
    while not leftovers(tmp_path / "cwd"):
        assert time.monotonic() < deadline, "the output was never begun"
        time.sleep(0.05)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert b"Traceback" not in stderr
    assert leftovers(tmp_path / "cwd") == []


def test_device_is_written_to_and_not_replaced(run: Run, tiny: Path) -> None:
    assert run("encode", CLIP, "/dev/null", "-m", tiny).returncode == 0
    assert not Path("/dev/null").is_file()


def test_a_bit_rate_picks_the_model(run: Run) -> None:
    result = run("encode", CLIP, "clip.q2d", "--bitrate", "3", "--json")
    assert json.loads(result.stdout)["model"] == "speech-3k-v5"
    missing = run("encode", CLIP, "other.q2d", "--bitrate", "5")
    assert missing.returncode == 2
    assert "no model for 5 kbit/s here: choose from" in missing.stderr.decode()
    both = run("encode", CLIP, "other.q2d", "--bitrate", "3", "--model", "speech-3k")
    assert both.returncode == 2


def test_files_of_earlier_weights_decode_where_these_are_kept(run: Run, tiny: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    shutil.copytree(tiny, models / "tiny")
    environment = {"Q2D2_MODELS": str(models)}
    assert run("encode", CLIP, "old.q2d", "-m", "tiny", environment=environment).returncode == 0
    (models / "tiny").rename(models / "tiny-first")
    config = json.loads((tiny / "config.json").read_text())
    checkpoints.save(models / "tiny", ModelConfig.model_validate(config["model"]), CodecModel(TINY).state_dict())
    assert run("encode", CLIP, "new.q2d", "-m", "tiny", environment=environment).returncode == 0
    for name in ("old", "new"):
        assert run("decode", f"{name}.q2d", environment=environment).returncode == 0
    shutil.rmtree(models / "tiny-first")
    refused = run("decode", "old.q2d", "again.wav", environment=environment)
    assert refused.returncode == 1
    assert "get those weights" in refused.stderr.decode()
