"""Live streams: what comes out before the input ends, how long it takes at least, and that the tokens are the same."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from conftest import CLIP, ROOT, TINY, Run
from hypothesis import given, settings
from hypothesis import strategies as st

from q2d2cli import Codec, Tokens, UsageError
from q2d2cli.audio import AudioReader
from q2d2cli.audio.resampling import held_back
from q2d2cli.container.stream import Reader, Writer
from q2d2cli.latency import LIVE_BLOCK_SECONDS, latency
from q2d2cli.models.config import ModelConfig, SeanetEncoderConfig, VocosDecoderConfig
from q2d2cli.models.model import CodecModel
from q2d2cli.passes import run_alone
from q2d2cli.streaming import CHUNK_SECONDS, Part, Passes, Span

Clip = tuple[np.ndarray, int]
PIECE = 0.02
PATIENCE = 120
"""Seconds until a test that waits for bytes gives up."""


def start(tiny: Path, *arguments: str, stdin: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "q2d2cli", *arguments],
        stdin=stdin,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT), "Q2D2_MODELS": str(tiny.parent)},
    )


def read(number: int, size: int) -> bytes:
    """Exactly so many bytes of a pipe that stays open."""
    data = b""
    while len(data) < size:
        assert select.select([number], [], [], PATIENCE)[0], f"only {len(data)} of {size} bytes came"
        more = os.read(number, size - len(data))
        assert more, "the pipe was closed"
        data += more
    return data


@pytest.mark.parametrize("options", [[], ["--block", "0.05", "--robust"]])
def test_audio_comes_out_while_audio_goes_in(tiny: Path, clip: Clip, options: list[str]) -> None:
    pcm = (clip[0] * 32767).astype("<i2").tobytes()
    raw = ["--raw", "--rate", "16000"]
    encoder = start(tiny, "encode", "--live", *options, *raw, "-q", "-m", "tiny", "-", "-", stdin=subprocess.PIPE)
    assert encoder.stdin
    assert encoder.stdout
    decoder = start(tiny, "decode", "-q", "--raw", "-", "-", stdin=encoder.stdout.fileno())
    encoder.stdout.close()
    assert decoder.stdout
    block = float(options[1]) if options else LIVE_BLOCK_SECONDS
    least = latency(TINY, 16_000, block)
    assert least is not None
    audio = b""
    # Silence follows twice; whatever can be known by then must be there before more goes in.
    for seconds in (2.0, 4.5):
        begin = 0 if seconds == 2.0 else 2 * 32_000
        encoder.stdin.write(pcm[begin : int(seconds * 32_000)])
        encoder.stdin.flush()
        wanted = 2 * int((seconds - least.total - 2 * PIECE) * 16_000)
        audio += read(decoder.stdout.fileno(), wanted - len(audio))
    encoder.stdin.write(pcm[int(4.5 * 32_000) :])
    encoder.stdin.close()
    audio += decoder.stdout.read()
    assert (encoder.wait(PATIENCE), decoder.wait(PATIENCE)) == (0, 0)
    assert len(audio) == len(pcm)
    codec = Codec.from_pretrained(tiny, "cpu")
    expected = codec.decode(codec.encode(np.frombuffer(pcm, "<i2"), 16_000))[0].numpy()
    difference = np.frombuffer(audio, "<i2") / 32767 - expected.clip(-1, 1)
    # A token in some ten thousand may be another: where blocks end, the last bits of sums differ.
    assert (np.abs(difference) < 1e-3).mean() > 0.99


@pytest.mark.parametrize("block", [0.02, 0.2, 5.0])
@pytest.mark.parametrize("model", ["tiny", "speech-3k"])
def test_tokens_are_those_of_the_whole_file(tiny: Path, clip: Clip, model: str, block: float) -> None:
    codec = Codec.from_pretrained(tiny if model == "tiny" else model, "cpu")
    audio = clip[0][: 48_000 if block < 0.1 else None]
    whole = codec.encode(audio, clip[1])
    encoder = codec.stream_encoder(clip[1], block_seconds=block)
    rng, pieces, position = np.random.default_rng(0), [], 0
    while position < len(audio):
        size = int(rng.integers(0, 3000))
        pieces += encoder.push(audio[position : position + size])
        position += size
    size = encoder.header.frames_per_block
    assert all(piece.shape == (1, size, len(codec.quantizer.sizes)) for piece in pieces)
    assert len(pieces) >= len(audio) / clip[1] / block - 3
    indices = np.concatenate([*pieces, *encoder.finish()], axis=1)
    assert indices.shape == tuple(whole.indices.shape)
    assert (indices == whole.indices.numpy()).all(axis=-1).mean() >= 0.999


@settings(max_examples=8, deadline=None)
@given(
    rate=st.sampled_from([8000, 11_025, 16_000, 22_050, 24_000, 44_100, 48_000]),
    block=st.floats(0.05, 0.3),
    channels=st.integers(1, 2),
    data=st.data(),
)
def test_nothing_waits_longer_than_it_must(
    tiny_codec: Codec, rate: int, block: float, channels: int, data: st.DataObject
) -> None:
    encoder = tiny_codec.stream_encoder(rate, channels, block_seconds=block)
    decoder = tiny_codec.stream_decoder(encoder.header)
    least = tiny_codec.latency(rate, block)
    assert least is not None
    piece = data.draw(st.integers(rate // 100, rate // 10), label="samples in a piece")
    given = taken = 0
    lags = []
    for _ in range(rate // piece):
        taken += piece
        for indices in encoder.push(np.zeros((channels, piece), np.float32)):
            for audio in decoder.push(indices):
                assert audio.shape[0] == channels
                given += audio.shape[1]
        lags.append((taken - given) / rate)
    # The sample that goes in next waits until the piece after it: that much may come on top.
    assert max(lags) <= least.total + piece / rate + 2 / rate
    # And some sample does wait that long, but for what the sample rate conversions hold back at their worst; when
    # a block is full is only seen once in a piece.
    assert max(lags) >= least.total - least.resampling - piece / rate - 2 / rate
    rest = [audio for indices in encoder.finish() for audio in decoder.push(indices)]
    given += sum(audio.shape[1] for audio in [*rest, *decoder.finish(taken)])
    assert given == taken


@pytest.mark.parametrize(
    ("rate_in", "rate_out"), [(16_000, 24_000), (24_000, 16_000), (44_100, 24_000), (8000, 24_000)]
)
def test_resampling_holds_back_a_little(rate_in: int, rate_out: int) -> None:
    assert 0.01 < held_back(rate_in, rate_out) < 0.1
    assert held_back(rate_in, rate_in) == 0


def test_latency_is_the_sum_of_its_parts() -> None:
    config = ModelConfig()
    least = latency(config, 48_000, 0.5)
    assert least is not None
    # 20 and 29 frames of 6 ms: the window's overlap and half a kernel for each layer.
    assert least.encoder == pytest.approx((2 + 6 * 3) * 0.006)
    assert least.decoder == pytest.approx((2 + 9 * 3) * 0.006)
    assert least.block == pytest.approx(0.5, abs=0.003)
    assert least.total == pytest.approx(least.block + least.encoder + least.decoder + least.resampling)
    at_its_own_rate = latency(config, 24_000)
    assert at_its_own_rate is not None
    assert at_its_own_rate.resampling == 0


def test_models_that_see_everything_have_no_live_streams(clip: Clip) -> None:
    lstm = SeanetEncoderConfig(strides=(4, 3, 2, 2), filters=2, lstm_layers=1)
    decoder = VocosDecoderConfig(dim=32, hidden=32, layers=1, attention=True, norm_embeddings=4)
    for config in (
        ModelConfig(hop=48, feature_dim=32, encoder=lstm),
        ModelConfig(hop=48, feature_dim=32, decoder=decoder),
    ):
        assert latency(config, 48_000) is None
    codec = Codec(CodecModel(ModelConfig(hop=48, feature_dim=32, encoder=lstm)).eval(), b"12345678")
    with pytest.raises(UsageError, match="a whole recording at once"):
        codec.stream_encoder(16_000, block_seconds=0.2)


@pytest.mark.parametrize("block", [0, -1, 5.1, float("nan"), float("inf")])
def test_impossible_blocks_are_refused(tiny_codec: Codec, block: float) -> None:
    with pytest.raises(UsageError, match="give more than 0 and at most 5"):
        tiny_codec.stream_encoder(16_000, block_seconds=block)


def test_options_that_do_not_go_together(run: Run, tiny: Path) -> None:
    for options, words in (
        (["--block", "1"], "give that, too"),
        (["--live", "--effort", "1", "--runtime", "torch"], "cannot wait for a search"),
        (["--live", "--block", "0"], "more than 0"),
    ):
        result = run("encode", CLIP, "out.q2d", "-m", str(tiny), *options)
        assert result.returncode == 2, result.stderr.decode()
        assert words in result.stderr.decode()
        assert result.stderr.decode().count("\n") == 1


def test_a_live_stream_is_a_file_like_any_other(run: Run, tiny: Path, clip: Clip, tmp_path: Path) -> None:
    result = run("encode", "--live", CLIP, tmp_path / "live.q2d", "-m", str(tiny), "--json")
    assert result.returncode == 0, result.stderr.decode()
    live = Tokens.load(tmp_path / "live.q2d")
    assert live.header.frames_per_block == round(LIVE_BLOCK_SECONDS * live.frame_rate)
    assert live.num_samples == len(clip[0])
    assert json.loads(result.stdout)["frames"] == live.indices.shape[1]
    result = run("decode", tmp_path / "live.q2d", tmp_path / "live.wav", "-m", str(tiny))
    assert result.returncode == 0, result.stderr.decode()
    with AudioReader(tmp_path / "live.wav") as reader:
        assert reader.num_samples == len(clip[0])


def test_models_print_their_latency(run: Run) -> None:
    rows = json.loads(run("models", "--json").stdout)
    for row in rows:
        parts = row["latency"]
        assert parts["total"] == pytest.approx(
            sum(parts[part] for part in ("block", "encoder", "decoder", "resampling"))
        )
        assert 0.1 < parts["total"] < 1.5
    assert f"{1000 * rows[0]['latency']['total']:.0f} ms" in run("models").stdout.decode()


@pytest.mark.slow
def test_the_example_streams_over_a_socket(tiny: Path, clip: Clip) -> None:
    folder = ROOT / "examples" / "streaming"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "Q2D2_MODELS": str(tiny.parent)}
    listener = subprocess.Popen(
        [sys.executable, folder / "listen.py", "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )
    assert listener.stderr
    port = listener.stderr.readline().decode().split()[-1]
    sender = subprocess.run(
        [sys.executable, folder / "send.py", "127.0.0.1", port, CLIP, "--model", "tiny", "--at-once"],
        env=environment,
        capture_output=True,
        timeout=300,
        check=False,
    )
    assert sender.returncode == 0, sender.stderr.decode()
    audio, notes = listener.communicate(timeout=300)
    assert listener.returncode == 0, notes.decode()
    assert len(audio) == 2 * len(clip[0])
    codec = Codec.from_pretrained(tiny, "cpu")
    expected = codec.decode(codec.encode(clip[0], clip[1]))[0].numpy()
    assert (np.abs(np.frombuffer(audio, "<i2") / 32767 - expected.clip(-1, 1)) < 1e-3).mean() > 0.99


def test_memory_does_not_grow_with_the_length(tiny_codec: Codec) -> None:
    """A stream four times as long, through encoder, file, reader and decoder, takes no more; and the first of it none.

    NumPy's memory: what a tensor holds is a pass's. `benchmarks/length.py` measures the whole command.
    """
    noise = np.random.default_rng(0).normal(0, 0.1, (1, 16_000)).astype(np.float32)

    def peak(seconds: int) -> int:
        header = tiny_codec.header(16_000, 1, None, "packed")
        encoder = tiny_codec.stream_encoder(16_000, 1, payload="packed")
        with tempfile.TemporaryFile() as file:
            tracemalloc.start()
            writer = Writer(file, header)
            for _ in range(seconds):
                for indices in encoder.push(noise):
                    writer.write(indices)
            for indices in encoder.finish():
                writer.write(indices)
            writer.close(16_000 * seconds)
            file.seek(0)
            reader = Reader(file)
            decoder = tiny_codec.stream_decoder(reader.header)
            heard = sum(piece.shape[1] for block in reader.blocks() for piece in decoder.push(reader.unpack(block)))
            heard += sum(piece.shape[1] for piece in decoder.finish(16_000 * seconds))
            most = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert heard == 16_000 * seconds
        return most

    peak(12)  # what is made once
    assert peak(120) < 1.1 * peak(30)


def test_reading_and_writing_go_on_while_the_network_is_busy() -> None:
    """Long parts come back without being waited for: the network below does not end before they have."""
    released = threading.Event()

    def network(audio: np.ndarray) -> np.ndarray:
        assert released.wait(PATIENCE)
        return audio

    passes = Passes(lambda inputs: run_alone(network, inputs, 2), chunk_seconds=CHUNK_SECONDS)
    parts = [Part(np.full((1, 5), number, np.float32), 5 * number, 5 * number, 5 * number + 5, 5 * number + 5, 1,
                  [Span(5 * number, 5 * number, 5 * number + 5, 5 * number + 5)]) for number in range(2)]  # fmt: skip
    assert not list(passes.run(iter(parts[:1])))
    released.set()
    done = [piece[0, 0] for _, piece in passes.run(iter(parts[1:]), last=True)]
    assert done == [0, 1]
