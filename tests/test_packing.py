"""Packing: identity, size, overhead, agreement with plain big integers, damage."""

from __future__ import annotations

import math

import numpy as np
import pytest
import reference_decoder
from hypothesis import given, settings
from hypothesis import strategies as st

from q2d2cli.container.header import FormatError
from q2d2cli.container.packing import group_frames, number_bits, pack, payload_bytes, unpack
from q2d2cli.quantizers.spec import QuantizerSpec

SHIPPED = [((7,) * 6, 450), ((9, 9, 7, 7, 7, 7), 144), ((9, 9, 9, 9, 7, 7), 72)]


def draw_indices(frames: int, sizes: tuple[int, ...], seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([rng.integers(0, size, frames) for size in sizes], axis=-1)


@settings(max_examples=150, deadline=None)
@given(
    sizes=st.lists(st.integers(4, 5000), min_size=1, max_size=6).map(tuple),
    frames=st.integers(0, 400),
    seed=st.integers(0, 2**32 - 1),
)
def test_unpack_inverts_pack(sizes: tuple[int, ...], frames: int, seed: int) -> None:
    indices = draw_indices(frames, sizes, seed)
    data = pack(indices, sizes)
    assert len(data) == payload_bytes(frames, sizes) == reference_decoder.packed_bytes(frames, list(sizes))
    np.testing.assert_array_equal(unpack(data, frames, sizes), indices)
    assert reference_decoder.unpack(data, frames, list(sizes)) == indices.tolist()


@pytest.mark.parametrize("level", [4095, 2])
def test_extreme_grids(level: int) -> None:
    sizes = QuantizerSpec("rectangular", (level,) * 20).sizes
    top = np.tile(np.array(sizes) - 1, (5, 1))
    np.testing.assert_array_equal(unpack(pack(top, sizes), 5, sizes), top)


@pytest.mark.parametrize(("levels", "hop"), SHIPPED)
def test_shipped_rates_pack_within_1_2_percent_of_entropy(levels: tuple[int, ...], hop: int) -> None:
    spec = QuantizerSpec("rhombic", levels)
    frames = round(24_000 / hop)
    assert payload_bytes(frames, spec.sizes) * 8 <= 1.012 * frames * spec.bits_per_frame


@settings(max_examples=300, deadline=None)
@given(
    levels=st.lists(st.integers(1, 12).map(lambda n: 2 * n + 1), min_size=2, max_size=8).filter(
        lambda x: len(x) % 2 == 0
    ),
    frames=st.integers(0, 400),
)
def test_overhead_is_at_most_a_bit_per_group_and_the_padding(levels: list[int], frames: int) -> None:
    spec = QuantizerSpec("rhombic", tuple(levels))
    entropy = frames * spec.bits_per_frame
    packed = 8 * payload_bytes(frames, spec.sizes)
    assert packed <= entropy + -(-frames // group_frames(spec.sizes)) + 7 + 1e-6
    if frames >= 200 and spec.codebook_size >= 2**16:
        assert packed <= 1.012 * entropy


@settings(max_examples=200, deadline=None)
@given(sizes=st.lists(st.integers(4, 5000), min_size=1, max_size=6).map(tuple))
def test_group_is_the_best_within_128_bits(sizes: tuple[int, ...]) -> None:
    codebook = math.prod(sizes)
    assert group_frames(sizes) == reference_decoder.group_size(codebook)
    assert number_bits(codebook, 1) >= math.log2(codebook) - 1e-9


def test_indices_out_of_range_are_named() -> None:
    with pytest.raises(ValueError, match="index 85 is out of range: pair 1 has 85 points"):
        pack(np.array([[0, 0], [144, 85]]), (145, 85))
    with pytest.raises(ValueError, match="index -1"):
        pack(np.array([[-1, 0]]), (145, 85))
    with pytest.raises(ValueError, match="shape"):
        pack(np.zeros((3, 3), int), (145, 85))


def test_damaged_payloads_are_refused() -> None:
    sizes = (145, 85, 85)
    data = pack(draw_indices(3, sizes, 0), sizes)
    with pytest.raises(FormatError, match="bytes where"):
        unpack(data + b"\0", 3, sizes)
    with pytest.raises(FormatError, match="padding"):
        unpack(data[:-1] + bytes([data[-1] | 0x80]), 3, sizes)
    # 20 bits hold 1048576 numbers, the codebook has 1047625.
    with pytest.raises(FormatError, match="outside the codebook"):
        unpack(b"\xff\xff\x0f", 1, sizes)
