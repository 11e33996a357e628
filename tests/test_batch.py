"""Batches: every clip gets what it gets alone, whatever its company, the padding and the number of threads."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from q2d2cli import Codec, Q2D2Error
from q2d2cli.audio import Resampler
from q2d2cli.evaluation.analysis import PointEncoder
from q2d2cli.quantizers.q2d2 import Q2D2
from q2d2cli.streaming import PASS_SECONDS

RATE = 24_000
Clip = tuple[np.ndarray, int]


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def voice(clip: Clip) -> np.ndarray:
    """13 s of speech at 24 kHz: three passes."""
    audio = Resampler(clip[1], RATE, 1).push(clip[0][None], last=True)[0]
    return np.concatenate([audio, 0.5 * audio[:72_011]])


def pad(clips: list[np.ndarray], extra: int, fill: float) -> tuple[torch.Tensor, list[int]]:
    lengths = [len(clip) for clip in clips]
    batch = torch.full((len(clips), max(lengths) + extra), fill)
    for row, clip in zip(batch, clips, strict=True):
        row[: len(clip)] = torch.from_numpy(clip)
    return batch, lengths


spans = st.tuples(st.integers(0, 200_000), st.one_of(st.integers(1, 3000), st.integers(1, 140_000)))


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cuts=st.lists(spans, min_size=1, max_size=6),
    extra=st.integers(0, 5000),
    fill=st.sampled_from([0.0, 0.7, float("nan")]),
    threads=st.integers(1, 4),
    rate=st.sampled_from([RATE, 16_000]),
)
def test_a_clip_gets_what_it_gets_alone(
    tiny_codec: Codec, voice: np.ndarray, cuts: list[tuple[int, int]], extra: int, fill: float, threads: int, rate: int
) -> None:
    clips = [voice[start : start + length] for start, length in cuts]
    torch.set_num_threads(1)
    alone = [tiny_codec.encode(clip, rate) for clip in clips]
    heard = [tiny_codec.decode(tokens)[0] for tokens in alone]
    torch.set_num_threads(threads)
    batch, lengths = pad(clips, extra, fill)
    indices, frames = tiny_codec.encode_batch(batch, lengths, rate)
    for tokens, row, count in zip(alone, indices, frames.tolist(), strict=True):
        assert torch.equal(tokens.indices[0], row[:count])
        assert (row[count:] == -1).all()
    audio, samples = tiny_codec.decode_batch(indices, frames, lengths, rate)
    assert samples.tolist() == lengths
    for expected, row, count in zip(heard, audio, lengths, strict=True):
        assert torch.equal(expected, row[:count])  # every bit, and so no less holds for the tokens
        assert (row[count:] == 0).all()


def test_shipped_models_do_not_depend_on_threads_or_company(speech: Codec, voice: np.ndarray) -> None:
    # Coordinates before quantization: tokens could agree by luck.
    assert isinstance(speech.model.quantizer, Q2D2)

    def points(threads: int) -> np.ndarray:
        torch.set_num_threads(threads)
        encoder = PointEncoder(speech, speech.model.quantizer, RATE)
        return np.concatenate([*encoder.push(voice[None]), *encoder.finish()], axis=1)

    one = points(1)
    assert all(np.array_equal(one, points(threads)) for threads in (2, 3, 5))
    torch.set_num_threads(2)
    clips = [voice[:50_000], voice, voice[7:130_000]]
    batch, lengths = pad(clips, 0, 0.0)
    forward, frames = speech.encode_batch(batch, lengths)
    backward, _ = speech.encode_batch(batch.flip(0), lengths[::-1])
    assert torch.equal(forward, backward.flip(0))
    assert torch.equal(forward[1, : frames[1]], speech.encode(voice, RATE).indices[0])


def test_pieces_that_arrive_give_the_same_bits(tiny_codec: Codec, voice: np.ndarray) -> None:
    assert isinstance(tiny_codec.model.quantizer, Q2D2)
    found = []
    for size in (1, 3):
        torch.set_num_threads(size)
        encoder = PointEncoder(tiny_codec, tiny_codec.model.quantizer, RATE)
        pieces = []
        for start in range(0, len(voice), size * 7001):
            pieces += encoder.push(voice[None, start : start + size * 7001])
        found.append(np.concatenate([*pieces, *encoder.finish()], axis=1))
    assert np.array_equal(*found)


def test_many_threads_share_a_codec(tiny_codec: Codec, voice: np.ndarray) -> None:
    torch.set_num_threads(2)
    clips = [voice[n * 1000 : n * 1000 + 60_000 + n] for n in range(8)]
    alone = [tiny_codec.encode(clip, RATE).tokens for clip in clips]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda clip: tiny_codec.encode_batch(torch.from_numpy(clip)[None])[0], clips))
    for tokens, indices in zip(alone, together, strict=True):
        assert torch.equal(tokens[0], tiny_codec.tokens(tokens[0]).tokens[0])
        assert torch.equal(tiny_codec.encode(clips[0], RATE).tokens, alone[0])
        assert indices.shape[1] == tokens.shape[1]
    assert torch.get_num_threads() == 2


def test_channels_do_not_depend_on_each_other(tiny_codec: Codec, voice: np.ndarray) -> None:
    torch.set_num_threads(2)
    both = tiny_codec.encode(np.stack([voice, voice[::-1].copy()]), RATE)
    left = tiny_codec.encode(voice, RATE)
    assert torch.equal(both.indices[:1], left.indices)
    assert torch.equal(tiny_codec.decode(both)[:1], tiny_codec.decode(left))


def test_long_input_is_taken_several_chunks_at_once(tiny_codec: Codec, voice: np.ndarray) -> None:
    torch.set_num_threads(4)
    encoder = tiny_codec.stream_encoder(RATE)
    pieces = list(encoder.push(np.tile(voice, 4)[None]))  # 52 s
    assert max(piece.shape[1] for piece in pieces) == round(4 * PASS_SECONDS * tiny_codec.frame_rate)


def test_no_clips_and_no_frames(tiny_codec: Codec) -> None:
    indices, frames = tiny_codec.encode_batch(torch.zeros(0, 100))
    assert indices.shape == (0, 0, 2)
    assert frames.shape == (0,)
    audio, samples = tiny_codec.decode_batch(torch.zeros(2, 3, 2, dtype=torch.int64), [0, 3])
    assert samples.tolist() == [0, 3 * tiny_codec.config.hop]
    assert audio.shape == (2, 3 * tiny_codec.config.hop)


def test_what_does_not_fit_is_named(tiny_codec: Codec) -> None:
    audio = torch.zeros(2, 1000)
    for lengths, words in (([5], "expected 2 integers"), ([5, 1001], "clip 1"), ([0, 5], "clip 0 of the batch has")):
        with pytest.raises(ValueError, match=words):
            tiny_codec.encode_batch(audio, lengths)
    with pytest.raises(ValueError, match=r"expected floating point, \(batch, samples\)"):
        tiny_codec.encode_batch(torch.zeros(1, 2, 1000))
    audio[1, 7] = torch.inf
    with pytest.raises(Q2D2Error, match=r"clip 1 of the batch: .*NaN or infinite"):
        tiny_codec.encode_batch(audio)
    indices = torch.zeros(2, 10, 2, dtype=torch.int64)
    indices[1, 3] = 99
    with pytest.raises(ValueError, match="clip 1 of the batch: index 99 is out of range"):
        tiny_codec.decode_batch(indices)
    assert tiny_codec.decode_batch(indices, [10, 3])[1].tolist() == [480, 144]  # what is padding is not looked at
    with pytest.raises(ValueError, match="clip 0 of the batch: 1 frames hold 48 samples, fewer than 49"):
        tiny_codec.decode_batch(indices, [1, 3], [49, 3])
    with pytest.raises(ValueError, match="expected integers"):
        tiny_codec.decode_batch(indices.float())
