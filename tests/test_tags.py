"""Tags: the metadata block, those of audio files in and out, the command `q2d2 tag`, and all that is wrong with any."""

from __future__ import annotations

import io
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import reference_decoder
from hypothesis import given, settings
from hypothesis import strategies as st
from test_container import draw_indices, make_header, read, samples_of, with_crc

from q2d2cli.container.blocks import METADATA, to_block
from q2d2cli.container.header import FormatError
from q2d2cli.container.mending import Mended
from q2d2cli.container.stream import Reader, Writer
from q2d2cli.container.tagging import with_tags
from q2d2cli.container.tags import MAX_TAGS, Picture, Tags

FRAMES = 500
HEADER = make_header(frames_per_block=100)
INDICES = draw_indices(HEADER, FRAMES)
COVER = Picture(np.random.default_rng(1).bytes(40_000), "image/png", 3, "Vorderseite: Ä", 300, 200, 24)
TAGS = Tags((("TITLE", "Müller"), ("artist", "A"), ("ARTIST", "B\nC")), (COVER, replace(COVER, kind=4, data=b"x")))


def tagged(tags: Tags, parity: float | None = None, frames: int = FRAMES) -> bytes:
    file = io.BytesIO()
    writer = Writer(file, HEADER, parity=parity, tags=tags)
    writer.write(INDICES[:, :frames])
    writer.close(samples_of(frames))
    assert writer.bytes_written == len(file.getvalue())
    return file.getvalue()


# The block.

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
pictures = st.builds(
    Picture,
    st.binary(max_size=40_000),
    st.sampled_from(["image/png", "image/jpeg", "", "-->"]),
    st.integers(0, 2**32 - 1),
    texts,
    *[st.integers(0, 2**32 - 1)] * 4,
)
any_tags = st.builds(
    Tags,
    st.lists(st.tuples(st.text([chr(c) for c in range(0x20, 0x7E) if c != 0x3D], min_size=1), texts)).map(tuple),
    st.lists(pictures, max_size=3).map(tuple),
    texts,
)


@settings(max_examples=60, deadline=None)
@given(tags=any_tags, parity=st.sampled_from([None, 0.1]), frames=st.sampled_from([0, 120]))
def test_any_tags_come_back(tags: Tags, parity: float | None, frames: int) -> None:
    data = tagged(tags, parity, frames)
    reader, indices = read(data)
    assert reader.tags == (tags if tags else Tags())
    assert reader.faults == []
    np.testing.assert_array_equal(indices, INDICES[:, :frames])
    # A second reader, written from the specification, reads the same tokens and tags.
    assert reference_decoder.decode(data)["indices"] == indices.tolist()
    vendor, comments, found = reference_decoder.tags(data)
    assert comments == [f"{name}={value}" for name, value in tags.comments]
    assert found == [asdict(picture) for picture in tags.pictures]
    assert vendor == (tags.vendor if tags else "")
    # In place of other tags they are as if they had been written first.
    if not parity:
        assert with_tags(tagged(TAGS, parity, frames), tags) == data
    assert read(with_tags(data, TAGS))[0].tags == TAGS


@settings(max_examples=300, deadline=None)
@given(payload=st.binary(max_size=200), seed=st.integers(0, 10**6))
def test_any_bytes_as_tags_cost_no_audio(payload: bytes, seed: int) -> None:
    data = tagged(Tags())
    size = Reader(io.BytesIO(data)).header_bytes
    rng = np.random.default_rng(seed)
    sound = bytearray(b"".join(TAGS.payloads())[:300])
    sound[rng.integers(len(sound))] ^= 1 << rng.integers(8)
    for content in (payload, bytes(sound)):
        reader, indices = read(data[:size] + to_block(METADATA, 0, content) + data[size:])
        np.testing.assert_array_equal(indices, INDICES)
        assert {fault.kind for fault in reader.faults} <= {"tags"}


def test_what_tags_cannot_be() -> None:
    for name in ("", "A=B", "A\n", "Ä", "A~"):
        with pytest.raises(ValueError, match="is no name of a tag"):
            Tags(((name, "x"),))
    for make in (
        lambda: Tags((("A", "\udcff"),)),
        lambda: Tags(vendor="\udcff"),
        lambda: replace(COVER, description="\udcff"),
    ):
        with pytest.raises(ValueError, match="is not UTF-8"):
            make()
    with pytest.raises(ValueError, match="out of range"):
        replace(COVER, width=-1)
    with pytest.raises(ValueError, match="printable ASCII"):
        replace(COVER, mime="image/\n")
    with pytest.raises(ValueError, match=f"the format holds {MAX_TAGS}"):
        Tags(pictures=(replace(COVER, data=bytes(MAX_TAGS)),))


def bad_payload(*comments: bytes) -> bytes:
    return b"".join(n.to_bytes(4, "little") for n in (0, len(comments))) + b"".join(
        len(comment).to_bytes(4, "little") + comment for comment in comments
    )


@pytest.mark.parametrize(
    ("blocks", "comments", "problem"),
    [
        ([bad_payload(b"A=\xff", b"B=1")], [("B", "1")], "tag 1 is not UTF-8"),
        ([bad_payload(b"B=1", b"no equals sign")], [("B", "1")], "tag 2 is no NAME=value"),
        ([bad_payload(b"=1", b"A\n=1", b"B=1=2")], [("B", "1=2")], "tag 1 is no NAME=value"),
        ([bad_payload(b"B=1"), bad_payload(b"C=1")[:3]], [("B", "1")], "tags end too early"),
        ([bad_payload(b"B=1", b"C=1")[:-1]], [("B", "1")], "tags end too early"),
        ([b"\xff\xff\xff\xff"], [], "tags end too early"),
        ([bad_payload(b"B=1"), None, b"x"], [("B", "1")], "tags of which a part is missing"),
        ([bad_payload(b"B=1"), 0], [("B", "1")], "more than one set of tags"),
    ],
)
def test_what_makes_no_sense_is_said_and_the_rest_is_there(blocks: list[Any], comments: Any, problem: str) -> None:
    data = tagged(Tags())
    size = Reader(io.BytesIO(data)).header_bytes
    parts = [
        to_block(METADATA, 0 if block == 0 else number, block or bad_payload(b"C=1"))
        for number, block in enumerate(blocks)
        if block is not None
    ]
    reader, indices = read(data[:size] + b"".join(parts) + data[size:])
    np.testing.assert_array_equal(indices, INDICES)
    assert list(reader.tags.comments) == comments
    (fault,) = reader.faults
    assert problem in str(fault)
    assert reader.lost_seconds == 0


@pytest.mark.parametrize("conceal", [False, True])
def test_damage_to_tags_costs_no_audio(conceal: bool) -> None:
    data = tagged(TAGS)
    whole = Reader(io.BytesIO(data))
    first = next(iter(whole.blocks())).offset
    assert first == whole.audio_begin
    places = {*range(whole.header_bytes, whole.header_bytes + 80), *range(first - 40, first), *range(200, first, 1500)}
    for place in places:
        flipped = data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :]
        reader = Reader(io.BytesIO(flipped), conceal)
        indices = np.concatenate([reader.unpack(block) for block in reader.blocks()], axis=1)
        np.testing.assert_array_equal(indices, INDICES)
        assert reader.faults
        assert {fault.kind for fault in reader.faults} <= {"tags", "foreign"}
        assert reader.lost_seconds == 0
        assert reader.num_samples == samples_of(FRAMES)
    # The comments stand when a picture is hit.
    place = first - 100
    reader, _ = read(data[:place] + b"\0\0\0" + data[place + 3 :])
    assert reader.tags.comments == TAGS.comments
    # A part is read without what stands before it.
    reader = Reader(io.BytesIO(data))
    block = next(iter(reader.part(400, None)))
    np.testing.assert_array_equal(reader.unpack(block), INDICES[:, 400:])
    assert reader.tags == TAGS
    # Cut off within the tags nothing is left, and that is said.
    for length in (whole.header_bytes + 5, first - 1):
        with pytest.raises(FormatError, match="truncated"):
            read(data[:length])


@pytest.mark.parametrize("kind", ["zeros", "gone"])
@pytest.mark.parametrize("place", [0.0, 0.2, 0.5, 0.8, 1.0])
def test_parity_mends_tags_too(kind: str, place: float) -> None:
    tags = replace(TAGS, pictures=(replace(COVER, data=COVER.data[:3000]),))
    data = tagged(tags, 0.1)
    reader, _ = read(data)
    assert reader.audio_begin is not None
    size = 300
    begin = int(place * (reader.audio_begin - size)) + 30
    bad = data[:begin] + (bytes(size) if kind == "zeros" else b"") + data[begin + size :]
    assert Mended(io.BytesIO(bad)).read() == data


def test_large_tags_keep_the_windows_of_parity() -> None:
    tags = Tags(pictures=(replace(COVER, data=np.random.default_rng(2).bytes(200_000)),))
    data = tagged(tags, 0.1)
    bad = bytearray(data)
    for begin, size in ((70_000, 1000), (150_000, 1000), (len(data) - 2000, 100)):
        bad[begin : begin + size] = bytes(size)
    mended = Mended(io.BytesIO(bytes(bad)))
    assert mended.read() == data
    assert mended.mender.windows >= 3
    # Other tags for a file with parity: as much of it, and it mends.
    plain = with_tags(data, Tags((("TITLE", "x"),)))
    assert read(plain)[0].tags == Tags((("TITLE", "x"),))
    np.testing.assert_array_equal(read(plain)[1], INDICES)
    assert len(plain) <= len(tagged(Tags((("TITLE", "x"),)), 0.1)) + 20
    size = len(plain) // 12
    assert Mended(io.BytesIO(plain[:100] + bytes(size) + plain[100 + size :])).read() == plain
    # Going back and forth adds up to nothing.
    assert with_tags(with_tags(plain, tags), Tags((("TITLE", "x"),))) == plain


def test_blocks_of_other_kinds_stay() -> None:
    data = tagged(TAGS)
    size = Reader(io.BytesIO(data)).header_bytes
    strange = with_crc(0x90, 0, b"a later version's")
    new = with_tags(data[:size] + strange + data[size:], Tags())
    assert new == data[:size] + strange + tagged(Tags())[size:]
