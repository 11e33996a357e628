"""Tags: the metadata block, those of audio files in and out, the command `q2d2 tag`, and all that is wrong with any."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import mutagen
import mutagen.flac
import mutagen.id3
import mutagen.mp4
import numpy as np
import pytest
import reference_decoder
import soundfile
import torch
from conftest import CLIP, ROOT, Run, one_line
from hypothesis import given, settings
from hypothesis import strategies as st
from test_container import draw_indices, make_header, read, samples_of, with_crc

import q2d2cli
from q2d2cli import Codec, Tokens
from q2d2cli.audio import AudioReader, output_format
from q2d2cli.audio.tags import write_tags
from q2d2cli.container.blocks import METADATA, to_block
from q2d2cli.container.header import FormatError
from q2d2cli.container.mending import Mended
from q2d2cli.container.parity import Facts, blocks_of
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


@pytest.mark.parametrize("facts", [Facts(1, 1, 254), Facts(1, 1, 1), Facts(200, 1, 4)])
def test_parity_of_any_strength_is_made_anew(facts: Facts) -> None:
    """Hostile parity blocks do not make a file grow, or more than twice."""
    data = tagged(Tags(), 1.0)
    size = Reader(io.BytesIO(data)).header_bytes
    strange = b"".join(blocks_of(facts, 0, bytes(facts.parity_bytes)))
    new = with_tags(data[:size] + strange + data[size:], TAGS)
    assert read(new)[0].tags == TAGS
    assert len(new) < 2.3 * (len(data) + 45_000)


def test_robust_files_lose_blocks_and_keep_tags() -> None:
    file = io.BytesIO()
    writer = Writer(file, replace(HEADER, payload="robust"), tags=TAGS)
    writer.write(INDICES)
    writer.close(samples_of(FRAMES))
    data = file.getvalue()
    blocks = list(Reader(io.BytesIO(data)).blocks())
    reader, _ = read(data[: blocks[0].offset] + data[blocks[0].end :])
    assert (reader.tags, reader.lost_blocks, reader.num_samples) == (TAGS, 1, samples_of(FRAMES))
    bad = bytearray(data)
    bad[reader.header_bytes + 50] ^= 1
    bad[blocks[1].begin + 5] ^= 1
    reader, _ = read(bytes(bad))
    assert (reader.tags, reader.damaged_blocks, reader.lost_blocks) == (Tags(), 1, 0)
    assert sorted(fault.kind for fault in reader.faults) == ["damaged", "tags"]


def test_blocks_of_other_kinds_stay() -> None:
    data = tagged(TAGS)
    size = Reader(io.BytesIO(data)).header_bytes
    strange = with_crc(0x90, 0, b"a later version's")
    new = with_tags(data[:size] + strange + data[size:], Tags())
    assert new == data[:size] + strange + tagged(Tags())[size:]


VECTORS: dict[str, dict[str, Any]] = json.loads((ROOT / "tests" / "golden" / "tags-and-parity.json").read_text())


@pytest.mark.parametrize("name", VECTORS)
def test_golden_files(name: str) -> None:
    vector, data = dict(VECTORS[name]), (ROOT / "tests" / "golden" / f"{name}.q2d").read_bytes()
    vendor, comments, pictures, share = (vector.pop(key) for key in ("vendor", "comments", "pictures", "parity"))
    reader, indices = read(data)
    assert indices.tolist() == vector["indices"]
    assert reader.header.parity == (share is not None)
    assert [f"{key}={value}" for key, value in reader.tags.comments] == comments
    assert [{**asdict(picture), "data": picture.data.hex()} for picture in reader.tags.pictures] == pictures
    # What writes them today, and the decoder written from the specification, say the same.
    file = io.BytesIO()
    writer = Writer(file, reader.header, parity=share, tags=reader.tags)
    writer.write(indices)
    writer.close(vector["num_samples"])
    assert file.getvalue() == data
    assert reference_decoder.decode(data) == {"version": [2, 0], **vector}
    said = reference_decoder.tags(data)
    assert said[:2] == (vendor, comments)
    assert [{**picture, "data": picture["data"].hex()} for picture in said[2]] == pictures
    if share is not None:
        assert Mended(io.BytesIO(data[:100] + bytes(15) + data[115:])).read() == data
        assert Mended(io.BytesIO(data[:100] + data[115:])).read() == data


# Audio files.


def png(width: int = 60, height: int = 40) -> bytes:
    """A picture that pillow, which matplotlib brings, has made."""
    from PIL import Image

    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


PNG = png()
TEXTS = {
    "TITLE": ["Ein Gespräch"],
    "ARTIST": ["Anna", "Ben"],
    "ALBUM": ["Gespräche"],
    "DATE": ["2026-11-28"],
    "GENRE": ["Speech"],
    "TRACKNUMBER": ["3"],
    "TRACKTOTAL": ["12"],
    "COMMENT": ["second take"],
    "MICROPHONE": ["the left one"],
}
SUFFIXES = ["flac", "ogg", "opus", "mp3", "wav", "aiff"]


def write_tagged(path: Path, audio: np.ndarray, rate: int) -> Path:
    """A file with TEXTS and PNG, its tags written with mutagen as its format has them."""
    suffix = path.suffix[1:]
    if suffix == "m4a":
        soundfile.write(path.with_suffix(".wav"), audio, rate)
        command = ["ffmpeg", "-v", "error", "-i", path.with_suffix(".wav"), "-c:a", "aac", path]
        subprocess.run(command, check=True)
    else:
        soundfile.write(path, audio, rate, **({"format": "OGG", "subtype": "OPUS"} if suffix == "opus" else {}))
    file = mutagen.File(path)
    if file.tags is None:
        file.add_tags()
    picture = mutagen.flac.Picture()
    picture.data, picture.type, picture.mime, picture.desc = PNG, 3, "image/png", "cover"
    picture.width, picture.height, picture.depth = 60, 40, 24
    if suffix in ("flac", "ogg", "opus"):
        file.tags.clear()
        for name, values in TEXTS.items():
            file.tags[name] = values
        if suffix == "flac":
            file.add_picture(picture)
        else:
            file.tags["METADATA_BLOCK_PICTURE"] = [base64.b64encode(picture.write()).decode()]
    elif suffix == "m4a":
        names = {"TITLE": "\xa9nam", "ARTIST": "\xa9ART", "ALBUM": "\xa9alb", "DATE": "\xa9day", "GENRE": "\xa9gen"}
        for name, key in names.items():
            file.tags[key] = TEXTS[name]
        file.tags["trkn"], file.tags["\xa9cmt"] = [(3, 12)], TEXTS["COMMENT"]
        file.tags["----:com.apple.iTunes:Microphone"] = [b"the left one"]
        file.tags["----:com.apple.iTunes:iTunSMPB"] = [b" 00000000"]
        file.tags["covr"] = [mutagen.mp4.MP4Cover(PNG, mutagen.mp4.MP4Cover.FORMAT_PNG)]
    else:
        names = {"TITLE": "TIT2", "ARTIST": "TPE1", "ALBUM": "TALB", "DATE": "TDRC", "GENRE": "TCON"}
        for name, key in names.items():
            file.tags.add(getattr(mutagen.id3, key)(encoding=3, text=TEXTS[name]))
        file.tags.add(mutagen.id3.TRCK(encoding=3, text="3/12"))
        file.tags.add(mutagen.id3.COMM(encoding=3, lang="eng", desc="", text="second take"))
        file.tags.add(mutagen.id3.COMM(encoding=3, lang="eng", desc="iTunNORM", text=" 0000"))
        file.tags.add(mutagen.id3.TXXX(encoding=3, desc="Microphone", text="the left one"))
        file.tags.add(mutagen.id3.APIC(encoding=3, mime="image/png", type=3, desc="cover", data=PNG))
    file.save()
    return path


def texts_of(tags: Tags) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in tags.comments:
        found.setdefault(name.upper(), []).append(value)
    found.pop("ENCODER", None)
    return found


def tags_in(path: Path) -> Tags:
    """What an audio file has, as `encode` sees it."""
    with AudioReader(path) as reader:
        tags = reader.tags()
        assert reader.warnings == []
        return tags


@pytest.fixture(scope="module")
def audio() -> tuple[np.ndarray, int]:
    samples, rate = soundfile.read(CLIP, dtype="float32", frames=8_000)
    return samples, rate


@pytest.mark.parametrize("suffix", [*SUFFIXES, "m4a"])
def test_tags_of_audio_files_go_there_and_back(
    call: Run, tiny: Path, tmp_path: Path, audio: tuple[np.ndarray, int], suffix: str
) -> None:
    path, coded = write_tagged(tmp_path / f"in.{suffix}", *audio), tmp_path / "in.q2d"
    result = call("encode", path, coded, "-m", tiny)
    assert result.returncode == 0, result.stderr
    assert b"left out" not in result.stderr
    tags = Tokens.load(coded).tags
    assert texts_of(tags) == TEXTS
    (picture,) = tags.pictures
    assert (picture.data, picture.mime, picture.kind) == (PNG, "image/png", 3)
    assert (picture.width, picture.height) == (60, 40)
    out = tmp_path / f"out.{'flac' if suffix == 'm4a' else suffix}"
    assert call("decode", coded, out, "-m", tiny, "-q").returncode == 0
    back = tags_in(out)
    assert texts_of(back) == TEXTS
    assert [p.data for p in back.pictures] == [PNG]
    if suffix == "flac":
        assert (back.comments, back.pictures) == (tags.comments, tags.pictures)
    # The sound is what it is without tags.
    bare = tmp_path / f"bare{out.suffix}"
    assert call("tag", "--clear", coded).returncode == 0
    assert call("decode", coded, bare, "-m", tiny, "-q").returncode == 0
    assert not tags_in(bare).pictures
    np.testing.assert_array_equal(soundfile.read(out)[0], soundfile.read(bare)[0])
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []


def test_tags_replace_what_is_there_in_every_format(tmp_path: Path, audio: tuple[np.ndarray, int]) -> None:
    """Through the functions alone: the commands are tried above."""
    tags = Tags(tuple((name, text) for name, texts in TEXTS.items() for text in texts), (TAGS.pictures[1],))
    for suffix in SUFFIXES:
        path = tmp_path / f"a.{suffix}"
        soundfile.write(path, *audio, **({"format": "OGG", "subtype": "OPUS"} if suffix == "opus" else {}))
        for _ in range(2):  # what is there is replaced
            with path.open("r+b") as file:
                write_tags(file, output_format(path), tags)
        assert texts_of(tags_in(path)) == TEXTS
        assert [picture.data for picture in tags_in(path).pictures] == [b"x"]


def test_wav_info_and_what_a_damaged_file_has(tmp_path: Path, audio: tuple[np.ndarray, int]) -> None:
    path = tmp_path / "a.wav"
    with soundfile.SoundFile(path, "w", audio[1], 1) as file:
        file.title, file.artist, file.software = "T", "A", "made by"
        file.write(audio[0])
    assert tags_in(path).comments == (("TITLE", "T"), ("ARTIST", "A"))
    # Bytes where tags should be: a warning, and the audio.
    path = write_tagged(tmp_path / "a.mp3", *audio)
    data = bytearray(path.read_bytes())
    data[10:60] = bytes(50)
    path.write_bytes(data)
    with AudioReader(path) as reader:
        reader.tags()
        assert sum(block.shape[1] for block in reader.blocks()) > 7_000


# The commands.


@pytest.fixture
def coded(tiny_codec: Codec, tmp_path: Path, audio: tuple[np.ndarray, int]) -> Path:
    path = tmp_path / "a.q2d"
    tokens = replace(tiny_codec.encode(*audio), tags=TAGS)
    tokens.save(path)
    return path


def audio_bytes(path: Path) -> bytes:
    reader, _ = read(path.read_bytes())
    return path.read_bytes()[reader.audio_begin :]


def test_tag_changes_tags_and_nothing_else(call: Run, coded: Path, tmp_path: Path) -> None:
    before = audio_bytes(coded)
    cover = tmp_path / "cover.png"
    cover.write_bytes(PNG)
    result = call("tag", coded)
    assert (result.returncode, result.stdout.decode()) == (0, "TITLE=Müller\nartist=A\nARTIST=B\\nC\n")
    assert "front cover: image/png, 300 x 200, 40000 bytes" in result.stderr.decode()
    for options, expected in (
        (["--title", "New", "--comment", "x y=1=2"], ["artist=A", "ARTIST=B\\nC", "TITLE=New", "x y=1=2"]),
        (["--remove", "Artist", "--album", "A", "--album", "B"], ["TITLE=New", "x y=1=2", "ALBUM=A", "ALBUM=B"]),
        (["--clear", "--genre", "Ä", "--picture", cover], ["GENRE=Ä"]),
        (["--clear"], []),
    ):
        result = call("tag", *options, coded)
        assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")
        assert call("tag", coded).stdout.decode().splitlines() == expected
        assert audio_bytes(coded) == before
        assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert call("tag", coded).stderr == b"no tags\n"
    one_line(call("tag", "--export-picture", tmp_path / "x.png", coded), 1, "has no picture")
    assert not (tmp_path / "x.png").exists()
    assert call("tag", "--picture", cover, coded).returncode == 0
    assert call("tag", "--export-picture", tmp_path / "x.png", coded).returncode == 0
    assert (tmp_path / "x.png").read_bytes() == PNG
    one_line(call("tag", "--export-picture", tmp_path / "x.png", coded), 2, "already exists")
    assert Tokens.load(coded).tags.pictures[0].width == 60
    assert call("tag", "--title", "T", "--remove-pictures", coded).returncode == 0
    assert Tokens.load(coded).tags == Tags((("TITLE", "T"),))


def test_tag_needs_no_torch(coded: Path) -> None:
    code = "import sys; from q2d2cli.__main__ import run; code = run(); sys.exit(code or 'torch' in sys.modules)"
    for options in ((), ("--title", "T")):
        subprocess.run([sys.executable, "-c", code, "tag", *options, coded], cwd=ROOT, capture_output=True, check=True)
    assert Tokens.load(coded).tags.values("TITLE") == ("T",)


def test_info_shows_and_counts_them(call: Run, coded: Path) -> None:
    text = call("info", coded).stdout.decode()
    assert "comments: 3, pictures: 2" in text
    assert "1/0 of" not in text
    assert "TITLE=Müller" in text
    assert "ARTIST=B\\nC" in text
    facts = json.loads(call("info", coded, "--json").stdout)
    assert facts["tags"]["comments"] == {"TITLE": ["Müller"], "ARTIST": ["A", "B\nC"]}
    assert [picture["bytes"] for picture in facts["tags"]["pictures"]] == [40_000, 1]
    assert 40_100 < facts["tag_bytes"] < 40_300
    bare = coded.with_name("bare.q2d")
    bare.write_bytes(with_tags(coded.read_bytes(), Tags()))
    assert json.loads(call("info", bare, "--json").stdout)["bit_rate"] == facts["bit_rate"]


def test_encode_takes_what_the_options_say(
    call: Run, tiny: Path, tmp_path: Path, audio: tuple[np.ndarray, int]
) -> None:
    path, out = write_tagged(tmp_path / "in.flac", *audio), tmp_path / "out.q2d"
    cover = tmp_path / "cover.png"
    cover.write_bytes(png(10, 10))
    texts = ["--title", "Mine", "--artist", "X", "--tracknumber", "9", "--comment", "TRACKTOTAL=10"]
    result = call("encode", path, out, "-m", tiny, *texts, "--picture", cover, "--parity", "5%", "--verify", "--json")
    assert result.returncode == 0, result.stderr
    tags = Tokens.load(out).tags
    changed = {"TITLE": ["Mine"], "ARTIST": ["X"], "TRACKNUMBER": ["9"], "TRACKTOTAL": ["10"]}
    assert texts_of(tags) == {**TEXTS, **changed}
    assert [(picture.width, picture.data) for picture in tags.pictures] == [(10, cover.read_bytes())]
    assert json.loads(result.stdout)["tag_bytes"] > len(cover.read_bytes())
    options = ["--discard-comments", "--discard-pictures", "--comment", "A=b"]
    assert call("encode", "-f", path, out, "-m", tiny, "-q", *options).returncode == 0
    assert Tokens.load(out).tags == Tags((("A", "b"),))
    assert call("encode", "-f", path, out, "-m", tiny, "-q", "--discard-comments").returncode == 0
    assert (Tokens.load(out).tags.comments, len(Tokens.load(out).tags.pictures)) == ((), 1)


def test_live_pipes_have_the_tags_that_are_given(run: Run, tiny: Path, audio: tuple[np.ndarray, int]) -> None:
    file = io.BytesIO()
    soundfile.write(file, *audio, format="WAV")
    result = run("encode", "--live", "-", "-", "-m", tiny, "--title", "Now", stdin=file.getvalue())
    assert result.returncode == 0, result.stderr
    reader, _ = read(result.stdout)
    assert reader.tags.comments == (("TITLE", "Now"),)
    back = run("decode", "-", "-", "-m", tiny, stdin=result.stdout)
    assert (back.returncode, back.stdout[:4]) == (0, b"RIFF")
    # A FLAC from a pipe is read whole first, its tags, too.
    file = io.BytesIO()
    soundfile.write(file, *audio, format="FLAC")
    file.seek(0)
    flac = mutagen.flac.FLAC(file)
    flac["TITLE"] = "From a pipe"
    file.seek(0)
    flac.save(file)
    result = run("encode", "-", "-", "-m", tiny, stdin=file.getvalue())
    assert texts_of(read(result.stdout)[0].tags) == {"TITLE": ["From a pipe"]}


def test_tags_from_python(coded: Path, tmp_path: Path) -> None:
    tokens = Tokens.load(coded)
    assert tokens.tags == TAGS
    assert tokens.tags.values("Artist") == ("A", "B\nC")
    assert tokens.tags.cover() == COVER
    assert Tokens.load(coded, start=0.1).tags == TAGS
    replace(tokens, tags=q2d2cli.Tags((("TITLE", "T"),))).save(tmp_path / "b.q2d")
    assert Tokens.load(tmp_path / "b.q2d").tags.comments == (("TITLE", "T"),)
    data = bytearray(coded.read_bytes())
    data[Reader(io.BytesIO(data)).header_bytes + 30] ^= 1
    with pytest.warns(UserWarning, match="tags with a wrong checksum"):
        assert torch.equal(Tokens.load(io.BytesIO(bytes(data))).indices, tokens.indices)


# What is wrong.


def test_damaged_tags_cost_a_warning(call: Run, tiny: Path, coded: Path, tmp_path: Path) -> None:
    whole = coded.read_bytes()
    data = bytearray(whole)
    data[Reader(io.BytesIO(data)).header_bytes + 30] ^= 1
    coded.write_bytes(data)
    result = call("decode", coded, tmp_path / "a.wav", "-m", tiny, "-q")
    assert result.returncode == 0
    assert result.stderr.decode().count("\n") == 1
    assert "tags with a wrong checksum" in result.stderr.decode()
    result = call("info", coded)
    assert result.returncode == 1
    assert "no sound is lost" in result.stdout.decode()
    assert call("decode", "--test", coded, "-m", tiny).returncode == 1
    one_line(call("tag", coded), 1, "tags with a wrong checksum")
    # New tags mend it.
    result = call("tag", "--title", "T", coded)
    assert result.returncode == 0
    assert "was damaged" in result.stderr.decode()
    assert call("info", coded).returncode == 0
    # A file whose audio is damaged stays as it is.
    data = bytearray(whole)
    data[-20] ^= 1
    coded.write_bytes(data)
    one_line(call("tag", "--title", "T", coded), 1, str(coded), "damaged")
    assert coded.read_bytes() == data
    coded.write_bytes(whole[:1000])
    one_line(call("tag", "--title", "T", coded), 1, "truncated")
    coded.write_bytes((ROOT / "tests" / "golden" / "rhombic-mono.q2d").read_bytes())
    one_line(call("tag", "--title", "T", coded), 1, "version 1, which has no tags")


def test_bad_requests(call: Run, tiny: Path, coded: Path, tmp_path: Path) -> None:
    before = coded.read_bytes()
    nothing, big = tmp_path / "nothing.png", tmp_path / "big.gif"
    nothing.write_bytes(b"\x89PNG\r\n\x1a\n")
    big.write_bytes(b"GIF89a" + b"\x10\0\x10\0" + bytes(MAX_TAGS))
    for options, words in (
        (["--comment", "no equals sign"], ["write NAME=value"]),
        (["--comment", "=x"], ["write NAME=value"]),
        (["--comment", "A\n=x"], ["write NAME=value"]),
        (["--title", os.fsdecode(b"\xff")], ["TITLE is not UTF-8"]),
        (["--picture", CLIP], ["is no picture"]),
        (["--picture", nothing], ["is no picture"]),
        (["--picture", tmp_path / "none.jpg"], ["does not exist"]),
        (["--picture", big], ["the format holds"]),
    ):
        one_line(call("tag", *options, coded), 2, *words)
        one_line(call("encode", CLIP, tmp_path / "b.q2d", "-m", tiny, *options), 2, *words)
        assert coded.read_bytes() == before
        assert not (tmp_path / "b.q2d").exists()
    coded.chmod(0o444)
    one_line(call("tag", "--title", "T", coded), 2, "read-only")
    assert coded.read_bytes() == before
    one_line(call("tag", "--title", "T", CLIP), 1, "not a .q2d file")
    one_line(call("tag", "--title", "T", "-"), 2, "in its place")
    # Of several files those that can be changed are.
    other = tmp_path / "other.q2d"
    other.write_bytes(before)
    result = call("tag", "--title", "T", CLIP, coded, other)
    assert (result.returncode, result.stderr.count(b"\n")) == (2, 2)
    assert Tokens.load(other).tags.values("title") == ("T",)


def test_without_mutagen_tags_are_left_out_and_that_is_said(
    call: Run, tiny: Path, tmp_path: Path, audio: tuple[np.ndarray, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = write_tagged(tmp_path / "in.flac", *audio), tmp_path / "out.q2d"
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "mutagen" else find(name))
    result = call("encode", path, out, "-m", tiny, "-q", "--title", "T")
    assert result.returncode == 0
    assert 'its tags are left out (pip install "q2d2[tags]" copies them)' in result.stderr.decode()
    assert Tokens.load(out).tags.comments == (("TITLE", "T"),)
    result = call("decode", out, tmp_path / "out.flac", "-m", tiny, "-q")
    assert result.returncode == 0
    assert 'pip install "q2d2[tags]" writes them' in result.stderr.decode()
    soundfile.write(path, *audio)
    assert call("encode", "-f", path, out, "-m", tiny, "-q").stderr == b""
